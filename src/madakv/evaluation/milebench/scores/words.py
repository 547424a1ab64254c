"""Words as a reader sees them: what `strict` compares in place of characters."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

_PLAIN = str.maketrans({"\u2019": "'", "\u2212": "-", "\u2013": " - ", "\u2014": " - "})
_WORD = re.compile(
    r"""
    (?:(?<![\w.-])-)?                           # a sign, not a hyphen or a range
    (?:\d{1,3}(?:,\d{3})+(?!\d)|\d+|(?<![\w.])(?=\.\d))
    (?:\.\d+)*[^\W\d_]*                         # decimals; 2nd, 3.5m
    |[^\W_]+(?:'[^\W_]+)*                       # don't
    |[$€£¥%]                                    # $5 is not 5
    """,
    re.VERBOSE,
)


def plain(text: str) -> str:
    """One character for those that look the same: apostrophes, dashes, full-width letters."""
    return unicodedata.normalize("NFKC", text).translate(_PLAIN)


def words(text: str) -> tuple[str, ...]:
    """Words and numbers without case and punctuation.

    A number keeps its sign and decimals and loses commas between thousands; currency and per cent signs are words.
    """
    found = _WORD.findall(plain(text).casefold())
    return tuple(word.replace(",", "").replace("'", "") for word in found)


def places(needle: Sequence[str], text: Sequence[str]) -> Iterator[int]:
    """Where a sequence of words begins within another; nowhere if it is empty."""
    for start in range(len(text) - len(needle) + 1) if needle else ():
        if text[start : start + len(needle)] == needle:
            yield start
