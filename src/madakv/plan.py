"""The keep-plan: which prompt entries of one layer stay, decided before any tensor is moved."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from madakv.modality import KINDS, Modality


@dataclass(frozen=True, eq=False)
class KeepPlan:
    """The prompt entries that one layer keeps, per batch row and KV head.

    Attributes:
        positions: [sum(counts)] int64, the kept token indices into the (padded) prompt, sorted within each
            head, heads in row-major [B, H] order.
        counts: [B, H] int64, kept entries per row and head.
    """

    positions: Tensor
    counts: Tensor

    @classmethod
    def from_mask(cls, keep: Tensor) -> KeepPlan:
        """The plan that keeps the true entries of a [B, H, N] bool tensor."""
        # Cloned, since a view would keep the rows and heads of every position in memory as well.
        return cls(positions=keep.nonzero()[:, 2].clone(), counts=keep.sum(-1))

    @classmethod
    def everything(cls, modality: Tensor, heads: int) -> KeepPlan:
        """The plan that drops padding alone, from [B, N] `Modality` values."""
        return cls.from_mask((modality != Modality.PADDING)[:, None].expand(-1, heads, -1))

    @cached_property
    def indices(self) -> tuple[tuple[Tensor, ...], ...]:
        """`indices[b][h]`: sorted int64 token indices kept by head h of row b."""
        B, H = self.counts.shape
        pieces = self.positions.split(self.counts.flatten().tolist())
        return tuple(tuple(pieces[b * H : (b + 1) * H]) for b in range(B))

    def kept_per_modality(self, modality: Tensor) -> Tensor:
        """Count what is kept of each modality.

        Args:
            modality: [B, N] of `Modality` values, as the plan was made with.

        Returns:
            [B, H, 4] int64, indexed by text, image, video, audio.
        """
        B, H = self.counts.shape
        head = torch.arange(B * H, device=self.counts.device).repeat_interleave(self.counts.flatten())
        kinds = len(KINDS)
        kind = modality[head // H, self.positions]
        return torch.bincount(head * kinds + kind, minlength=B * H * kinds).view(B, H, kinds)

    def to(self, device: torch.device | str) -> KeepPlan:
        """The same plan with its tensors on another device."""
        return KeepPlan(positions=self.positions.to(device), counts=self.counts.to(device))
