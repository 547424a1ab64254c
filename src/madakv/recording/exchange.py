"""What was said: the inputs of one `generate` call and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Exchange:
    """One `generate` call.

    Attributes:
        input_ids: [B, N] int64, placeholders expanded.
        sequences: [B, N + n] int64, the prompt and what was generated.
        inputs: whatever else the call was given that a model reads, by name: pixels, grids, sizes. Tensors are the
            caller's own, not copies.
    """

    input_ids: Tensor
    sequences: Tensor
    inputs: Mapping[str, Tensor]
