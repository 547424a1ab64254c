"""Numbers that the host knows and a device reads."""

from __future__ import annotations

import torch
from torch import Tensor


def on(device: torch.device, numbers: Tensor) -> Tensor:
    """The host's numbers on a device; on a GPU nobody waits for the copy, and they may be dropped at once."""
    if device.type == "cuda":
        numbers = numbers.pin_memory()
    return numbers.to(device, non_blocking=True)
