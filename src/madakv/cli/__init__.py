"""The `madakv` command."""

from __future__ import annotations

import io
import sys


def main() -> None:
    """Entry point of the `madakv` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal of another encoding shows what it cannot print as \x.., and does not end the program.
            stream.reconfigure(errors="backslashreplace")
    try:
        # Here, so that Ctrl-C while it is imported ends like Ctrl-C at any other time.
        from madakv.cli.app import app

        app()
    except KeyboardInterrupt:
        print("Aborted.", file=sys.stderr)
        sys.exit(1)


__all__ = ["main"]
