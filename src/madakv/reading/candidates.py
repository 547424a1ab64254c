"""What competes when a memory is decided over once more: tokens and scores, every head with its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from madakv.plan import KeepPlan


@dataclass(frozen=True, eq=False)
class Candidates:
    """The T entries of one layer that can stay.

    A first reading is the dense case: every head has every token of the prompt. Later, tokens that a head has let go
    of score nothing there, and cannot come back.

    Attributes:
        plan: which tokens they are.
        psi: [T] fp32, what was heard of them.
        worth: [T] fp32, what that is multiplied by; None: nothing.
    """

    plan: KeepPlan
    psi: Tensor
    worth: Tensor | None

    @classmethod
    def chosen(cls, plan: KeepPlan, psi: Tensor, worth: Tensor | None) -> Candidates:
        """Those that a plan keeps, of [B, H, N] scores."""
        head, H = plan.owners(), psi.shape[1]
        where = (head // H, head % H, plan.positions)
        return cls(plan, psi[where], None if worth is None else worth[where])

    def heard(self, psi: Tensor) -> Candidates:
        """With what was heard since, [T]."""
        return Candidates(self.plan, self.psi + psi, self.worth)

    def followed_by(self, later: Candidates, span: int) -> Candidates:
        """With candidates that came behind the first `span` tokens."""
        plan, order = self.plan.followed_by(later.plan, span)
        worth = None
        if self.worth is not None and later.worth is not None:
            worth = torch.cat([self.worth, later.worth])[order]
        return Candidates(plan, torch.cat([self.psi, later.psi])[order], worth)

    def subset(self, plan: KeepPlan) -> Candidates:
        """Those of them that a plan keeps."""
        where = self.plan.find(plan)
        return Candidates(plan, self.psi[where], None if self.worth is None else self.worth[where])

    def dense(self, tokens: int) -> Tensor:
        """[B, H, tokens] fp32: psi times worth, zero where nothing competes."""
        B, H = self.plan.counts.shape
        head = self.plan.owners()
        dense = self.psi.new_zeros(B, H, tokens)
        dense[head // H, head % H, self.plan.positions] = self.psi if self.worth is None else self.psi * self.worth
        return dense
