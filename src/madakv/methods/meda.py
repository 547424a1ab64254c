"""MEDA (NAACL 2025, arXiv 2502.17599): layer budgets from the entropy of attention between modalities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from madakv.budget.ranked import RankedPlans
from madakv.errors import InputError
from madakv.methods.base import Allocator
from madakv.methods.lookm import LookM, TextFirst
from madakv.modality import Modality
from madakv.scoring import LayerView
from madakv.scoring.entropy import cross_modal_entropy


@dataclass(frozen=True, kw_only=True)
class MEDA(LookM):
    """LOOK-M within layers; a layer's budget grows with the entropy of its attention between text and the rest.

    The entropy is that of softmax attention from every text token to all others' keys, and back (equations 5 and 6);
    layers share the budget in proportion to the exponential of their entropies (equation 7). All layers must be
    read before the first can be evicted, so that the prefill takes the full cache's memory.

    Ours differs from the authors' code, which takes the entropy of all attention, keeps all text, and clips layers'
    shares without handing on what is cut. Ours follows the paper: the shares sum to the account, three quarters of a
    head's go to the newest tokens, and merging is `"mean"`. A prompt of one modality shares evenly.
    """

    name: ClassVar[str] = "meda"
    sees_all_layers: ClassVar[bool] = True
    merging: str = "mean"

    def allocator(self, modality: Tensor, *, heads: int, layers: int) -> Allocator:
        """Shares of the layers by entropy, text first."""
        plans = RankedPlans(
            modality,
            heads=heads,
            layers=layers,
            budget=self.budget,
            protect=modality != Modality.PADDING,
            protected_share=0.75,
        )
        return _ByEntropy(plans)


class _ByEntropy(TextFirst):
    def __init__(self, plans: RankedPlans) -> None:
        super().__init__(plans)
        self._entropies: list[Tensor] = []

    def observe(self, view: LayerView) -> None:
        self._entropies.append(cross_modal_entropy(view).to(self._plans.modality.device))

    def foresee(self, psi: Sequence[Tensor]) -> None:
        if len(self._entropies) != len(psi):
            raise InputError("meda shares the budget by the layers' attention, which scores alone do not tell")
        self._plans.share_layers(torch.stack(self._entropies, dim=1).softmax(-1))
