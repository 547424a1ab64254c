"""How documents and their questions are put: in the few words of the models trained here, or in plain English."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from madakv.evaluation.digits import DIGITS
from madakv.evaluation.documents.words import CELLS, NAMES, PROSE, STEPS

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Lengths:
    """Tokens, about: of a picture of one tile, of sentences, of what stands before a picture, of a question."""

    picture: int = 16
    code: int = 6
    owner: int = 4
    heading: int = 2
    question: int = 8


@dataclass(frozen=True)
class Wording:
    """What a document's parts, questions and answers read like.

    Attributes:
        names: of pictures, codes, owners, albums.
        numbers: what the digits 0 to 9 are called where a picture shows them.
        cells: of a grid, in reading order.
        steps: of the plan.
        joint: between the parts of a document, and before its question.
        within: between the digits of a code.
        also: between the parts of an answer.
        parts: templates of a document's parts; `{mark}` is where a picture stands.
        asked: templates of the questions, by kind; the key comes last, or the plan has none.
        owned: template of the answer to `owner`.
        emptied: template of the answer to `differ`, of `{cell}`, `{colour}` and `{name}`.
        sentence: (chance, tokens that are left) to a sentence that nobody asks for and its length in tokens.
        lengths: see `Lengths`.
    """

    names: Sequence[str]
    numbers: Sequence[str]
    cells: Sequence[str]
    steps: Sequence[str]
    joint: str
    within: str
    also: str
    parts: Mapping[str, str]
    asked: Mapping[str, str]
    owned: str
    emptied: str
    sentence: Callable[[np.random.Generator, int], tuple[str, int]]
    lengths: Lengths

    def called(self, what: str) -> str:
        """A digit or a figure in words."""
        return self.numbers[int(what)] if what in DIGITS else what

    def listed(self, parts: Sequence[str]) -> str:
        """An answer of several parts."""
        return self.also.join(parts)


def _invented(rng: np.random.Generator, left: int) -> tuple[str, int]:
    import numpy as np

    words = min(left, int(rng.integers(4, 13)))
    # Frequencies fall with rank, as in any language.
    weights = 1 / np.arange(1, len(PROSE) + 1)
    drawn = rng.choice(len(PROSE), size=words - 1, p=weights / weights.sum())
    return " ".join([*(PROSE[i] for i in drawn), "."]), words


TERSE = Wording(
    names=NAMES,
    numbers=DIGITS,
    cells=CELLS,
    steps=STEPS,
    joint=" ",
    within=" ",
    also=" ",
    parts={
        "picture": "image {name} {mark}",
        "code": "code {name} {code} .",
        "owner": "owner {name} {other} .",
        "album": "album {name} {mark}",
        "before": "before {name} {mark}",
        "after": "after {name} {mark}",
        "pair": "pair {name} {mark} {mark}",
        "step": "step {name} {mark}",
    },
    asked={
        "code": "? code {name}",
        "read": "? read {name}",
        "twin": "? twin {name}",
        "owner": "? show {name}",
        "differ": "? differ {name}",
        "plan": "? plan",
        "change": "? change {name}",
        "album": "? album {name}",
        "show": "? show {name}",
    },
    owned="{thing}",
    emptied="{cell} {colour}",
    sentence=_invented,
    lengths=Lengths(),
)
"""For models whose every word is a token, see `documents.words`."""
