"""`madakv.allocate` against the slow reference, and against the promises that hold for any scores."""

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from madakv import ConfigurationError, InputError, KeepPlan, MadaKV, allocate
from madakv.budget import Ledger
from madakv.budget.reference import allocate_reference, proxies_reference

COMPENSATIONS = ("none", "capped", "demand", "signal")
NOISY = ("huge", "mixed")
"""Score flavours whose float64 sums depend on the order of summation."""

Kept = list[list[list[list[int]]]]
"""Kept token indices by layer, row and head."""


def quick(examples: int) -> settings:
    """The same examples in every run; no deadline, since the machine may be shared."""
    return settings(
        max_examples=examples, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
    )


# --- Prompts and scores ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompt:
    """One call of `allocate`. Without `repr`s of long tensors, a falsifying example stays readable."""

    rows: list[list[int]]
    flavour: str
    seed: int
    heads: int
    layers: int
    method: MadaKV

    @property
    def modality(self) -> Tensor:
        """[B, N], shorter rows padded on the side that the seed's parity names."""
        width = max(map(len, self.rows))
        gaps = [[-1] * (width - len(row)) for row in self.rows]
        pairs = zip(gaps, self.rows, strict=True)
        return torch.tensor([gap + row if self.seed % 2 else row + gap for gap, row in pairs])

    @property
    def psi(self) -> list[Tensor]:
        B, N = self.modality.shape
        return [scores(self.flavour, 1000 * self.seed + layer, (B, self.heads, N)) for layer in range(self.layers)]

    @property
    def tokens(self) -> list[int]:
        """N of each row, padding aside."""
        return [sum(kind >= 0 for kind in row) for row in self.rows]

    @property
    def averages(self) -> list[int]:
        """Entries per head and layer that the budget allows each row."""
        budget = self.method.budget
        return [min(budget, N) if isinstance(budget, int) else round(budget * N) for N in self.tokens]

    def kept(self) -> Kept:
        return as_lists(allocate(self.psi, self.modality, self.method))

    def totals(self, row: int) -> list[int]:
        """Entries that each layer keeps of a row, over its heads."""
        return [sum(map(len, layer[row])) for layer in self.kept()]


def scores(flavour: str, seed: int, shape: tuple[int, int, int]) -> Tensor:
    """[B, H, N] fp32 scores of one kind."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(shape, generator=generator)
    match flavour:
        case "attention":
            return (torch.randn(shape, generator=generator) * 3).softmax(-1)
        case "uniform":
            return uniform
        case "coarse":
            return (uniform * 4).floor() / 4
        case "sparse":
            return torch.where(uniform > 0.8, uniform, 0.0)
        case "equal":
            return torch.full(shape, 0.1)
        case "zero":
            return torch.zeros(shape)
        case "tiny":
            return (uniform * 5).floor() * 2.0**-149
        case "huge":
            return uniform * 3e38
        case "mixed":
            return 10 ** (uniform * 60 - 30)
    raise AssertionError(flavour)


def as_lists(plans: list[KeepPlan]) -> Kept:
    return [[[indices.tolist() for indices in row] for row in plan.indices] for plan in plans]


FLAVOURS = ("attention", "uniform", "coarse", "sparse", "equal", "zero", "tiny", *NOISY)


@st.composite
def rows(draw: st.DrawFn, *, padding: bool = True) -> list[int]:
    """Modality ids of one row, in spans as prompts have them, or token by token; 1 to 60 tokens."""
    kinds = draw(st.lists(st.sampled_from([0, 1, 2, 3]), min_size=1, max_size=4, unique=True))
    if padding and draw(st.booleans()):
        kinds = [*kinds, -1]
    kind = st.sampled_from(kinds)
    if draw(st.booleans()):
        row = draw(st.lists(kind, min_size=1, max_size=12))
    else:
        spans = draw(st.lists(st.tuples(kind, st.integers(1, 20)), min_size=1, max_size=6))
        row = [kind for kind, length in spans for _ in range(length)][:60]
    assume(any(kind >= 0 for kind in row))
    return row


@st.composite
def methods(draw: st.DrawFn, **fixed: Any) -> MadaKV:
    options: dict[str, st.SearchStrategy[Any]] = {
        "budget": st.one_of(st.floats(0.01, 1.0), st.integers(1, 70), st.sampled_from([0.05, 0.2, 0.5, 1.0])),
        "compensation": st.sampled_from(COMPENSATIONS),
        "theta": st.one_of(st.sampled_from([0.9, 0.5, 1.0]), st.floats(0.01, 1.0)),
        "proxies": st.one_of(st.just("question"), st.integers(1, 70)),
        "max_proxies": st.integers(1, 40),
        "text_pooling": st.sampled_from([5, 1, 3, 7, 61]),
    }
    return MadaKV(**{name: fixed.get(name, None) or draw(option) for name, option in options.items()})


@st.composite
def prompts(draw: st.DrawFn, *, flavours: tuple[str, ...] = FLAVOURS, padding: bool = True, **fixed: Any) -> Prompt:
    return Prompt(
        rows=draw(st.lists(rows(padding=padding), min_size=1, max_size=3)),
        flavour=draw(st.sampled_from(flavours)),
        seed=draw(st.integers(0, 99)),
        heads=draw(st.integers(1, 4)),
        layers=draw(st.integers(1, 5)),
        method=draw(methods(**fixed)),
    )


# --- The reference -----------------------------------------------------------------------------------------


@quick(300)
@given(prompts())
def test_decides_what_the_reference_decides(prompt: Prompt) -> None:
    assert prompt.kept() == allocate_reference(prompt.psi, prompt.modality, prompt.method)
