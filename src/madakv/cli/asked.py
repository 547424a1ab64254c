"""The prompt of a command: as it was typed, or the built-in one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from madakv import bundled
from madakv.cli.output import plain_console
from madakv.errors import InputError
from madakv.pictures import open_images
from madakv.question import Question


def prompt_or_sample(prompt: str | None, images: Sequence[Path]) -> tuple[str, list[Image.Image], Question | None]:
    """The prompt with its pictures; of the built-in one, its question too.

    Raises:
        InputError: pictures that cannot be opened, or without a prompt.
    """
    pictures = open_images(images)
    if prompt is not None:
        return prompt, pictures, None
    check_prompted(prompt, images)
    sample = bundled.sample()
    return f"{sample.text} {sample.demo.prompt}", list(sample.images), sample.demo


def check_prompted(prompt: str | None, images: Sequence[Path]) -> None:
    """Refuse pictures that nobody asks about."""
    if prompt is None and images:
        raise InputError("images were given without --prompt; say what to do with them")


def warn_of_unknown_words(processor: Any, inputs: Any) -> None:
    """Say so where a tokenizer of few words reads others: what is asked then never reaches the model."""
    tokenizer = getattr(processor, "tokenizer", processor)
    unknown = getattr(tokenizer, "unk_token_id", None)
    # Some have another special token in its place.
    if unknown is None or unknown in (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id):
        return
    ids = inputs["input_ids"]
    if count := int((ids == unknown).sum()):
        plain_console(stderr=True).print(
            f"warning: the model has no words for {count} of {ids.numel()} tokens of this prompt, and reads "
            f"{tokenizer.unk_token} there",
            soft_wrap=True,
        )
