"""What to measure, whichever the benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from madakv.methods import Method

Fill = Literal["auto", "prefill", "synthetic"]
"""How caches come to hold a prompt: the model reads it, or they are handed random keys and values."""


@dataclass(frozen=True)
class Settings:
    """Of one case.

    Attributes:
        context: tokens of a batch's longest row.
        batch: rows.
        methods: of madakv.
        tokens: decoded per contender and round.
        repeats: rounds.
        fill: see `Fill`.
        shortest: length of the shortest row, as a share of the context.
        rivals: whether transformers' other caches take part.
        fast_linears: whether all take part a second time, inside `madakv.fast_linears`.
    """

    context: int
    batch: int
    methods: tuple[Method, ...]
    tokens: int
    repeats: int
    fill: Fill
    shortest: float
    rivals: bool
    fast_linears: bool = False
