"""Times that can be compared: contenders take turns within one run, and medians count."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """How long a piece of work takes, all that it started on a GPU included."""
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def take_turns(works: Sequence[Callable[[], float]], repeats: int) -> list[list[float]]:
    """Run all works once per round, each round beginning with another one.

    A machine that slows down or speeds up meanwhile does so for all of them, and no one always comes right after the
    same other.

    Args:
        works: each returns its own time.
        repeats: rounds.

    Returns:
        For each work its times, in the order of the rounds.
    """
    times: list[list[float]] = [[] for _ in works]
    for turn in range(repeats):
        for place in range(len(works)):
            number = (turn + place) % len(works)
            times[number].append(works[number]())
    return times


def speedup(baseline: Sequence[float], times: Sequence[float]) -> float:
    """How many times as fast as the baseline: the median over the rounds' own ratios."""
    return median(base / own for base, own in zip(baseline, times, strict=True))


def against_floor(times: Sequence[float], floor: float) -> dict[str, float]:
    """The median of some times, and the least that the hardware allows, all in seconds, as figures of a row."""
    middle = median(times)
    return {"ms": middle * 1e3, "floor_ms": floor * 1e3, "over_floor": middle / floor}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
