"""Passages of real text, as long as a prompt needs them, into which lines can be put."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from madakv.evaluation.texts.corpus import Source

_PIECES = re.compile(r"[^\W\d_]+|\d|[^\w\s]+|_+|\n+ *")
_TOKENS_PER_PIECE = 1.12
"""By SmolLM2's tokenizer: 1.02 (addresses) to 1.12 (Melville), code in between; the most, for models have an end."""
_SENTENCE_END = re.compile(r"(?<!\bMr)(?<!\bMrs)(?<!\bDr)(?<!\bSt)(?<!\bNo)(?<!\b[A-Z])[.!?][\"')]*(?= [\"'`(A-Z])")


def about_tokens(text: str) -> int:
    """How many tokens a text has, about: words, digits, marks and line ends, by a fixed ratio.

    No tokenizer is asked, so that every model reads the same documents.
    """
    return round(_unrounded(text))


def _unrounded(text: str) -> float:
    return len(_PIECES.findall(text)) * _TOKENS_PER_PIECE


@dataclass(frozen=True)
class Piece:
    """A sentence of prose or a line of code, and what stands between it and the next."""

    text: str
    after: str


@dataclass(frozen=True)
class Passage:
    """Consecutive pieces of one source.

    Attributes:
        pieces: in order.
        kind: "prose" or "code".
        following: the text that follows in the source, at least `FOLLOWING` words of it.
    """

    pieces: tuple[Piece, ...]
    kind: str
    following: str

    @property
    def text(self) -> str:
        """As it stands in the source, without what ends it."""
        return _joined(self.pieces)

    def holding(self, rng: random.Random, lines: Sequence[str]) -> str:
        """The text with lines put between its pieces, in their order, at random places; as comments in code.

        Args:
            rng: the only source of chance.
            lines: whole sentences, fewer than there are pieces.
        """
        places = sorted(rng.sample(range(len(self.pieces) - 1), len(lines)))
        waiting = dict(zip(places, lines, strict=True))
        found = []
        for place, piece in enumerate(self.pieces):
            line = waiting.get(place)
            if line is None:
                found.append(piece)
            elif self.kind == "code":
                found += [piece, Piece(f"# {line}", "\n")]
            else:
                found += [Piece(piece.text, " "), Piece(line, piece.after)]
        return _joined(found)


FOLLOWING = 256
"""Words that follow a passage, at least; no tokenizer makes fewer tokens of them."""


def draw(rng: random.Random, source: Source, tokens: int) -> Passage:
    """A passage that starts at a random sentence, or at a random block of code.

    Args:
        rng: the only source of chance.
        source: whose text.
        tokens: length, about; no piece is cut, so that it is up to one piece shorter.
    """
    text = source.text
    # From the end, so many characters are enough for any passage and what follows it.
    room = len(text) - 8 * (tokens + 2 * FOLLOWING)
    begins, piece = (_BLOCK, _LINE) if source.kind == "code" else (_SENTENCE_START, _SENTENCE)
    start = rng.choice([match.end() for match in begins.finditer(text[:room])])
    pieces, length, cursor = [], 0.0, start
    for match in piece.finditer(text, start):
        length += _unrounded(match.group())
        if length > tokens:
            break
        pieces.append(Piece(match["piece"], match["after"]))
        cursor = match.end()
    words = re.compile(r"\s*\S+").finditer(text, cursor)
    ends = [match.end() for match, _ in zip(words, range(FOLLOWING), strict=False)]
    after = pieces[-1].after
    return Passage(tuple(pieces), source.kind, after + text[cursor : ends[-1]])


_BLOCK = re.compile(r"\n\n(?=\S)")
_LINE = re.compile(r"(?P<piece>[^\n]*\S[^\n]*)(?P<after>\n+)")
_SENTENCE_START = re.compile(r"\n\n|(?<=[.!?]) (?=[A-Z])")
_SENTENCE = re.compile(rf"(?P<piece>\S.*?(?:{_SENTENCE_END.pattern}|(?=\n)))(?P<after>\s+)")


def _joined(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text + piece.after for piece in pieces).rstrip()
