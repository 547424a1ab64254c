"""The full cache, through the same storage and attention as every method: the baseline of every table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from madakv.errors import ConfigurationError
from madakv.methods.base import Allocator, Method, no_scores
from madakv.plan import KeepPlan
from madakv.scoring import LayerView


@dataclass(frozen=True, kw_only=True)
class Full(Method):
    """Keep everything; padding alone is dropped. The budget can only be 1.0."""

    name: ClassVar[str] = "full"
    budget: float | int = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget != 1.0:
            raise ConfigurationError(f"the method 'full' keeps everything; its budget is 1.0, not {self.budget!r}")

    def idle(self) -> dict[str, str]:
        """All that would be heard of an answer."""
        return super().idle() | {"lookahead": "everything kept", "draft": "everything kept"}

    def score(self, view: LayerView) -> Tensor:
        """Zeros: nothing is compared."""
        return no_scores(view)

    def allocator(self, modality: Tensor, *, heads: int, layers: int) -> Allocator:  # noqa: ARG002
        """Plans that hold every token of the prompt."""
        return _KeepAll(modality, heads)


class _KeepAll(Allocator):
    def __init__(self, modality: Tensor, heads: int) -> None:
        self._modality = modality
        self._heads = heads

    def decide(self, psi: Tensor) -> KeepPlan:
        return KeepPlan.everything(self._modality.to(psi.device), self._heads)
