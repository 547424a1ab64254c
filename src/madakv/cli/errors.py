"""Errors as a user of the command line should see them: one line, exit code 2."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from madakv.cli.output import visible
from madakv.errors import MadaKVError
from madakv.extras import torchvision_fault

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print what a user can mend as one line on stderr and exit with code 2.

    That is every `MadaKVError`; what the system refuses, such as a full disk; and a torchvision that does not fit,
    which keeps transformers from being imported.
    """
    try:
        yield
        # What is still to be written may not fit either.
        sys.stdout.flush()
    except MadaKVError as error:
        _end(str(error))
    except BrokenPipeError:
        # Whoever reads has had enough.
        raise
    except OSError as error:
        if error.errno is None:
            raise
        _end(_of_the_system(error))
    except (ImportError, RuntimeError):
        fault = torchvision_fault()
        if fault is None:
            raise
        _end(fault)


def _of_the_system(error: OSError) -> str:
    if error.errno in _FULL:
        return (
            f"the disk is full ({error.strerror}): make room and run the same command again; what is done is "
            "not done again"
        )
    return f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)


def _end(message: str) -> NoReturn:
    line = visible(" ".join(message.split()))
    typer.secho(f"error: {line}", err=True, fg=typer.colors.RED)
    raise typer.Exit(2) from None
