"""MadaKV as published (ACL 2025, arXiv 2506.15724), and its two halves alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from madakv.methods.madakv import Compensation, MadaKV
from madakv.modality import Modality


@dataclass(frozen=True, kw_only=True)
class MadaKVPaper(MadaKV):
    """MPA and HCC as the paper has them: scores of single tokens, question tokens as proxies."""

    name: ClassVar[str] = "madakv-paper"
    compensation: Compensation = "capped"
    values: bool = False
    safeguard: float = 1.0
    answer_weight: float = 1.0
    context: int = 0
    echo: int | Literal["auto"] = 0


@dataclass(frozen=True, kw_only=True)
class MPA(MadaKVPaper):
    """Modality preference adaptation alone: every layer has the same budget."""

    name: ClassVar[str] = "mpa"
    compensation: Compensation = "none"


@dataclass(frozen=True, kw_only=True)
class HCC(MadaKVPaper):
    """Hierarchical compression compensation alone: heads choose among all tokens, whatever their modality."""

    name: ClassVar[str] = "hcc"

    def kinds(self, modality: Tensor) -> Tensor:
        """All tokens are of one kind."""
        return modality.clamp_max(Modality.TEXT)
