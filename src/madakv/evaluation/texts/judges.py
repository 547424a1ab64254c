"""Who tells whether an answer is right, whole: for codes, for phrases, and for words in any order."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from madakv.evaluation.samples import EXACT, Judge, Verdict

CODE_DIGITS = 5


def codes(gold: Iterable[str]) -> Judge:
    """Right if every code of `gold` stands in the answer, and no other.

    Digits in a row are a code if they are as many as one has, or more; `12,345` is 12345. Fewer are words of the
    answer, or a last code that its end has cut off.
    """
    wanted = set(gold)

    def right(answer: str) -> bool:
        numbers = re.findall(r"\d+", re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", answer))
        return {number for number in numbers if len(number) >= CODE_DIGITS} == wanted

    return _judge(right)


def phrase(gold: str) -> Judge:
    """Right if the words of `gold` stand in the answer in a row; case, marks and spaces do not count."""
    return _judge(lambda answer: f" {normalised(gold)} " in f" {normalised(answer)} ")


def words(gold: Iterable[str], known: Iterable[str]) -> Judge:
    """Right if of the `known` words those of `gold` stand in the answer, in any order, and no other."""
    wanted, among = set(gold), set(known)
    return _judge(lambda answer: {word for word in normalised(answer).split() if word in among} == wanted)


def variables(gold: Iterable[str]) -> Judge:
    """Right if the names of `gold` are the answer's words of three capitals, in any order, `VAR` left out."""
    wanted = set(gold)
    return _judge(lambda answer: set(re.findall(r"\b[A-Z]{3}\b", answer)) - {"VAR"} == wanted)


def normalised(text: str) -> str:
    """Lower case, without marks, one space between words."""
    return " ".join(re.findall(r"\w+", text.lower()))


def _judge(right: Callable[[str], bool]) -> Judge:
    return lambda answer: Verdict({EXACT: float(right(answer))})
