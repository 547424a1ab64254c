"""A sentence or a line of the passage itself, copied."""

from __future__ import annotations

import random
import re

from madakv.evaluation.texts import judges
from madakv.evaluation.texts.passage import Passage, about_tokens
from madakv.evaluation.texts.task import Asked, Drawn, asked_of

OPENING, REST = 4, 4
"""Words that are shown, and words that have to follow."""
_QUESTION = "Complete this {piece} from the text: {opening}"
_PLAIN = re.compile(r"[\w ,-]+")
"""Words that no quotes or other marks set apart."""
_PIECES = {"prose": "sentence", "code": "line"}


def copy(rng: random.Random, tokens: int, drawn: Drawn) -> Asked:
    """How a sentence goes on whose first words are given."""
    longest = _QUESTION.format(piece=_PIECES["prose"], opening="extraordinarily " * 2 * OPENING)
    found: list[tuple[str, str]] = []
    while not found:
        passage = drawn(tokens - about_tokens(asked_of("", longest)))
        found = _candidates(passage)
    opening, rest = rng.choice(found)
    question = _QUESTION.format(piece=_PIECES[passage.kind], opening=opening)
    return Asked(asked_of(passage.text, question), rest, judges.phrase(rest))


def _candidates(passage: Passage) -> list[tuple[str, str]]:
    """Openings, each with the words that follow it; both stand in the passage once."""
    whole = judges.normalised(passage.text)
    found = []
    for piece in passage.pieces:
        words = list(re.finditer(r"\w+", piece.text))
        if len(words) >= OPENING + REST:
            opening = piece.text[words[0].start() : words[OPENING - 1].end()]
            rest = piece.text[words[OPENING].start() : words[OPENING + REST - 1].end()]
            span = piece.text[words[0].start() : words[OPENING + REST - 1].end()]
            if _PLAIN.fullmatch(span) and all(
                f" {whole} ".count(f" {judges.normalised(part)} ") == 1 for part in (opening, rest)
            ):
                found.append((opening, rest))
    return found
