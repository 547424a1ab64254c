"""Words that occur most, as RULER asks for them (arXiv 2404.06654): lists without any other text around them."""

from __future__ import annotations

import random
import re
from functools import cache
from itertools import product

from madakv.evaluation.texts import judges
from madakv.evaluation.texts.corpus import Source
from madakv.evaluation.texts.passage import about_tokens
from madakv.evaluation.texts.task import Asked, asked_of

COMMON, OFTEN, SELDOM = 3, 30, 3
"""How many words are common, how often these occur, and how often any other."""
FREQUENT = 3
_ALPHA = 2.0


def cwe(rng: random.Random, tokens: int, source: Source) -> Asked:
    """Common words: a numbered list in which a few words of a text occur often, and many others seldom."""
    pool = list(_vocabulary(source))
    rng.shuffle(pool)
    question = f"Question: What are the {COMMON} most common words in the list? Answer with the words only."
    common = pool[:COMMON]
    listed = common * OFTEN
    each = about_tokens("\n100. word")
    room = tokens - about_tokens(asked_of("", question))
    for word in pool[COMMON:]:
        if (len(listed) + SELDOM) * each > room:
            break
        listed += [word] * SELDOM
    rng.shuffle(listed)
    text = "\n".join(f"{number}. {word}" for number, word in enumerate(listed, 1))
    return Asked(asked_of(text, question), " ".join(common), judges.words(common, listed))


def fwe(rng: random.Random, tokens: int) -> Asked:
    """Frequent words: made-up ones, whose frequencies fall with the square of their rank; the first are asked."""
    pool = list(_made_up())
    rng.shuffle(pool)
    question = f"Question: What are the {FREQUENT} most frequent words in the text? Answer with the words only."
    # A made-up word is about two tokens of its own.
    room = (tokens - about_tokens(asked_of("", question))) // 3
    ranks = range(1, len(pool) + 1)
    written: list[str] = []
    for rank, word in zip(ranks, pool, strict=True):
        written += [word] * max(1, round(0.6 * room / rank**_ALPHA))
        if len(written) >= room:
            break
    rng.shuffle(written)
    return Asked(
        asked_of(" ".join(written), question), " ".join(pool[:FREQUENT]), judges.words(pool[:FREQUENT], pool)
    )


@cache
def _vocabulary(source: Source) -> tuple[str, ...]:
    """Words of five to eight letters that stand in a text, in the order of the alphabet."""
    return tuple(sorted(set(re.findall(r"\b[a-z]{5,8}\b", source.text))))


@cache
def _made_up() -> tuple[str, ...]:
    syllables = [onset + vowel for onset, vowel in product("bdfgklmnprstvz", "aeiou")]
    return tuple(f"{first}{second}x" for first in syllables for second in syllables if first != second)
