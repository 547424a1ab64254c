"""Eviction as it should come out: nothing is removed, but what was evicted is hidden, head by head.

Slow and wasteful, and so plain that it can be trusted: transformers' own cache with every entry in it, and a softmax
over full rows in which the evicted entries are set to -inf.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from madakv import Kept

NAME = "hidden_entries"


@contextmanager
def hidden_entries(model: Any, kept: Kept) -> Iterator[None]:
    """After the prompt, hide from each head of `model` what the eviction of that prompt did not keep."""
    N = kept.modality.shape[1]
    visible = {layer: _visible(plan.indices, N) for layer, plan in zip(kept.layers, kept.plans, strict=True)}

    def attention(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **_unused: Any,
    ) -> tuple[Tensor, None]:
        (B, Hq, n, _), (_, H, T, _) = query.shape, key.shape
        logits = query @ key.repeat_interleave(Hq // H, 1).transpose(-1, -2) * scaling
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        mask = torch.ones(n, T, dtype=torch.bool).tril(T - n) if attention_mask is None else attention_mask
        if n < N and module.layer_idx in visible:
            later = torch.ones(B, H, T - N, dtype=torch.bool)
            shown = torch.cat([visible[module.layer_idx], later], -1).repeat_interleave(Hq // H, 1)
            mask = mask & shown[:, :, None]
        logits = logits.masked_fill(~mask, float("-inf"))
        if s_aux is not None:
            logits = torch.cat([logits, s_aux.view(1, -1, 1, 1).expand(B, -1, n, 1)], -1)
        # Only padding sees nothing at all, and nothing sees padding.
        weight = logits.softmax(-1)[..., :T].nan_to_num(0.0)
        return (weight @ value.repeat_interleave(Hq // H, 1)).transpose(1, 2).contiguous(), None

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    decoder = model.get_decoder()
    before = decoder.config._attn_implementation
    decoder.config._attn_implementation_internal = NAME
    try:
        yield
    finally:
        decoder.config._attn_implementation_internal = before


def _visible(indices: tuple[tuple[Tensor, ...], ...], N: int) -> Tensor:
    """[B, H, N] bool: what each head of one layer kept."""
    shown = torch.zeros(len(indices), len(indices[0]), N, dtype=torch.bool)
    for b, row in enumerate(indices):
        for h, positions in enumerate(row):
            shown[b, h, positions] = True
    return shown
