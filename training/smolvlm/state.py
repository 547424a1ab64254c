"""What a killed training goes on from, and what it says on the way."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch


def save(path: Path, state: dict[str, Any]) -> None:
    """Replace the file at `path`, never leaving half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def load(path: Path) -> dict[str, Any] | None:
    """What was saved last; None if nothing was."""
    return torch.load(path, map_location="cpu", weights_only=False) if path.exists() else None


class Pace:
    """Says when a checkpoint is due: a few minutes after the last one, however slow the machine is."""

    def __init__(self, seconds: float = 180) -> None:
        self._seconds = seconds
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether it is; the next one is then due later."""
        late = time.monotonic() - self._last > self._seconds
        if late:
            self._last = time.monotonic()
        return late


class Log:
    """JSON lines, one per event, flushed at once, here and on the screen."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path

    def __call__(self, **entry: Any) -> None:
        """Write one entry with the time of day."""
        line = json.dumps({"at": time.strftime("%H:%M:%S"), **entry})
        print(line, flush=True)
        with self._path.open("a") as file:
            file.write(line + "\n")
