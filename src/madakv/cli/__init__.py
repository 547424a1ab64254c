"""The `madakv` command."""

from __future__ import annotations

import io
import sys

_ENDED_BY_CTRL_C = 130


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
        sys.exit(_ENDED_BY_CTRL_C)


__all__ = ["main"]
