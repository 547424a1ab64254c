"""From the messages of an lmms-eval request to a model's inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from madakv.errors import InputError
from madakv.pictures import as_rgb, open_images
from madakv.prompts import IMAGE_MARK, Parts, chat_content, model_inputs


def inputs_of(processor: Any, messages: Sequence[Mapping[str, Any]]) -> Any:
    """Tokenise a conversation, pictures where they stand.

    A single message of the user is read as `madakv.prompts.model_inputs` reads a prompt, so that a score does not
    depend on which of the two built it.

    Args:
        processor: the model's processor, or a tokenizer for text-only models.
        messages: dicts with a `role` and a `content`: text, or a list of `{"type": "text", "text": ...}` and
            `{"type": "image", "url": picture or path}`.

    Returns:
        A `BatchFeature` of tensors, batch size 1.

    Raises:
        InputError: video or audio, a picture that cannot be read, or messages that the processor refuses.
    """
    turns = [(str(message["role"]), _parts(message["content"])) for message in messages]
    if [role for role, _ in turns] == ["user"]:
        prompt, images = _marked(turns[0][1])
        return model_inputs(processor, prompt, images)
    return _conversation(processor, turns)


def _parts(content: str | Sequence[Mapping[str, Any]]) -> Parts:
    if isinstance(content, str):
        return [content]
    return [_part(item) for item in content]


def _part(item: Mapping[str, Any]) -> str | Image.Image:
    kind = item["type"]
    if kind == "text":
        return str(item["text"])
    if kind == "image":
        return _picture(item["url"])
    raise InputError(f"the request holds {kind}; the lmms-eval model 'madakv' reads text and pictures")


def _picture(given: Any) -> Image.Image:
    if isinstance(given, Image.Image):
        return as_rgb(given)
    if isinstance(given, str | Path):
        (image,) = open_images([Path(given)])
        return image
    raise InputError(f"a picture must be a PIL image or a path; got {type(given).__name__}")


def _marked(parts: Parts) -> tuple[str, list[Image.Image]]:
    """A prompt whose marks are the places of its images.

    Many tasks give all images first and then text with marks of its own: there the text's marks are the places.
    """
    images = [part for part in parts if not isinstance(part, str)]
    texts = [part for part in parts if isinstance(part, str)]
    own = sum(text.count(IMAGE_MARK) for text in texts)
    if not own:
        return "".join(part if isinstance(part, str) else IMAGE_MARK for part in parts), images
    if own != len(images) or any(isinstance(part, str) for part in parts[: len(images)]):
        raise InputError(
            f"the text has {own} {IMAGE_MARK} marks of its own beside {len(images)} images; "
            "give all images first and one mark for each, or no marks"
        )
    return "".join(texts), images


def _conversation(processor: Any, turns: Sequence[tuple[str, Parts]]) -> Any:
    takes_parts = getattr(processor, "tokenizer", None) is not None
    messages = []
    for role, parts in turns:
        if not takes_parts and any(not isinstance(part, str) for part in parts):
            raise InputError("images were given, but this model reads text only")
        messages.append({"role": role, "content": chat_content(parts, takes_parts=takes_parts)})
    try:
        return processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(f"{type(processor).__name__} cannot process this conversation: {error}") from error
