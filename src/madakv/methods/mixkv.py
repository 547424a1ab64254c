"""MixKV (ICLR 2026, arXiv 2510.20707): importance mixed with diversity, head by head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from madakv.methods.snapkv import SnapKV
from madakv.modality import Modality
from madakv.scoring import LayerView
from madakv.scoring.pooling import Pooling
from madakv.scoring.values import value_norms


@dataclass(frozen=True, kw_only=True)
class MixKV(SnapKV):
    """SnapKV, whose scores are joined by the norms of values and by how unlike the others a key is.

    With k the unit keys of a head and m their mean, a token's diversity is -k . m, and the head's redundancy r is
    the mean cosine similarity of two keys. The score is (1 - r) * (attention + value norm) + r * diversity, where
    norm and diversity are scaled to 0..1 and then to the mean of the attention.

    Ours differs in computing r from the prompt, as the paper has it, where the authors' code reads a table made
    offline; r is clamped to 0..1. Pooling happens before mixing.
    """

    name: ClassVar[str] = "mixkv"
    kernel_size: int = 5
    pooling: Pooling = "mean"

    def weigh(self, attention: Tensor, view: LayerView) -> Tensor:
        """The mix, window tokens excepted, which keep their attention."""
        valid = view.modality != Modality.PADDING
        candidates = (valid & ~self.heard(view.modality))[:, None]
        attention = super().rank(attention, view.modality)
        key = normalize(view.key.float(), dim=-1) * valid[:, None, :, None]
        tokens = valid.sum(-1).clamp_min(1)[:, None]
        mean = key.sum(2) / tokens[..., None]
        pairs = (tokens * (tokens - 1)).clamp_min(1)
        redundancy = ((tokens**2 * (mean**2).sum(-1) - tokens) / pairs).clamp(0, 1)[..., None]
        diversity = -(key @ mean[..., None])[..., 0]
        norm = value_norms(view.value)
        typical = _mean(attention, candidates)
        importance = attention + _scaled(norm, candidates, typical)
        mixed = (1 - redundancy) * importance + redundancy * _scaled(diversity, candidates, typical)
        return torch.where(candidates, mixed, attention)

    def rank(self, psi: Tensor, modality: Tensor) -> Tensor:  # noqa: ARG002
        """The scores as they are: attention was pooled before it was mixed."""
        return psi


def _mean(x: Tensor, candidates: Tensor) -> Tensor:
    count = candidates.sum(-1, keepdim=True).clamp_min(1)
    return torch.where(candidates, x, 0.0).sum(-1, keepdim=True) / count


def _scaled(x: Tensor, candidates: Tensor, mean: Tensor) -> Tensor:
    """x [B, H, N] brought to 0..1 over the candidates of each head, then to the given mean."""
    low = x.masked_fill(~candidates, float("inf")).amin(-1, keepdim=True)
    high = x.masked_fill(~candidates, float("-inf")).amax(-1, keepdim=True)
    unit = torch.where(candidates, (x - low) / (high - low + 1e-8), 0.0)
    return unit * mean / (_mean(unit, candidates) + 1e-8)
