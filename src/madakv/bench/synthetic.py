"""What the layers would see of a long prompt, where reading it with the model would take too long."""

from __future__ import annotations

import torch

from madakv.bench.prompt import Prompt
from madakv.bench.roofline import Cost
from madakv.bench.shapes import peaks
from madakv.errors import ConfigurationError
from madakv.scoring import LayerView, OutputProjection


def synthetic_views(cost: Cost, prompt: Prompt, *, dtype: torch.dtype, device: torch.device) -> list[LayerView]:
    """Random queries, keys and values for every layer, from torch's generator.

    Heads lie next to each other in memory, as projections leave them. Logits are normal, from flat heads to sharp
    ones (`madakv.bench.shapes.peaks`), so that methods which let heads compete give them uneven lengths. One random
    matrix stands behind the heads of all layers.

    Args:
        cost: the model's sizes.
        prompt: gives rows and modalities.
        dtype, device: of the views.

    Raises:
        ConfigurationError: the prompt is a real model's.
    """
    if prompt.modality is None:
        raise ConfigurationError("--fill synthetic takes a --shape: a real model reads its own prompt")
    B, N = prompt.modality.shape
    H, D, G = cost.kv_heads, cost.head_dim, cost.query_heads // cost.kv_heads
    width = H * G * D
    projection = OutputProjection(torch.nn.Linear(width, width, bias=False, dtype=dtype, device=device))
    spread = peaks(H).repeat_interleave(G).to(dtype=dtype, device=device)[:, None, None]
    return [
        LayerView(
            query=torch.randn(B, N, H * G, D, dtype=dtype, device=device).transpose(1, 2) * spread,
            key=torch.randn(B, N, H, D, dtype=dtype, device=device).transpose(1, 2),
            value=torch.randn(B, N, H, D, dtype=dtype, device=device).transpose(1, 2),
            modality=prompt.modality,
            scaling=D**-0.5,
            projection=projection,
        )
        for _ in range(cost.layers)
    ]
