"""An engine that is not transformers, as AGENTS.md says to write one: this file, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from madakv.attention import attend
from madakv.cache import LayerMemory
from madakv.methods import Method
from madakv.plan import KeepPlan
from madakv.reading import Prompt, Reading
from madakv.scoring import LayerView

States = tuple[Tensor, Tensor, Tensor]
"""Queries [B, Hq, n, D], keys and values [B, H, n, D] of one layer."""


class PlainEngine:
    """Attention alone: whoever owns the weights calls `read` once and `step` for every token and layer."""

    def __init__(self, layers: int, scaling: float) -> None:
        self.memories = [LayerMemory() for _ in range(layers)]
        self.scaling = scaling

    def read(self, method: Method, modality: Tensor, states: Sequence[States]) -> list[KeepPlan]:
        """Evict a prompt, layer by layer."""
        reading = Reading(method, Prompt(modality), self.memories)
        for query, key, value in states:
            reading.layer(LayerView(query=query, key=key, value=value, modality=modality, scaling=self.scaling))
        return reading.decide() if reading.is_due else []

    def step(self, number: int, state: States) -> Tensor:
        """Attention of new tokens in one layer, [B, Hq, n, D]."""
        query, key, value = state
        self.memories[number].append(key, value)
        return attend(query, self.memories[number], scaling=self.scaling)
