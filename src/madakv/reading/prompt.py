"""The prompt that is being read."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from madakv.modality import Modality


@dataclass(frozen=True, eq=False)
class Prompt:
    """What of a pass's tokens is the prompt itself; what is read behind it, and not kept, is a `Probe`.

    Attributes:
        modality: [B, N] int64 of `Modality` values, -1 at padding.
    """

    modality: Tensor

    @property
    def length(self) -> int:
        """N, padding included."""
        return self.modality.shape[1]

    @property
    def valid(self) -> Tensor:
        """[B, N] bool: what is more than padding."""
        return self.modality != Modality.PADDING

    def select_rows(self, rows: Tensor) -> Prompt:
        """The given rows, in that order and repeated as asked, [B'] int64."""
        return replace(self, modality=self.modality[rows.to(self.modality.device)])
