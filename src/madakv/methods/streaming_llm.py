"""StreamingLLM (ICLR 2024, arXiv 2309.17453): attention sinks and a recent window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from madakv.budget.ranked import RankedPlans
from madakv.methods.base import Allocator, Method, no_scores
from madakv.methods.options import check_number
from madakv.modality import Modality
from madakv.plan import KeepPlan
from madakv.scoring import LayerView


@dataclass(frozen=True, kw_only=True)
class StreamingLLM(Method):
    """Every head keeps the first few tokens and the last ones (section 3.2).

    Ours differs in that kept keys stay rotated by their positions in the prompt, where the paper renumbers
    positions within the cache: prompts here fit the model's context.

    Attributes:
        n_sink: how many first tokens (paper: 4), at most half of a head's share.
    """

    name: ClassVar[str] = "streaming_llm"
    renamed: ClassVar[Mapping[str, str]] = {"sinks": "n_sink"}
    n_sink: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("n_sink", self.n_sink)

    def idle(self) -> dict[str, str]:
        """A draft, whose attention nobody compares."""
        return super().idle() | {"draft": "positions alone deciding"}

    def score(self, view: LayerView) -> Tensor:
        """Zeros: positions alone decide."""
        return no_scores(view)

    def allocator(self, modality: Tensor, *, heads: int, layers: int) -> Allocator:
        """Even shares, ranked by position."""
        return _Positional(RankedPlans(modality, heads=heads, layers=layers, budget=self.budget), self.n_sink)


class _Positional(Allocator):
    def __init__(self, plans: RankedPlans, n_sink: int) -> None:
        self._plans = plans
        valid = plans.modality != Modality.PADDING
        place = valid.cumsum(-1) - 1
        first = place < torch.clamp(plans.average // 2, max=n_sink)[:, None]
        self._rank = torch.where(first, place.shape[-1], place)

    def decide(self, psi: Tensor) -> KeepPlan:
        return self._plans.keep(self._rank[:, None].expand_as(psi))
