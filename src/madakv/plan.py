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
        return cls.of_tokens(modality != Modality.PADDING, heads)

    @classmethod
    def of_tokens(cls, tokens: Tensor, heads: int) -> KeepPlan:
        """The plan by which every head keeps the same tokens, those that are true in [B, N] bool."""
        return cls.from_mask(tokens[:, None].expand(-1, heads, -1))

    def owners(self) -> Tensor:
        """[sum(counts)] int64: the flat (row, head) index that each kept entry belongs to."""
        flat = self.counts.flatten()
        heads = torch.arange(len(flat), device=flat.device)
        return heads.repeat_interleave(flat, output_size=len(self.positions))

    def rows(self) -> Tensor:
        """[sum(counts)] int64: the batch row of each kept entry."""
        return self.owners() // self.counts.shape[1]

    def subset(self, stays: Tensor) -> KeepPlan:
        """The plan that keeps those of its entries that are true in a [sum(counts)] bool tensor."""
        left = torch.bincount(self.owners()[stays], minlength=self.counts.numel())
        return KeepPlan(positions=self.positions[stays], counts=left.view_as(self.counts))

    def followed_by(self, later: KeepPlan, span: int) -> tuple[KeepPlan, Tensor]:
        """This plan and one of tokens that came later, as one.

        Args:
            later: as many rows and heads.
            span: where the later plan's token 0 stands among all.

        Returns:
            The plan; and [sum(counts)] int64, where each of its entries stands if this plan's lie before the other's.
        """
        order = torch.cat([self.owners(), later.owners()]).argsort(stable=True)
        positions = torch.cat([self.positions, later.positions + span])
        return KeepPlan(positions=positions[order], counts=self.counts + later.counts), order

    def within(self, candidates: KeepPlan) -> KeepPlan:
        """Those of its entries that another plan keeps as well."""
        if not len(candidates.positions):
            return candidates
        width = max(int(one.positions.max()) + 1 for one in (self, candidates) if len(one.positions))
        mine, other = (one.owners() * width + one.positions for one in (self, candidates))
        return self.subset(torch.isin(mine, other, assume_unique=True))

    def find(self, plan: KeepPlan) -> Tensor:
        """Where the entries of another plan, all of which this one keeps, stand among its own: int64."""
        if not len(plan.positions):
            return plan.positions
        width = self.positions.max() + 1
        mine, other = (one.owners() * width + one.positions for one in (self, plan))
        return torch.searchsorted(mine, other)

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
        head = self.owners()
        kinds = len(KINDS)
        kind = modality[head // H, self.positions]
        return torch.bincount(head * kinds + kind, minlength=B * H * kinds).view(B, H, kinds)

    def to(self, device: torch.device | str) -> KeepPlan:
        """The same plan with its tensors on another device."""
        return KeepPlan(positions=self.positions.to(device), counts=self.counts.to(device))
