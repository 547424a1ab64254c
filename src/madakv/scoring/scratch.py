"""How much memory scoring takes for itself at a time."""

from __future__ import annotations

import torch


def scratch_elements(device: torch.device) -> int:
    """Elements of fp32 logits, or of keys or values in fp32, that are there at a time; and a few copies of that.

    On a CPU, pieces of more than 4 MiB leave the caches, and their memory is fresh each time, which costs more than
    the arithmetic. A GPU would wait for the launches of pieces that small, and gets 64 MiB.
    """
    return 1 << 20 if device.type == "cpu" else 1 << 24
