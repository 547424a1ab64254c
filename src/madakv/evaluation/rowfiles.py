"""Files of rows: plain while a run writes them, compressed once it is done.

A run appends to `rows.jsonl`, one flushed line per answer, so a kill costs no more than the line being written. When
the run ends, these lines join the earlier ones in `rows.jsonl.gz`: a whole new file that takes the old one's place,
and only then is the plain one removed. At no moment is a row in neither file; one that a kill left in both is read
once. A compressed member per answer would be as safe, but saves little: a row alone has nothing that repeats.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from madakv.errors import ConfigurationError

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

R = TypeVar("R")

_LEVEL = 9


def read_all(folder: Path, kind: type[R]) -> list[R]:
    """The complete rows of all shards in a folder."""
    there = {
        path.with_name(path.name.removesuffix(".gz")) for path in folder.glob("rows*.jsonl*") if _holds_rows(path)
    }
    return [row for path in sorted(there) for row in read_rows(path, kind)]


def _holds_rows(path: Path) -> bool:
    # Not what is being written to take a file's place.
    return path.name.endswith((".jsonl", ".jsonl.gz"))


def read_rows(path: Path, kind: type[R]) -> list[R]:
    """All complete rows of a plain file and of the compressed one beside it, those of the latter first.

    Args:
        path: of the plain file; either may be missing.
        kind: the dataclass of the rows.

    Raises:
        ConfigurationError: a file that is cut off inside, or a line that is no row; the message names both.
    """
    # The plain one first: a run that ends meanwhile moves its rows to the other.
    written, packed = _plain(path), _unpacked(packed_path(path))
    found: dict[bytes, R] = {}
    for file, content in ((packed_path(path), packed), (path, written)):
        for number, line in enumerate(content.split(b"\n"), 1):
            if line.strip() and line not in found:
                found[line] = _row(line, kind, file, number)
    return list(found.values())


def packed_path(path: Path) -> Path:
    """Where the rows of a plain file go when they are compressed."""
    return path.with_name(path.name + ".gz")


def _plain(path: Path) -> bytes:
    """Without a last line that a kill cut off."""
    try:
        whole = path.read_bytes()
    except FileNotFoundError:
        return b""
    return whole[: whole.rfind(b"\n") + 1]


def _unpacked(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        return b""
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ConfigurationError(
            f"{path} is cut off or no gzip file ({error}): bring it back from a copy, or move it out of the folder "
            "and start the same command again, which answers what is missing"
        ) from None


def _row(line: bytes, kind: type[R], file: Path, number: int) -> R:
    try:
        return kind(**json.loads(line))
    except (ValueError, RecursionError):
        reason = "is torn or no JSON"
    except TypeError as error:
        # Of a call of the dataclass: what is missing, or unknown to this version.
        reason = f"is no {kind.__name__} of this version of madakv ({error})"
    unpack = f"gunzip {file}, " if file.name.endswith(".gz") else ""
    raise ConfigurationError(
        f"line {number} of {file} {reason}: {line[:60]!r}; {unpack}delete that line, and start the same command "
        "again, which answers what is missing"
    )


@contextmanager
def appended(path: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Append rows to a plain file, which no other run does at the same time; compress it when all went well.

    Args:
        path: of the plain file. A last line that a kill cut off is dropped.

    Yields:
        What writes one row, flushed.

    Raises:
        ConfigurationError: a file that cannot be written, or that another run is writing.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _locked(path)
    except OSError as error:
        raise ConfigurationError(f"cannot use {path.parent} for results: {error}") from error
    with file:
        os.truncate(path, len(_plain(path)))

        def append(row: dict[str, Any]) -> None:
            # Escaped, for data may hold what no encoding has.
            line = json.dumps(row).encode("ascii") + b"\n"
            try:
                while line:
                    line = line[file.write(line) :]
            except OSError as error:
                raise ConfigurationError(
                    f"cannot write {path}: {error}; what was answered so far is safe in it: mend that, and start the "
                    "same command again"
                ) from error

        yield append
        try:
            _pack(path)
        except OSError as error:
            raise ConfigurationError(
                f"cannot compress {path}: {error}; it stays as it is, and is complete"
            ) from error
        file.truncate(0)
        # Where an open file cannot be removed, an empty one stays.
        with suppress(PermissionError):
            path.unlink()


def _locked(path: Path) -> io.FileIO:
    """A file to append to, until it is closed or the process ends; unbuffered, so that no half of a row waits."""
    while True:
        file = io.FileIO(path, "a")
        if fcntl is None:
            return file
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise ConfigurationError(f"another run is writing {path}: wait for it, or choose another --out") from None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        # A run that ended in between has removed this one.
        file.close()


def _pack(path: Path) -> None:
    """Add the rows of a plain file to the compressed one."""
    if not path.stat().st_size:
        return
    target = packed_path(path)
    partial = target.with_name(target.name + ".partial")
    with partial.open("wb") as out:
        # Without a name and a time: the same rows give the same bytes.
        with gzip.GzipFile("", "wb", _LEVEL, out, mtime=0) as packer:
            if target.exists():
                with gzip.open(target) as earlier:
                    shutil.copyfileobj(earlier, packer)
            with path.open("rb") as rows:
                shutil.copyfileobj(rows, packer)
        out.flush()
        os.fsync(out.fileno())
    partial.replace(target)
