"""Prompts to measure with: pictures and text as in real ones, of a given length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from madakv.errors import InputError
from madakv.modality import Modality
from madakv.prompts import model_inputs

_LEAD, _CAPTION, _QUESTION = 32, 24, 48
_PICTURE_SIDE = 336
_SENTENCE = "The picture shows what was found on that day, and the text tells where. "


@dataclass(frozen=True, eq=False)
class Prompt:
    """A batch of prompts, padded on the left, and one token to go on with.

    Attributes:
        inputs: what a forward pass takes.
        told: what only a pass under eviction takes: the modalities, where the model's class knows none.
        step: what a pass takes for one new token per row.
        modality: [B, N] of `Modality` values; None if the model's inputs tell.
        lengths: tokens of each row, padding left out.
        width: N.
    """

    inputs: dict[str, Any]
    told: dict[str, Any]
    step: dict[str, Any]
    modality: Tensor | None
    lengths: tuple[int, ...]
    width: int

    @property
    def padded(self) -> bool:
        """Whether some row is shorter than others."""
        return min(self.lengths) < self.width

    def mask(self, room: int) -> Tensor | None:
        """[B, N + room] int64, for the prompt and so many later tokens, 0 at padding; None if there is none."""
        if not self.padded:
            return None
        start = self.width - torch.tensor(self.lengths)
        mask = (torch.arange(self.width + room) >= start[:, None]).long()
        return mask.to(next(iter(self.step.values())).device)


def layout(tokens: int, image_tokens: int) -> Tensor:
    """[N] of `Modality` values: some text, then pictures with a caption each, then a question."""
    lead, caption, question = (min(n, tokens // 8) for n in (_LEAD, _CAPTION, _QUESTION))
    picture = max(1, min(image_tokens, tokens // 4))
    modality = torch.full((tokens,), int(Modality.TEXT))
    start = lead
    while start + picture + caption + question <= tokens:
        modality[start : start + picture] = int(Modality.IMAGE)
        start += picture + caption
    return modality


def row_lengths(context: int, batch: int, shortest: float) -> tuple[int, ...]:
    """Tokens of each row: the first is as long as the context, the last has a share of `shortest` of it."""
    return tuple(
        max(1, round(context * (1 - (1 - shortest) * row / (batch - 1 if batch > 1 else 1)))) for row in range(batch)
    )


def random_prompt(
    hidden: int, image_tokens: int, lengths: tuple[int, ...], *, dtype: torch.dtype, device: torch.device
) -> Prompt:
    """Random embeddings for a text model, from torch's generator.

    Args:
        hidden: size of an embedding.
        image_tokens: per picture.
        lengths: tokens of each row.
        dtype, device: of the embeddings.
    """
    B, N = len(lengths), max(lengths)
    modality = torch.full((B, N), int(Modality.PADDING))
    for row, length in enumerate(lengths):
        modality[row, N - length :] = layout(length, image_tokens)
    valid = modality != Modality.PADDING
    # A pass takes the padding from its mask; as modalities, models' processors write it as text.
    kinds = modality.clamp_min(0).to(device)
    inputs: dict[str, Any] = {"inputs_embeds": torch.randn(B, N, hidden, device=device).to(dtype)}
    if not bool(valid.all()):
        inputs["attention_mask"] = valid.long().to(device)
    step = {"inputs_embeds": torch.randn(B, 1, hidden, device=device).to(dtype)}
    return Prompt(inputs, {"mm_token_type_ids": kinds}, step, modality.to(device), lengths, N)


def document_prompt(model: Any, processor: Any, context: int, batch: int) -> Prompt:
    """At least `context` tokens of pictures and text for a real model, the same in every row.

    Raises:
        InputError: the processor refuses it.
    """
    reads_images = getattr(processor, "tokenizer", None) is not None
    picture = Image.effect_noise((_PICTURE_SIDE, _PICTURE_SIDE), 80).convert("RGB")

    def inputs_of(parts: int) -> Any:
        mark = "<image> " if reads_images else ""
        text = "".join(f"{mark}{_SENTENCE}" for _ in range(parts)) + "What do all of these have in common?"
        return model_inputs(processor, text, [picture] * parts if reads_images else [])

    one, two = (inputs_of(parts)["input_ids"].shape[1] for parts in (1, 2))
    if two <= one:
        raise InputError("this model's processor gives two pictures with text no more tokens than one")
    inputs = inputs_of(max(1, -(-(context - one) // (two - one)) + 1))
    repeated = {
        name: x.repeat(batch, *[1] * (x.dim() - 1)).to(model.device) if isinstance(x, Tensor) else x
        for name, x in inputs.items()
    }
    N = repeated["input_ids"].shape[1]
    return Prompt(repeated, {}, {"input_ids": repeated["input_ids"][:, -1:]}, None, (N,) * batch, N)
