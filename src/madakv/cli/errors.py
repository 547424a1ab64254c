"""Errors as a user of the command line should see them: one line, exit code 2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from madakv.errors import MadaKVError


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print a `MadaKVError` as one line on stderr and exit with code 2."""
    try:
        yield
    except MadaKVError as error:
        line = " ".join(str(error).split())
        typer.secho(f"error: {line}", err=True, fg=typer.colors.RED)
        raise typer.Exit(2) from None
