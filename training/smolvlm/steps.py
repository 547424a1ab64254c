"""Batches drawn ahead by other processes, and how far a stage has come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset


class _Drawn(Dataset[Any]):
    def __init__(self, draw: Callable[[int], Any], first: int) -> None:
        self._draw, self._first = draw, first

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, number: int) -> Any:
        torch.set_num_threads(1)
        return self._draw(self._first + number)


def ahead(draw: Callable[[int], Any], first: int, workers: int) -> Iterator[Any]:
    """`draw(first)`, `draw(first + 1)`, ...: by so many processes; 0 draws here."""
    if not workers:
        while True:
            yield draw(first)
            first += 1
    # A file descriptor per tensor would soon be one too many.
    torch.multiprocessing.set_sharing_strategy("file_system")
    yield from DataLoader(_Drawn(draw, first), batch_size=None, num_workers=workers, prefetch_factor=4)


@dataclass
class Progress:
    """A stage ends after so many things or seconds, whichever comes first.

    Attributes:
        most: things (pictures, documents).
        seconds: None for no limit.
        done: things so far.
        spent: seconds before this run.
    """

    most: int
    seconds: float | None
    done: int = 0
    spent: float = 0.0

    def __post_init__(self) -> None:
        self._began = time.time()

    @property
    def elapsed(self) -> float:
        """Seconds of all runs."""
        return self.spent + time.time() - self._began

    @property
    def share(self) -> float:
        """How much of the stage is over, 0 to 1."""
        timed = self.elapsed / self.seconds if self.seconds else 0.0
        return min(1.0, max(self.done / self.most, timed))

    def rate(self, step: int, warmup: int, fall: float) -> float:
        """The learning rate's share: up over `warmup` steps, constant, down to nothing over the last `fall`."""
        return min(1.0, (step + 1) / warmup, max(0.0, 1 - self.share) / fall)
