"""From a prompt with `<image>` marks and picture files to a model's inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from madakv.errors import InputError

IMAGE_MARK = "<image>"


def open_images(paths: Sequence[Path]) -> list[Image.Image]:
    """Read pictures as RGB.

    Raises:
        InputError: a file that is missing, is no picture, or is broken; the message names it.
    """
    images = []
    for path in paths:
        try:
            with Image.open(path) as opened:
                images.append(opened.convert("RGB"))
        except FileNotFoundError:
            raise InputError(f"no such image file: {path}") from None
        except UnidentifiedImageError:
            raise InputError(f"not an image that Pillow can read: {path}") from None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(f"the image file is broken: {path} ({error})") from None
    return images


def interleave(prompt: str, images: Sequence[Image.Image]) -> list[str | Image.Image]:
    """Put each image at its mark; images without a mark come first.

    Args:
        prompt: text with `<image>` marks.
        images: in the order of the marks; surplus images are the first ones.

    Returns:
        Text pieces and images in reading order, empty text left out.

    Raises:
        InputError: more marks than images, or nothing at all.
    """
    pieces = prompt.split(IMAGE_MARK)
    marks = len(pieces) - 1
    if marks > len(images):
        raise InputError(
            f"the prompt has {marks} {IMAGE_MARK} marks but {len(images)} images were given; add images or drop marks"
        )
    unmarked = len(images) - marks
    parts: list[str | Image.Image] = list(images[:unmarked])
    for number, piece in enumerate(pieces):
        if piece:
            parts.append(piece)
        if number < marks:
            parts.append(images[unmarked + number])
    if not any(not isinstance(part, str) or part.strip() for part in parts):
        raise InputError("the prompt is empty: give some text or at least one image")
    return parts


def model_inputs(processor: Any, prompt: str, images: Sequence[Image.Image]) -> Any:
    """Tokenise a prompt, through the chat template if the processor has one.

    Args:
        processor: the model's processor, or a tokenizer for text-only models.
        prompt: text with `<image>` marks.
        images: see `interleave`.

    Returns:
        A `BatchFeature` of tensors, batch size 1.

    Raises:
        InputError: images for a text-only model, or a prompt that the processor refuses.
    """
    parts = interleave(prompt, images)
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None and images:
        raise InputError(f"{len(images)} images were given, but this model reads text only")
    try:
        if getattr(processor, "chat_template", None):
            return _from_chat_template(processor, parts, takes_parts=tokenizer is not None)
        mark = getattr(processor, "image_token", IMAGE_MARK)
        text = "".join(part if isinstance(part, str) else mark for part in parts)
        pictures = {"images": list(images)} if images else {}
        return processor(text=text, **pictures, return_tensors="pt")
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(f"{type(processor).__name__} cannot process this prompt: {error}") from error


def _from_chat_template(processor: Any, parts: list[str | Image.Image], *, takes_parts: bool) -> Any:
    content: Any = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
        for part in parts
    ]
    if not takes_parts:
        content = "".join(part for part in parts if isinstance(part, str))
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
