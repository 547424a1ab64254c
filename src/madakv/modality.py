"""Which modality each prompt token has: the map that scores, budgets and reports are split by."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from madakv.errors import InputError, UnsupportedModelError


class Modality(IntEnum):
    """Modality ids, the same numbers as the `mm_token_type_ids` of transformers' processors."""

    PADDING = -1
    TEXT = 0
    IMAGE = 1
    VIDEO = 2
    AUDIO = 3


KINDS = tuple(kind for kind in Modality if kind != Modality.PADDING)
"""The modalities that a token can have, padding aside; their number M is the size of every per-modality axis."""


@dataclass(frozen=True)
class Family:
    """Where a model family's config keeps the token ids that stand for non-text inputs.

    Each field is the name of a config attribute, or None if the family has no such modality.
    """

    image: str | None = None
    video: str | None = None
    audio: str | None = None

    def items(self) -> list[tuple[Modality, str]]:
        """The modalities of this family, each with its config attribute's name."""
        named = ((Modality.IMAGE, self.image), (Modality.VIDEO, self.video), (Modality.AUDIO, self.audio))
        return [(modality, name) for modality, name in named if name is not None]


_IMAGE = Family(image="image_token_id")
_IMAGE_VIDEO = Family(image="image_token_id", video="video_token_id")
_AUDIO = Family(audio="audio_token_id")
_ALL = Family(image="image_token_id", video="video_token_id", audio="audio_token_id")

_FAMILIES: dict[str, Family] = {
    "llava": _IMAGE,
    "llava_next": _IMAGE,
    "llava_next_video": _IMAGE_VIDEO,
    "llava_onevision": _IMAGE_VIDEO,
    "qwen2_vl": _IMAGE_VIDEO,
    "qwen2_5_vl": _IMAGE_VIDEO,
    "qwen3_vl": _IMAGE_VIDEO,
    "qwen3_vl_moe": _IMAGE_VIDEO,
    "qwen3_5": _IMAGE_VIDEO,
    "glm4v": _IMAGE_VIDEO,
    "internvl": _IMAGE,
    "smolvlm": _IMAGE,
    "idefics3": _IMAGE,
    "gemma3": _IMAGE,
    "gemma4": _ALL,
    "paligemma": _IMAGE,
    "aya_vision": _IMAGE,
    "mistral3": _IMAGE,
    "qwen2_audio": _AUDIO,
    "voxtral": _AUDIO,
}

_MULTIMODAL_MARKS = (
    *("vision_config", "audio_config", "vq_config", "thinker_config"),
    *("image_token_id", "video_token_id", "audio_token_id"),
)


def register_family(
    model_type: str, *, image: str | None = None, video: str | None = None, audio: str | None = None
) -> None:
    """Teach madakv a model family.

    Args:
        model_type: the `model_type` of the family's config.
        image, video, audio: names of the config attributes that hold the token id of that modality.

    Example:
        `madakv.register_family("my_vlm", image="image_token_id")`
    """
    _FAMILIES[model_type] = Family(image=image, video=video, audio=audio)


def known_families() -> list[str]:
    """The `model_type` of every multimodal family madakv knows, sorted."""
    return sorted(_FAMILIES)


def family_of(config: Any) -> Family:
    """The family of a model's config; a text-only model has the empty family.

    Raises:
        UnsupportedModelError: a multimodal config of unknown `model_type`, or one whose attributes are missing.
    """
    model_type = str(getattr(config, "model_type", ""))
    family = _FAMILIES.get(model_type)
    if family is None:
        if any(getattr(config, mark, None) is not None for mark in _MULTIMODAL_MARKS):
            raise UnsupportedModelError(
                f"unknown multimodal family {model_type!r}; known: {', '.join(known_families())}. If its config "
                f"names its placeholder token, add it with "
                f'madakv.register_family("{model_type}", image="image_token_id") (or video=, audio=)'
            )
        return Family()
    for _, name in family.items():
        if not isinstance(getattr(config, name, None), int):
            raise UnsupportedModelError(
                f"the config of {model_type!r} has no integer {name!r} (it is {getattr(config, name, None)!r}); "
                f'correct it with madakv.register_family("{model_type}", ...)'
            )
    return family


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
        inputs_embeds: [B, N, D], read for its shape alone: without ids, only a text-only model's modality is known.

    Returns:
        [B, N] int64 of `Modality` values.

    Raises:
        UnsupportedModelError: see `family_of`.
        InputError: neither `input_ids` nor `mm_token_type_ids`, for a multimodal model.
    """
    if mm_token_type_ids is not None:
        modality = mm_token_type_ids.to(torch.int64).clone()
    elif input_ids is not None:
        modality = torch.zeros_like(input_ids, dtype=torch.int64)
        for kind, name in family_of(config).items():
            modality.masked_fill_(input_ids == getattr(config, name), int(kind))
    elif inputs_embeds is not None and not family_of(config).items():
        modality = torch.zeros(inputs_embeds.shape[:2], dtype=torch.int64, device=inputs_embeds.device)
    else:
        raise InputError(
            "the modality of the prompt is unknown: pass input_ids, or mm_token_type_ids beside inputs_embeds"
        )
    if input_ids is not None and modality.shape != input_ids.shape:
        raise InputError(
            f"mm_token_type_ids has shape {tuple(modality.shape)}, but input_ids {tuple(input_ids.shape)}"
        )
    check_modality(modality, name="mm_token_type_ids")
    if attention_mask is not None and attention_mask.dim() == 2:
        if attention_mask.shape != modality.shape:
            raise InputError(
                f"attention_mask has shape {tuple(attention_mask.shape)}, but the prompt {tuple(modality.shape)}"
            )
        modality.masked_fill_(attention_mask.to(modality.device) == 0, int(Modality.PADDING))
    return modality


def check_modality(modality: Tensor, *, name: str) -> None:
    """Raise InputError, naming the tensor, if it holds anything but `Modality` values."""
    known = (modality >= Modality.PADDING) & (modality <= Modality.AUDIO)
    if not bool(known.all()):
        raise InputError(
            f"{name} holds {modality[~known].unique().tolist()}; known are 0 text, 1 image, 2 video, 3 audio and "
            "-1 padding"
        )
