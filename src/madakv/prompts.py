"""From a prompt with `<image>` marks and pictures to a model's inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from PIL import Image

from madakv.errors import InputError

IMAGE_MARK = "<image>"
_ANSWER = "~~ the answer ~~"

Parts = list[str | Image.Image]
"""Text and images in reading order."""


def interleave(prompt: str, images: Sequence[Image.Image]) -> Parts:
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
    parts: Parts = list(images[:unmarked])
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
        raise InputError(f"images were given ({len(images)}), but this model reads text only")
    try:
        if getattr(processor, "chat_template", None):
            return _from_chat_template(processor, parts, takes_parts=tokenizer is not None)
        return processor(text=_inline(processor, parts), return_tensors="pt", **_pictures(parts))
    except Exception as error:
        # Templates and processors raise whatever a prompt leads them to: TemplateError, ZeroDivisionError, ...
        raise InputError(
            f"{type(processor).__name__} cannot process this prompt: {_told(processor, error)}"
        ) from error


def text_inputs(processor: Any, prompt: str, following: str, most: int) -> tuple[Any, list[int]]:
    """Tokenise a text and what follows it as it is, without a chat template.

    Both are tokenised together, so that no token ends where no token of the whole text does; what is cut at is the
    last token's end that the prompt alone has, too.

    Args:
        processor: the model's processor, or a tokenizer for text-only models.
        prompt, following: text without pictures.
        most: tokens that are taken of what follows.

    Returns:
        The prompt's `BatchFeature` of tensors, batch size 1, and the ids of what follows.

    Raises:
        InputError: a text that the processor refuses, or fewer than `most` tokens that follow.
    """
    try:
        inputs = processor(text=prompt, return_tensors="pt")
        ids = processor(text=prompt + following, return_tensors="pt")["input_ids"][0].tolist()
    except Exception as error:
        raise InputError(f"{type(processor).__name__} cannot process this text: {_told(processor, error)}") from error
    alone = inputs["input_ids"][0].tolist()
    length = next((n for n, (own, whole) in enumerate(zip(alone, ids, strict=False)) if own != whole), len(alone))
    for name, value in inputs.items():
        inputs[name] = value[:, :length]
    after: list[int] = ids[length : length + most]
    if not length or len(after) < most:
        raise InputError(
            f"{length} tokens of text and {len(after)} that follow it; there have to be some, and {most}"
        )
    return inputs, after


def follow_up_ids(processor: Any, prompt: str) -> list[int]:
    """The ids of what comes after an answer when something else is asked, by the chat template if there is one.

    Args:
        processor: the model's processor, or a tokenizer for text-only models.
        prompt: what is asked, without pictures.

    Raises:
        InputError: a chat template that has no place for a second question.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    if getattr(processor, "chat_template", None):
        takes_parts = tokenizer is not processor
        turns = zip(("user", "assistant", "user"), ("?", _ANSWER, prompt), strict=True)
        messages = [{"role": role, "content": chat_content([text], takes_parts=takes_parts)} for role, text in turns]
        try:
            rendered = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except Exception as error:
            raise InputError(
                f"{type(processor).__name__} cannot process a second question: {_told(processor, error)}"
            ) from error
        _, found, prompt = rendered.partition(_ANSWER)
        if not found:
            raise InputError("the chat template leaves out answers, so that no second question can be asked")
    ids: list[int] = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return ids


def _told(processor: Any, error: Exception) -> str:
    """Why a prompt could not be processed, as far as that is known."""
    if isinstance(error, TemplateError):
        line = f" in line {error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
        return f"its chat template fails{line}: {error}"
    if isinstance(error, TypeError) and getattr(processor, "patch_size", 0) is None:
        return "its processor_config.json has no patch_size; it is that of vision_config in config.json"
    return f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error)


def chat_content(parts: Parts, *, takes_parts: bool) -> Any:
    """The content of a chat message, as templates take it.

    Args:
        parts: text and images in reading order.
        takes_parts: whether the template takes a list of parts; those of tokenizers take one text.
    """
    if not takes_parts:
        return "".join(part for part in parts if isinstance(part, str))
    return [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
        for part in parts
    ]


def _from_chat_template(processor: Any, parts: Parts, *, takes_parts: bool) -> Any:
    def render(pieces: Parts, **options: Any) -> Any:
        messages = [{"role": "user", "content": chat_content(pieces, takes_parts=takes_parts)}]
        return processor.apply_chat_template(messages, add_generation_prompt=True, **options)

    words: Parts = [part for part in parts if isinstance(part, str)]
    if len(words) == len(parts) or _keeps_order(render(parts, tokenize=False), render(words, tokenize=False), parts):
        return render(parts, tokenize=True, return_dict=True, return_tensors="pt")
    # Some templates put all images first; they let text pass as it is, placeholders within it too.
    text = render([_inline(processor, parts)], tokenize=False)
    bos = getattr(processor.tokenizer, "bos_token", None)
    return processor(
        text=text, return_tensors="pt", add_special_tokens=not (bos and text.startswith(bos)), **_pictures(parts)
    )


def _keeps_order(rendered: str, without_images: str, parts: Parts) -> bool:
    """Whether a template wrote something at every image's place, and nothing elsewhere for it.

    Args:
        rendered: the template's text for `parts`.
        without_images: its text for the words among them.
    """
    # Blanks between images are found anywhere, and tell nothing.
    parts = [part for part in parts if not isinstance(part, str) or part.strip()]
    gaps, bare = _around(rendered, parts), _around(without_images, parts)
    if gaps is None or bare is None:
        return True
    expected, images = [], 0
    for part in [*parts, ""]:
        if isinstance(part, str):
            expected.append(images > 0)
            images = 0
        else:
            images += 1
    return [gap.strip() != plain.strip() for gap, plain in zip(gaps, bare, strict=True)] == expected


def _around(rendered: str, parts: Parts) -> list[str] | None:
    """What stands before, between and after the words of `parts`; None if they cannot be found in order."""
    gaps, cursor = [], 0
    for part in parts:
        if isinstance(part, str):
            start = rendered.find(part.strip(), cursor)
            if start < 0:
                return None
            gaps.append(rendered[cursor:start])
            cursor = start + len(part.strip())
    return [*gaps, rendered[cursor:]]


def _inline(processor: Any, parts: Parts) -> str:
    mark = str(getattr(processor, "boi_token", None) or getattr(processor, "image_token", IMAGE_MARK))
    return "".join(part if isinstance(part, str) else mark for part in parts)


def _pictures(parts: Parts) -> dict[str, Any]:
    images = [part for part in parts if not isinstance(part, str)]
    return {"images": images} if images else {}
