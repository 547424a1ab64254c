"""Keep the best of one ranking: what methods do that know no modalities."""

from __future__ import annotations

import torch
from torch import Tensor

from madakv.budget.apportion import apportion
from madakv.budget.entries import per_head, prompt_entries
from madakv.budget.layers import layer_entries
from madakv.budget.top import top
from madakv.modality import Modality
from madakv.plan import KeepPlan
from madakv.scoring.proxies import newest


class RankedPlans:
    """Plans of all layers of one prompt: protected tokens, then the best-ranked others.

    Protected tokens count.

    Args:
        modality: [B, N] of `Modality` values.
        heads: KV heads of every layer.
        layers: layers that are evicted.
        budget: see `Method`.
        protect: [B, N] bool, tokens to keep whatever their rank.
        protected_share: the most of a head's share that protected tokens take, the newest first, unless the floor of
            `share_layers` is more.
    """

    def __init__(
        self,
        modality: Tensor,
        *,
        heads: int,
        layers: int,
        budget: float | int,
        protect: Tensor | None = None,
        protected_share: float = 0.5,
    ) -> None:
        valid = modality != Modality.PADDING
        self.modality = modality
        self.heads = heads
        self.tokens = valid.sum(-1)
        self._protected_share = protected_share
        self.average = prompt_entries(budget, self.tokens)
        self._valid = valid[:, None].expand(-1, heads, -1)
        self.protect(torch.zeros_like(valid) if protect is None else protect)
        self.share_layers(torch.ones(layers))
        self._layer = 0

    def protect(self, tokens: Tensor) -> None:
        """Keep these whatever their rank, [B, N] bool, as far as they fit."""
        self._protect = tokens

    def first(self, count: Tensor) -> Tensor:
        """[B, N] bool: so many first tokens of each row, [B] int64."""
        valid = self.modality != Modality.PADDING
        return valid & (valid.cumsum(-1) <= count[:, None])

    def protect_ends(self, n_sink: int) -> None:
        """Keep the first tokens, a quarter of an average share at most, and the last one, as far as they fit."""
        last = newest(self.modality != Modality.PADDING, 1)
        self.protect(self.first(torch.clamp(self.average // 4, max=n_sink)) | last)

    def share_layers(self, weights: Tensor, floor: Tensor | None = None) -> None:
        """Set the shares of the layers before the first is decided.

        Args:
            weights: [L] or [B, L], of what goes beyond the floor.
            floor: [B] int64, entries per head that every layer gets, half of the average at most.
        """
        least = torch.zeros_like(self.average) if floor is None else torch.minimum(floor, self.average // 2)
        beyond = layer_entries(self.average - least, self.tokens - least, self.heads, weights)
        self._floor = least
        self._entries = beyond + (least * self.heads)[:, None]

    def keep(self, rank: Tensor, *, floor: float = 1.0) -> KeepPlan:
        """The next layer's plan.

        Args:
            rank: [B, H, N] float, higher stays; ties to the earlier token.
            floor: share of its even part that each head is sure of; the rest goes to the best of all heads of the
                layer together. 1 gives all heads equally many (AdaKV, arXiv 2407.11550, algorithm 1).
        """
        total = self._entries[:, self._layer]
        self._layer += 1
        share = per_head(total, self.heads)
        most = torch.maximum((share * self._protected_share).to(torch.int64), self._floor[:, None])
        protected = newest(self._protect[:, None].expand_as(self._valid), most[..., None])
        candidates = self._valid & ~protected
        free = share - protected.sum(-1)
        rank = rank.to(torch.float64)
        if floor < 1:
            free = _adapted(rank, candidates, free, floor)
        return KeepPlan.from_mask(protected | top(rank, candidates, free))


def _adapted(rank: Tensor, candidates: Tensor, free: Tensor, floor: float) -> Tensor:
    """[B, H] int64: how many candidates each head keeps, summing as `free` does."""
    total = free.sum(-1)
    best = top(rank.flatten(1), candidates.flatten(1), total).view_as(candidates).sum(-1)
    wanted = floor * free.to(torch.float64) + (1 - floor) * best.to(torch.float64)
    return apportion(total, wanted, candidates.sum(-1))
