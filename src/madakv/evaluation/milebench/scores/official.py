"""MileBench's own scores, fault for fault, so that figures can stand beside published ones.

Each function returns the score and, where the original stops with an error instead, why.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from madakv.evaluation.milebench.scores import rouge

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_PERIODS = 32
"""How many periods are dropped: the original hands a regex flag of this value to a parameter that is a count."""
_NEVER_EQUAL = frozenset(".^$*|")
"""The original compares a matched text with an escaped option, which differ if the option has one of these."""

NO_GOLD = "the right answer is empty once normalised"
NOT_A_CHOICE = "the right answer is none of the choices"


def normalise(text: str) -> str:
    """Lower case, with most punctuation deleted or turned into blanks.

    One mark next to a blank anywhere has all marks of its kind deleted; a comma within a number has all marks of
    every kind deleted. `:`, `*`, `$` and periods before a digit stay; so do periods after the 32nd that goes.
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    in_number = re.search(r"\d,\d", text) is not None
    fate = {ord(mark): None if in_number or f"{mark} " in text or f" {mark}" in text else " " for mark in _MARKS}
    text = re.sub(r"\.(?!\d)", "", text.translate(fate), count=_PERIODS)
    return text.strip("'").strip().lower()


def accuracy(prediction: str, gold: str, choices: Sequence[str]) -> tuple[float, str | None]:
    """Multiple choice: whether the key read from the answer is that of the first option that equals the gold."""
    options = {_key(place): normalise(choice) for place, choice in enumerate(choices)}
    right = next((key for key, option in options.items() if option == normalise(gold)), None)
    if right is None:
        return 0.0, NOT_A_CHOICE
    return float(_read_key(normalise(prediction), options) == right), None


def needle(prediction: str, gold: str) -> tuple[float, str | None]:
    """Whether the gold is one of the answer's words, split at blanks."""
    return float(normalise(gold) in normalise(prediction).split()), None


def contains(prediction: str, gold: str) -> tuple[float, str | None]:
    """Whether the gold stands anywhere in the answer, within a word too."""
    return float(normalise(gold) in normalise(prediction)), None


def rouge_l(prediction: str, gold: str) -> tuple[float, str | None]:
    """ROUGE-L as the library `rouge` has it, of the normalised texts."""
    prediction, gold = normalise(prediction), normalise(gold)
    if not gold:
        return 0.0, NO_GOLD
    if not prediction:
        return 0.0, None
    return rouge.summary_f(prediction, gold)


def _key(place: int) -> str:
    """A to Z, AA to AZ, then B and whatever characters follow."""
    row = min(place // 26, 2)
    return ("", "A", "B")[row] + chr(ord("A") + place - 26 * row)


def _read_key(answer: str, options: Mapping[str, str]) -> str:
    if not answer:
        return "C"
    keyed = _first_of([normalise(f"{key} {option}") for key, option in options.items()], answer)
    if keyed is not None:
        return keyed[0].upper()
    # Options are normalised once more here, which takes off what the first time laid bare.
    packed = {key: normalise(option).replace(" ", "") for key, option in options.items()}
    found = _first_of(packed.values(), answer.replace(" ", ""))
    for key, option in packed.items():
        if found is not None and found.strip() == option and not _NEVER_EQUAL & set(option):
            return key.upper()
    if len(answer) <= 2 and answer.upper() in options:
        return answer.upper()
    return "".join(character.upper() for character in answer if character.upper() in options)


def _first_of(needles: Iterable[str], text: str) -> str | None:
    """The needle that stands first in a text; at the same place the one that is first in order, however short."""
    found = re.search("|".join(re.escape(needle) for needle in needles), text)
    return found and found[0]
