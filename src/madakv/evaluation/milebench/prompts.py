"""From a MileBench question to a prompt with `<image>` marks, whole or cut from the left.

A prompt is the instruction, a line break, the context, and the choices where there are some. The original pairs
places and pictures from the end, whatever their numbers say, which is right wherever every picture has one place and
the places are in order. To be right elsewhere too, here
- `{image#i}` and `{table#i}` show picture i, which the benchmark numbers together;
- a picture that is named again is not shown again: the words `<Image i>` stand there;
- pictures that are never named stand before the context, in order (the original shows one more picture than there are
  places, and loses the others);
- a place whose number no picture has stays text, as in the original.

So every picture is shown once. Text that happens to read `<image>` is no mark: it becomes `<Image>`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from madakv.errors import ConfigurationError, InputError
from madakv.evaluation.milebench import places
from madakv.evaluation.milebench.data import Question
from madakv.prompts import IMAGE_MARK

TOKENS_PER_IMAGE = 576
"""Of LLaVA 1.5, which the original counts with."""

_ALPHABET = 26


@dataclass(frozen=True)
class Prompt:
    """What a model is asked.

    Attributes:
        text: with as many `<image>` marks as there are pictures to show.
        images: picture files in the order of the marks; with `combine`, what the single picture is made of.
        combine: whether `images` are to be made into one picture.
    """

    text: str
    images: tuple[Path, ...]
    combine: bool = False


def prompt(question: Question) -> str:
    """The text of the whole prompt, see `write`."""
    return write(question).text


def write(question: Question) -> Prompt:
    """The whole prompt of a question; with its pictures as one, that picture stands before everything."""
    return _prompt(question, _pieces(question))


def cut_left(
    question: Question, tokenizer: Any, *, max_context_len: int, tokens_per_image: int = TOKENS_PER_IMAGE
) -> Prompt:
    """The prompt, cut from the left as the original does it, so that a model's context is long enough.

    The instruction always stays. Of the context and its choices, seen as text between pictures, the longest end stays
    that is made of whole pieces and fits. Only if not even the text behind the last picture fits is a text cut: its
    last tokens stay. Not counted, as in the original: the line break behind the instruction, the chat template, and
    the single picture of a combined question. Text that is not cut stays as it is; the original passes it through the
    tokenizer, which may change its spaces.

    Args:
        question: what to ask.
        tokenizer: the model's; called with a text and `add_special_tokens`, and its `decode`.
        max_context_len: most tokens of instruction, context and pictures together.
        tokens_per_image: what a picture counts.

    Returns:
        The prompt and the pictures that are left.

    Raises:
        ConfigurationError: pictures that count nothing.
        InputError: the instruction alone is too long.
    """
    if tokens_per_image < 1:
        raise ConfigurationError(f"tokens_per_image is {tokens_per_image}; a picture has at least one token")
    instruction = len(_ids(tokenizer, question.instruction))
    left = max_context_len - instruction
    if left <= 0:
        raise InputError(
            f"{question.dataset.name}: sample {question.id}: the instruction has {instruction} tokens, which leaves "
            f"nothing of max_context_len={max_context_len}; raise it"
        )
    kept: list[places.Piece] = []
    for piece in reversed(_pieces(question)):
        ids = _ids(tokenizer, piece) if isinstance(piece, str) else []
        cost = len(ids) if isinstance(piece, str) else tokens_per_image
        if cost > left:
            if not kept and ids:
                kept = [_end(tokenizer, ids[-left:])]
            break
        kept.insert(0, piece)
        left -= cost
    return _prompt(question, kept)


def _prompt(question: Question, pieces: list[places.Piece]) -> Prompt:
    context = "".join(piece if isinstance(piece, str) else IMAGE_MARK for piece in pieces)
    text = f"{_unmarked(question.instruction)}\n{context}"
    if question.combined:
        ready = question.combined_file
        return Prompt(f"{IMAGE_MARK}\n{text}", (ready,) if ready else question.images, combine=ready is None)
    return Prompt(text, tuple(question.images[piece - 1] for piece in pieces if isinstance(piece, int)))


def _pieces(question: Question) -> list[places.Piece]:
    """Context and choices: text between pictures, and their numbers; only text if they are combined."""
    pieces: list[places.Piece] = []
    shown: set[int] = set()
    for piece in places.split(question.context + _choices(question), len(question.images)):
        if isinstance(piece, int) and not question.combined and piece not in shown:
            shown.add(piece)
            pieces.append(piece)
            continue
        # The original writes a space behind the words, but only where the captions of a combined picture are meant.
        named = f"<Image {piece}> " if question.combined else f"<Image {piece}>"
        words = _unmarked(piece) if isinstance(piece, str) else named
        if pieces and isinstance(pieces[-1], str):
            pieces[-1] += words
        else:
            pieces.append(words)
    if question.combined:
        return pieces
    return [*(number for number in range(1, len(question.images) + 1) if number not in shown), *pieces]


def _choices(question: Question) -> str:
    if not question.choices:
        return ""
    # GPR1200 has more options than there are letters.
    lettered = question.dataset.name != "GPR1200"
    lines = [f"{letter(i)}. {choice}" if lettered else choice for i, choice in enumerate(question.choices)]
    return "\nChoice list: \n" + "\n".join(lines) + "\nYour answer is: "


def letter(index: int) -> str:
    """The letter of the choice at a place counted from 0: A to Z, then AA, AB and so on."""
    before, own = divmod(index, _ALPHABET)
    return (letter(before - 1) if before else "") + chr(ord("A") + own)


def _unmarked(text: str) -> str:
    return text.replace(IMAGE_MARK, "<Image>")


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _end(tokenizer: Any, ids: list[int]) -> str:
    # A character of several tokens may have lost its first ones.
    return _unmarked(str(tokenizer.decode(ids)).lstrip("\N{REPLACEMENT CHARACTER}"))
