"""Tokens as pieces of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_BROKEN = "\ufffd"
_MOST_BYTES = 16
"""Tokens that one character may be spread over."""


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """One piece of text per token, which together are the text.

    A character that is spread over several tokens stands with the first; the others are empty. Blanks at the
    beginning of words stay, which tokenizers drop from a token that is decoded alone.

    Args:
        tokenizer: of the model.
        ids: of the text, special tokens included.
    """
    # Behind an ordinary token, another one is decoded as it stands in a text.
    anchor = _ids(tokenizer, "a")[-1:]
    before = _decoded(tokenizer, anchor)
    known: dict[int, str] = {}

    def alone(token: int) -> str:
        if token not in known:
            known[token] = _decoded(tokenizer, [*anchor, token])[len(before) :]
        return known[token]

    out: list[str] = []
    while len(out) < len(ids):
        start = len(out)
        piece, end = alone(ids[start]), start + 1
        while _BROKEN in piece and end < min(len(ids), start + _MOST_BYTES):
            piece, end = _decoded(tokenizer, [*anchor, *ids[start : end + 1]])[len(before) :], end + 1
        if _BROKEN in piece:
            # Bytes of no character.
            piece, end = alone(ids[start]), start + 1
        out += [piece, *[""] * (end - start - 1)]
    return out


def special_ids(tokenizer: Any) -> set[int]:
    """Tokens that are no text: ends, padding, framing."""
    return set(getattr(tokenizer, "all_special_ids", ()))


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text
