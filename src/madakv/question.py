"""A question about a document."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """`prompt` follows the document's text after a space; `answer` is in words, without an end mark."""

    kind: str
    prompt: str
    answer: str
