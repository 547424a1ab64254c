"""Into how many pieces a step's reading is cut."""

from __future__ import annotations

import torch

_PER_PROCESSOR = 4
"""More than the three of the Triton kernel that a multiprocessor of an H200 holds at a time, so that one that is done
early takes on another; for kernels of others nobody has measured how many are best."""


def programs_of(device: torch.device) -> int:
    """Pieces that keep a device busy; 1 where they run one after another."""
    if device.type != "cuda":
        return 1
    return _PER_PROCESSOR * int(torch.cuda.get_device_properties(device).multi_processor_count)
