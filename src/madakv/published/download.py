"""Downloading one file that is known by its size and checksum, going on where an earlier try was stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from madakv.errors import DownloadError
from madakv.published.known import Wheel
from madakv.published.pip_settings import PipSettings
from madakv.published.web import TROUBLE, open_address, reason, shown

Report = Callable[[int, int], None]
"""Is called with (done, total), in bytes."""

_CHUNK = 1 << 15
_TRIES = 5
_PARTIAL = 206


def download(address: str, wheel: Wheel, settings: PipSettings, report: Report) -> None:
    """Bring a file to its path whole, or not at all; `.part` behind its name holds what has come so far.

    Raises:
        DownloadError: the connection breaks again and again, or another file comes than the known one.
        OSError: it cannot be written.
    """
    part = wheel.path.with_name(f"{wheel.filename}.part")
    _bring(address, wheel, part, settings, report)
    found = sha256_of(part)
    if found != wheel.sha256:
        part.unlink()
        raise DownloadError(
            f"{shown(address)} is not the file that it should be (SHA-256 {found}, not {wheel.sha256}): what came is "
            "thrown away. Run the command again; if that does not help, name another index, such as by PIP_INDEX_URL"
        )
    part.replace(wheel.path)


def sha256_of(path: Path) -> str:
    """A file's SHA-256, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bring(address: str, wheel: Wheel, part: Path, settings: PipSettings, report: Report) -> None:
    """Append what is missing to `part`, with several connections if they break."""
    have = _size(part)
    report(have, wheel.nbytes)
    for _ in range(_TRIES):
        if have >= wheel.nbytes:
            return
        fault = _append(address, wheel, part, settings, report)
        have, before = _size(part), have
        if have <= before:
            break
    if have < wheel.nbytes:
        raise DownloadError(
            f"the download from {shown(address)} stopped at {have:,} of {wheel.nbytes:,} bytes ({fault}): run the "
            "command again, it goes on from there"
        )


def _append(address: str, wheel: Wheel, part: Path, settings: PipSettings, report: Report) -> str:
    """Append what one connection gives; why it gave no more."""
    have = _size(part)
    try:
        response = open_address(address, settings, {"Range": f"bytes={have}-"} if have else {})
    except TROUBLE as error:
        return reason(error)
    with response:
        begin = have if response.status == _PARTIAL else 0
        _check_size(response, address, begin, wheel)
        # A server that knows no ranges begins at the beginning.
        with part.open("ab" if begin else "wb") as file:
            done = begin
            while True:
                try:
                    chunk = response.read(_CHUNK)
                except TROUBLE as error:
                    return reason(error)
                if not chunk:
                    return "the connection ended"
                file.write(chunk)
                done += len(chunk)
                report(done, wheel.nbytes)


def _check_size(response: Any, address: str, begin: int, wheel: Wheel) -> None:
    """Refuse what cannot be the file before it is written, such as a page that asks to log in."""
    told = response.headers.get("Content-Length")
    if told is not None and begin + int(told) != wheel.nbytes:
        raise DownloadError(
            f"{shown(address)} is not the file that it should be: {begin + int(told):,} bytes, not {wheel.nbytes:,}"
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
