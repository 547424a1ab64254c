"""The language of the documents: every word that can occur, and the kinds of question."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

from madakv.evaluation.digits import COLOURS, DIGITS

KINDS = ("code", "read", "twin", "owner", "differ", "plan", "change", "album", "show")
"""Kinds of question; `show` is for training and second turns, the others are the suite's tasks."""

MILEBENCH: Mapping[str, str] = {
    "code": "TN",
    "read": "IN",
    "twin": "IR",
    "owner": "MMCoQA",
    "differ": "STD, CL-CH",
    "plan": "ALFRED",
    "change": "temporal",
    "album": "counting",
    "second": "multi-turn",
}
"""Which category of MileBench each task stands for."""

FIGURES = ("circle", "square", "triangle", "cross", "ring", "diamond")
CELLS = ("a1", "a2", "b1", "b2")
STEPS = tuple(f"s{number}" for number in range(1, 7))
NAMES = tuple(f"n{number}" for number in range(1, 321))
# fmt: off
PAINTED = (
    "apple", "arrow", "bread", "brick", "chair", "cloud", "crown", "dance", "eagle", "earth", "flame", "frost",
    "glass", "grape", "horse", "house", "ivory", "jewel", "knife", "lemon", "light", "mango", "metal", "music",
    "night", "ocean", "olive", "paper", "pearl", "piano", "queen", "river", "robin", "sheep", "stone", "sugar",
    "table", "tiger", "water", "wheel",
)
# fmt: on
"""Words that are painted on pictures."""

_KEYWORDS = (
    *("image", "code", "owner", "pair", "before", "after", "step", "."),
    *("?", "read", "twin", "show", "differ", "plan", "change", "album"),
)


def _invented() -> tuple[str, ...]:
    """Prose words that nobody asks for, of two or three syllables; the frequent ones come first."""
    syllables = [onset + vowel for onset, vowel in product("bdfgklmnprstvz", "aeiou")]
    words = [first + second for first in syllables for second in syllables if first != second]
    # A stride that shares no factor with their number walks through all of them in mixed order.
    return tuple(words[(i * 1117) % len(words)] for i in range(3600))


PROSE = _invented()

WORDS = (*_KEYWORDS, *COLOURS, *DIGITS, *FIGURES, *CELLS, *STEPS, *PAINTED, *NAMES, *PROSE)
"""Every word of documents, questions and answers (the image mark aside)."""
