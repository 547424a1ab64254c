"""TGV-KV (ICML 2026, arXiv 2606.03075): text guides what stays of pictures, and how much of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from madakv.budget.ranked import RankedPlans
from madakv.errors import InputError
from madakv.methods.base import Allocator
from madakv.methods.grouped import GroupedMethod
from madakv.methods.options import check_number
from madakv.modality import Modality
from madakv.plan import KeepPlan
from madakv.scoring import LayerView, attention_paid


@dataclass(frozen=True, kw_only=True)
class TGVKV(GroupedMethod):
    """Layers whose text looks at pictures keep more; text stays first, then what the weightier text looks at.

    All three parts go by attention that is averaged over heads, so that all heads of a layer keep the same tokens:

    - text-vision budgeting: a layer's share is in proportion to what text pays to pictures in it;
    - text-weighted ranking: a token of a picture scores the attention of text to it, each text token weighted by the
      mean attention that it gets from text at or behind it;
    - text-prioritised retention: text outranks pictures, and among itself goes by the attention of all queries.

    This follows the authors' code (Danielement321/TGV-KV, which the abstract leaves open), for its prefill: the first
    tokens and the last one are protected there, too. Ours differs in that several pictures may lie among text, whose
    text behind the first picture then guides (there, all pictures are one block, and text behind it guides); that
    layers' shares sum to the account, where the code does not hand on what a layer cannot hold; in protecting at most
    a quarter of an average share of first tokens; and in not evicting again while it answers. Where no text follows a
    picture, the attention of all queries ranks pictures as well, and layers share evenly. All layers must be read
    before the first can be evicted, so that the prefill takes the full cache's memory.

    Attributes:
        n_sink: how many first tokens are always kept (code: 4), at most a quarter of an average share.
    """

    name: ClassVar[str] = "tgv_kv"
    sees_all_layers: ClassVar[bool] = True
    n_sink: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("n_sink", self.n_sink)

    def heard(self, modality: Tensor) -> Tensor:
        """All queries."""
        return modality != Modality.PADDING

    def weigh(self, attention: Tensor, view: LayerView) -> Tensor:
        """The attention of all queries for text, of weighted text for the rest; the same for all heads."""
        guides = _guides(view.modality)
        at_or_behind = guides.flip(-1).cumsum(-1).flip(-1).clamp_min(1)
        weight = _over_all_heads(view, guides) / at_or_behind * guides
        looked_up = _over_all_heads(view, weight)
        guided = (view.modality > Modality.TEXT) & guides.any(-1, keepdim=True)
        return torch.where(guided, looked_up, attention.mean(1))[:, None].expand_as(attention)

    def allocator(self, modality: Tensor, *, heads: int, layers: int) -> Allocator:
        """Shares of the layers by what text looks up in pictures, text first."""
        plans = RankedPlans(modality, heads=heads, layers=layers, budget=self.budget)
        plans.protect_ends(self.n_sink)
        return _TextGuided(plans)


class _TextGuided(Allocator):
    def __init__(self, plans: RankedPlans) -> None:
        self._plans = plans
        self._looked_up: list[Tensor] = []

    def observe(self, view: LayerView) -> None:
        paid = _over_all_heads(view, _guides(view.modality))
        seen = torch.where(view.modality > Modality.TEXT, paid, 0.0).sum(-1)
        self._looked_up.append(seen.to(self._plans.modality.device))

    def foresee(self, psi: Sequence[Tensor]) -> None:
        if len(self._looked_up) != len(psi):
            raise InputError("tgv_kv shares the budget by the layers' attention, which scores alone do not tell")
        self._plans.share_layers(torch.stack(self._looked_up, dim=1))

    def decide(self, psi: Tensor) -> KeepPlan:
        rank = psi.to(torch.float64).mean(1, keepdim=True)
        text = (self._plans.modality == Modality.TEXT)[:, None]
        # More than any of the others has, whatever probes added.
        return self._plans.keep((rank + text * (1 + rank.amax(-1, keepdim=True))).expand_as(psi))


def _guides(modality: Tensor) -> Tensor:
    """[B, N] bool: text behind the first token of another kind."""
    return (modality == Modality.TEXT) & ((modality > Modality.TEXT).cumsum(-1) > 0)


def _over_all_heads(view: LayerView, queries: Tensor) -> Tensor:
    """[B, N]: what they pay to each token, the mean over all query heads; [B, N] bool or weights."""
    return attention_paid(view, queries).flatten(1, 2).mean(1)
