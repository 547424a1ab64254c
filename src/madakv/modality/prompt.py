"""The modality of every token of a prompt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from madakv.errors import InputError
from madakv.modality.families import placeholder_ids
from madakv.modality.kinds import Modality, check_modality


def prompt_modality(
    config: Any,
    input_ids: Tensor | None,
    *,
    attention_mask: Tensor | None = None,
    mm_token_type_ids: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
) -> Tensor:
    """Modality of every prompt token.

    Args:
        config: the model's top-level config.
        input_ids: [B, N] token ids; may be None if `mm_token_type_ids` is given.
        attention_mask: [B, N], 0 at padding; None if there is no padding. A 4D mask is not read.
        mm_token_type_ids: [B, N] from the processor; trusted before the config where present.
        inputs_embeds: [B, N, D], read for its shape alone; without ids of either kind, only a text-only model's
            modality is known.

    Returns:
        [B, N] int64 of `Modality` values.

    Raises:
        UnsupportedModelError: see `placeholder_ids`.
        InputError: neither `input_ids` nor `mm_token_type_ids`, for a multimodal model.
    """
    if mm_token_type_ids is not None:
        modality = mm_token_type_ids.to(torch.int64).clone()
    elif input_ids is not None:
        modality = torch.zeros_like(input_ids, dtype=torch.int64)
        for kind, ids in placeholder_ids(config).items():
            for one in ids:
                modality.masked_fill_(input_ids == one, int(kind))
    elif inputs_embeds is not None and not placeholder_ids(config):
        modality = torch.zeros(inputs_embeds.shape[:2], dtype=torch.int64, device=inputs_embeds.device)
    else:
        raise InputError(
            "the modality of a prompt of embeddings is unknown: pass mm_token_type_ids [B, N] beside inputs_embeds, "
            "0 for text, 1 image, 2 video, 3 audio"
        )
    for name, given in (("input_ids", input_ids), ("inputs_embeds", inputs_embeds)):
        if given is not None and modality.shape != given.shape[:2]:
            raise InputError(f"mm_token_type_ids has shape {tuple(modality.shape)}, but {name} {tuple(given.shape)}")
    check_modality(modality, name="mm_token_type_ids")
    if attention_mask is not None and attention_mask.dim() == 2:
        if attention_mask.shape != modality.shape:
            raise InputError(
                f"attention_mask has shape {tuple(attention_mask.shape)}, but the prompt {tuple(modality.shape)}"
            )
        modality.masked_fill_(attention_mask.to(modality.device) == 0, int(Modality.PADDING))
    return modality
