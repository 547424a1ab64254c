"""Which prompt entries were kept, and what they weigh."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from madakv.modality import KINDS, Modality
from madakv.plan import KeepPlan


@dataclass(frozen=True, eq=False)
class Kept:
    """What one prompt's eviction kept. All tensors are on the CPU.

    Attributes:
        method: the method's repr.
        layers: indices of the evicted layers in the model; those left as they are are not among them.
        plans: the keep-plan of each evicted layer.
        modality: [B, N] of `Modality` values.
        kv_bytes: bytes of live storage of the evicted layers right after the prefill.
        kv_bytes_full: bytes that these layers would store in a full cache, padding of shorter rows included, as
            transformers stores it.
        other_bytes: bytes of the layers that are left as they are (sliding windows, linear attention), in either
            case.
        later_tokens: tokens behind the prompt that were read several in one pass, such as a next turn, and are kept
            whole.
    """

    method: str
    layers: tuple[int, ...]
    plans: tuple[KeepPlan, ...]
    modality: Tensor
    kv_bytes: int
    kv_bytes_full: int
    other_bytes: int
    later_tokens: int = 0

    @cached_property
    def counts(self) -> Tensor:
        """[L, B, H, 4] int64: kept entries per layer, row, head and modality (text, image, video, audio)."""
        return torch.stack([plan.kept_per_modality(self.modality) for plan in self.plans])

    @cached_property
    def prompt_tokens(self) -> dict[str, int]:
        """Prompt tokens of each modality that occurs, padding aside, over all rows."""
        return {
            kind.name.lower(): count
            for kind in KINDS
            if (count := int((self.modality == kind).sum())) or kind == Modality.TEXT
        }

    @cached_property
    def kept(self) -> dict[str, float]:
        """Kept entries of each modality that occurs, averaged over layers and heads: the unit of `prompt_tokens`."""
        L, _, H, _ = self.counts.shape
        per_kind = self.counts.sum((0, 1, 2)).to(torch.float64) / (L * H)
        return {name: float(per_kind[Modality[name.upper()]]) for name in self.prompt_tokens}

    @property
    def kept_share(self) -> float:
        """Kept entries over prompt entries, of all evicted layers and heads."""
        return sum(self.kept.values()) / max(1, sum(self.prompt_tokens.values()))

    def __str__(self) -> str:
        parts = ", ".join(f"{self.kept[name]:.1f} of {n} {name}" for name, n in self.prompt_tokens.items())
        rows = len(self.modality)
        over = "per head" if rows == 1 else f"per head, {rows} rows together"
        return (
            f"{self.method}: kept {self.kept_share:.1%} ({parts} {over}), "
            f"{self.kv_bytes:,} of {self.kv_bytes_full:,} bytes"
            + (f"; {self.later_tokens:,} later tokens kept whole" if self.later_tokens else "")
        )
