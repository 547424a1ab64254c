"""AdaKV (NeurIPS 2025, arXiv 2407.11550): SnapKV with the heads of a layer sharing one budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from madakv.methods.options import check_share
from madakv.methods.snapkv import SnapKV


@dataclass(frozen=True, kw_only=True)
class AdaKV(SnapKV):
    """SnapKV's scores; a layer keeps the best of all its heads together (algorithm 1).

    A head's part is the mean of what the layer's best would give it and of an even part, weighted by the safeguard.

    Attributes:
        safeguard: share of its even part that each head is sure of (0.2 with grouped queries in the authors' code).
    """

    name: ClassVar[str] = "adakv"
    safeguard: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("safeguard", self.safeguard)

    @property
    def head_floor(self) -> float:
        """The safeguard."""
        return self.safeguard
