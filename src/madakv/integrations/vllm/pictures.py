"""Visual tokens that are read once more: what the towers say of them, anew where it is no longer at hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.multimodal.utils import group_and_batch_mm_kwargs

from madakv.integrations.vllm.devices import on
from madakv.integrations.vllm.requests import visual_places


def embedded_pictures(runner: Any, state: Any, ids: Tensor, places: Tensor) -> Tensor | None:
    """[n, D] input embeddings of tokens of a prompt; None if all of them are text.

    Args:
        runner: vLLM's.
        state: of the request.
        ids: [n] of the tokens.
        places: [n] int64 on the host, where they are, in order.
    """
    seen = torch.zeros(len(places), dtype=torch.bool)
    parts = []
    for feature in state.mm_features:
        own = visual_places(feature)
        wanted = torch.isin(own, places)
        if bool(wanted.any()):
            seen |= torch.isin(places, own)
            parts.append(_encoded(runner, feature)[wanted])
    if not parts:
        return None
    embedded: Tensor = runner.model.embed_input_ids(
        ids, multimodal_embeddings=parts, is_multimodal=on(runner.device, seen)
    )
    return embedded


def _encoded(runner: Any, feature: Any) -> Tensor:
    """[tokens, D] of a picture."""
    known: Tensor | None = runner.encoder_cache.get(feature.identifier)
    if known is not None:
        return known
    ((_, _, batch),) = group_and_batch_mm_kwargs([(feature.modality, feature.data)], device=runner.device)
    (made,) = runner.model.embed_multimodal(**batch)
    encoded: Tensor = made
    return encoded
