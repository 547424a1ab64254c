"""A store of entries in eight bits, as AGENTS.md says to write one: this file, and nothing else."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from madakv.cache import Entries
from madakv.plan import KeepPlan


class Int8Entries(Entries):
    """Every key and value in int8 with a scale of its own; attention gets them back in the model's dtype."""

    def __init__(self, states: list[tuple[Tensor, Tensor]], counts: Tensor, dtype: torch.dtype) -> None:
        super().__init__(counts)
        self._states = states
        self._dtype = dtype

    @classmethod
    def pack(cls, keys: Tensor, values: Tensor, counts: Tensor) -> Self:
        return cls([_quantized(keys), _quantized(values)], counts, keys.dtype)

    @property
    def keys(self) -> Tensor:
        codes, scale = self._states[0]
        return codes.to(self._dtype) * scale

    @property
    def values(self) -> Tensor:
        codes, scale = self._states[1]
        return codes.to(self._dtype) * scale

    def narrow(self, own: KeepPlan, plan: KeepPlan) -> None:
        source = own.find(plan)
        for number, (codes, scale) in enumerate(self._states):
            self._states[number] = (codes[source], scale[source])
        self._recount(plan.counts)

    def to(self, device: torch.device | str) -> Self:
        moved = [(codes.to(device), scale.to(device)) for codes, scale in self._states]
        return type(self)(moved, self.counts.to(device), self._dtype)

    @property
    def nbytes(self) -> int:
        return sum(x.untyped_storage().nbytes() for state in self._states for x in state)


def _quantized(states: Tensor) -> tuple[Tensor, Tensor]:
    scale = states.abs().amax(-1, keepdim=True).clamp_min(1e-8) / 127
    return (states / scale).round().to(torch.int8), scale
