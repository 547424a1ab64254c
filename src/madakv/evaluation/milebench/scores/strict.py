"""MileBench's scores without the faults of its program: an answer is right if a careful reader would say so.

Texts are compared as `words`: whole words and whole numbers, without case and punctuation. An empty answer is wrong.

Multiple choice: the first rule that names any option decides; the answer is right if it names no other than the gold.

1. The answer is an option's text: "3.5", "$5.", "dark red".
2. It states a letter: "The answer is B.", "answer: (b)", "The correct choice is A, because ...".
3. It gives letters with their options' texts: "I say (B) dog, not cat". A copy of the whole list names all of them.
4. It begins with a letter: "B", "(b)", "B because ...", "B: it moved". "A" before a word is taken for an article.
5. It has options' texts within it, longest first: "dark red" does not name "red", "12" does not name "1".
6. It states the letter A or I with nothing behind it to tell it from a word: "The answer is A since ...".
7. It has capital letters standing by themselves: "I would go for B", "either B or C".

Letters listed together ("B or C", "A, B") name all of them, and a letter followed by nothing but another option's
text names both. What "not" or "not a" stands before is not named (5), nor a letter after "not" (7). Options whose
words are the same are told apart by their characters. With more than 26 options no letters are shown, and only texts
count.

Needle and contains: the gold's words stand in the answer, side by side. "abc:" has the needle "abc"; "unknown" does
not contain "no".

ROUGE-L: F over all words in order. The library's F takes sets of words, so it cannot see a model that repeats itself
without end, as one does whose cache was evicted too far; and its 1e-8 keeps a perfect answer below 1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase

from madakv.evaluation.milebench.scores.rouge import sequence_f
from madakv.evaluation.milebench.scores.words import places, plain, words

NO_GOLD = "the right answer has no words"
NOT_A_CHOICE = "the right answer is none of the choices"

# A letter by itself, not one of "it's", "B-52", "D.C."
_ALONE = r"(?<![\w'-])(?<!\w\.){letter}(?![\w'-])(?!\.\w)"
_END = r"(?=\s*(?:[.,:;!?)\]}>]|\s-\s|(?:/|&|or\b|and\b)\s*[(\[]?[A-Za-z](?![\w'])|$))"
_CLOSED = _ALONE.format(letter="([A-Za-z])") + _END
_CAPITAL = _ALONE.format(letter="([B-HJ-Z])")
_MEANT = f"(?:{_CLOSED}|{_CAPITAL})"
_OPENING = r"[\s(\[{<$]*"
_STATING = r"(?i:\b(?:answer|option|choice)\s*(?:is|was|:|=)+\s*(?:(?:option|choice|letter)\s)?)" + _OPENING
_PAIRED = re.compile(_CLOSED, re.MULTILINE)
_STATED = re.compile(_STATING + _MEANT, re.MULTILINE)
_STATED_WORD = re.compile(_STATING + _ALONE.format(letter="([AI])"))
_AT_HEAD = re.compile(r"\A" + _OPENING + _MEANT, re.MULTILINE)
_NEXT = re.compile(r"[)\]]?\s*(?:[,/&]|or\b|and\b)?" + _OPENING + _MEANT, re.MULTILINE)
_BY_ITSELF = re.compile(rf"(?<!\bnot\s)(?:{_ALONE.format(letter='([A-Z])')}{_END}|{_CAPITAL})", re.MULTILINE)
_EMPHASIS = re.compile(r"[*_`\"“”]")


def accuracy(prediction: str, gold: str, choices: Sequence[str]) -> tuple[float, str | None]:
    """Multiple choice, by the rules above."""
    right = _written_as(gold, choices)
    if not right:
        return 0.0, NOT_A_CHOICE
    named = _named(prediction, choices)
    return float(bool(named) and named <= right), None


def needle(prediction: str, gold: str) -> tuple[float, str | None]:
    """Whether the gold's words stand in the answer, side by side."""
    wanted = words(gold)
    if not wanted:
        return 0.0, NO_GOLD
    return float(any(True for _ in places(wanted, words(prediction)))), None


contains = needle


def rouge_l(prediction: str, gold: str) -> tuple[float, str | None]:
    """F over all words in order."""
    wanted = words(gold)
    if not wanted:
        return 0.0, NO_GOLD
    return sequence_f(words(prediction), wanted), None


def _named(prediction: str, choices: Sequence[str]) -> set[int]:
    """Places of the options that an answer names."""
    text = _EMPHASIS.sub("", plain(prediction)).strip()
    return (
        _written_as(prediction, choices)
        or _lettered(_STATED, text, choices)
        or _paired(text, choices)
        or _lettered(_AT_HEAD, text, choices)
        or _mentioned(prediction, choices)
        or _lettered(_STATED_WORD, text, choices)
        or _lettered(_BY_ITSELF, text, choices)
    )


def _written_as(text: str, choices: Sequence[str]) -> set[int]:
    """Places of the options that a text is, by its characters if it can be."""
    exact = {place for place, choice in enumerate(choices) if _folded(choice) == _folded(text) != ""}
    own = words(text)
    return exact or {place for place, choice in enumerate(choices) if own and words(choice) == own}


def _lettered(pattern: re.Pattern[str], text: str, choices: Sequence[str]) -> set[int]:
    """Places of the options whose letters a pattern finds, and of those listed behind them."""
    named, reached = set(), 0
    for first in pattern.finditer(text):
        found = first if first.start() >= reached else None
        while found:
            reached = found.end()
            place = _place(found, choices)
            if place is not None:
                named |= {place} | _written_as(text[reached:], choices)
            found = _NEXT.match(text, reached)
    return named


def _paired(text: str, choices: Sequence[str]) -> set[int]:
    """Places of the options whose letters stand before their own texts."""
    named = set()
    for found in _PAIRED.finditer(text):
        place = _place(found, choices)
        if place is not None:
            option = words(choices[place])
            if option and words(text[found.end() :])[: len(option)] == option:
                named.add(place)
    return named


def _place(found: re.Match[str], choices: Sequence[str]) -> int | None:
    letter = next(group for group in found.groups() if group)
    place = ascii_uppercase.index(letter.upper())
    return place if place < len(choices) <= len(ascii_uppercase) else None


def _mentioned(text: str, choices: Sequence[str]) -> set[int]:
    """Places of the options whose words stand in a text, other than within a longer option's."""
    own = words(text)
    spans = [
        (start, start + len(option), place)
        for place, option in enumerate(map(words, choices))
        for start in places(option, own)
        if "not" not in own[max(start - 2, 0) : start]
    ]
    named = {
        place
        for start, end, place in spans
        if not any(s <= start and end <= e and e - s > end - start for s, e, _ in spans)
    }
    if len({words(choices[place]) for place in named}) > 1:
        return named
    written = {place for place in named if _folded(choices[place]) in _folded(text)}
    longest = max((len(_folded(choices[place])) for place in written), default=0)
    return {place for place in written if len(_folded(choices[place])) == longest} or named


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())
