"""One pool for all heads of all layers: whoever they belong to, the best entries stay."""

from __future__ import annotations

import torch
from torch import Tensor

from madakv.plan import KeepPlan


class SharedPool:
    """The best entries of the layers read so far, as many as the account allows.

    Layers come one after another. Each has entries that it is sure of; the others compete with those of all layers.
    Room is left for what later layers are sure of. What loses its place would not get it back if all layers were
    known, for there can only be more that is better: when the last layer has come, the pool is the best choice over
    all layers at once.

    To let go costs a copy of what a layer keeps. So entries that have lost their place stay in its plan until the
    account has no room for them, and the layers that lost most are narrowed first. After the last layer nothing is
    left that lost its place.

    Args:
        total: [B] int64, entries of all layers and heads together.
        sure: [B] int64, entries that every layer is sure of, over all its heads.
        layers: L.

    Attributes:
        plans: of the layers so far; a layer whose plan is another object than before has been narrowed.
    """

    def __init__(self, total: Tensor, sure: Tensor, layers: int) -> None:
        self._total: list[int] = total.tolist()
        self._sure: list[int] = sure.tolist()
        self._later = layers
        self._scores: list[Tensor] = []
        self.plans: list[KeepPlan] = []

    def add(self, score: Tensor, candidates: Tensor, sure: Tensor) -> None:
        """Read one more layer.

        Args:
            score: [B, H, N] float, in units that all layers share; of equal ones the earlier layer's, head's and
                token's is the better.
            candidates: [B, H, N] bool, what may be kept.
            sure: [B, H, N] bool, candidates that stay whatever their score, as many per row as was announced.
        """
        self._later -= 1
        wide = torch.promote_types(score.dtype, torch.float32)
        self._scores.append(score.to(wide).masked_fill(sure, float("inf"))[candidates])
        self.plans.append(KeepPlan.from_mask(candidates))
        stays = self._stays().split([len(scores) for scores in self._scores])
        kept: list[int] = torch.stack([piece.sum() for piece in stays]).tolist()
        lost = [len(piece) - count for piece, count in zip(stays, kept, strict=True)]
        newest = len(self.plans) - 1
        # The newest layer has not been stored yet, and costs no copy.
        self._narrow(newest, stays[newest])
        beyond = sum(len(scores) for scores in self._scores) - sum(self._total)
        for layer in sorted(range(newest), key=lost.__getitem__, reverse=True):
            if lost[layer] and beyond > 0:
                self._narrow(layer, stays[layer])
                beyond -= lost[layer]

    def _narrow(self, layer: int, stays: Tensor) -> None:
        self._scores[layer] = self._scores[layer][stays]
        self.plans[layer] = self.plans[layer].subset(stays)

    def _stays(self) -> Tensor:
        """[T] bool, which entries of all plans, one behind another, have a place."""
        score = torch.cat(self._scores)
        stays = torch.ones_like(score, dtype=torch.bool)
        rows = len(self._total)
        row = torch.cat([plan.rows() for plan in self.plans]) if rows > 1 else None
        for b, (total, sure) in enumerate(zip(self._total, self._sure, strict=True)):
            count = total - sure * self._later
            own = stays if row is None else row == b
            best = _best(score[own], count)
            stays = best if row is None else stays.masked_scatter(own, best)
        return stays


def _best(score: Tensor, count: int) -> Tensor:
    """Mark the `count` best of [T] scores; ties to the earlier."""
    beyond = len(score) - count
    if beyond <= 0:
        return torch.ones_like(score, dtype=torch.bool)
    if count <= 0:
        return torch.zeros_like(score, dtype=torch.bool)
    # The least that stays; not by kthvalue, which has no deterministic form on a GPU.
    if beyond < count:
        least = score.topk(beyond + 1, largest=False, sorted=False).values.amax()
    else:
        least = score.topk(count, sorted=False).values.amin()
    above, level = score > least, score == least
    return above | (level & (level.cumsum(0) <= count - above.sum()))
