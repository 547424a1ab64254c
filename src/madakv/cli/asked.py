"""The prompt of a command: as it was typed, or the built-in one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from madakv import bundled
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
