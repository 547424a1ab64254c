"""Tasks whose answers stand in lines put into a passage; RULER (arXiv 2404.06654) has given most of their names."""

from __future__ import annotations

import random
from itertools import pairwise

from madakv.evaluation.texts import judges
from madakv.evaluation.texts.task import Needles
from madakv.evaluation.texts.words import (
    DISHES,
    FIRST_NAMES,
    LAST_NAMES,
    PETS,
    PLACES,
    STREETS,
    TRADES,
)

_CODE = "The secret code of {place} is {code}."
_ASK = "Question: What is the secret code of {place}? Answer with the number only."
_HARMLESS = "Question: Did you read it? Answer with yes or no."
VALUES = 2
LINKS = 2


def _codes(rng: random.Random, count: int) -> list[str]:
    return [str(code) for code in rng.sample(range(10 ** (judges.CODE_DIGITS - 1), 10**judges.CODE_DIGITS), count)]


def niah(rng: random.Random, count: int) -> Needles:
    """One of so many codes, each of another place."""
    places, found = rng.sample(PLACES, count), _codes(rng, count)
    lines = tuple(_CODE.format(place=place, code=code) for place, code in zip(places, found, strict=True))
    asked = rng.randrange(count)
    return Needles(lines, _ASK.format(place=places[asked]), found[asked], judges.codes([found[asked]]))


def second(rng: random.Random) -> Needles:
    """A code, asked after something else has been answered."""
    found = niah(rng, 1)
    return Needles(found.lines, _HARMLESS, found.gold, found.judge, follow_up=found.question)


def niah_multivalue(rng: random.Random) -> Needles:
    """All codes of one place."""
    (place,), found = rng.sample(PLACES, 1), _codes(rng, VALUES)
    lines = tuple(_CODE.format(place=place, code=code) for code in found)
    question = f"Question: What are the {VALUES} secret codes of {place}? Answer with the numbers only."
    return Needles(lines, question, " ".join(found), judges.codes(found))


def _names(rng: random.Random, count: int) -> list[str]:
    """Different ones of three capitals; without vowels they are no words."""
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.sample("BCDFGHJKLMNPQRSTVWXZ", 3))] = None
    return list(found)


def vt(rng: random.Random) -> Needles:
    """Which variables have a value, the first by a number and each other by the one before."""
    (code,) = _codes(rng, 1)
    names = _names(rng, LINKS + 1)
    lines = [f"VAR {names[0]} = {code}"]
    lines += [f"VAR {later} = VAR {name}" for name, later in pairwise(names)]
    question = f"Question: Find all variables that are assigned the value {code}. Answer with their names only."
    return Needles(tuple(lines), question, " ".join(names), judges.variables(names))


def qa(rng: random.Random) -> Needles:
    """One of the four facts of a short paragraph about one person."""
    who = f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}"
    home = f"{rng.randrange(11, 99)} {rng.choice(STREETS)}"
    trade, pet, dish = (rng.choice(some) for some in (TRADES, PETS, DISHES))
    line = f"{who} lives at {home}. {who} works as a {trade}. {who} owns a {pet}. {who} likes {dish}."
    question, fact = rng.choice(
        (
            (f"Where does {who} live?", home),
            (f"What does {who} work as?", trade),
            (f"What animal does {who} own?", pet),
            (f"What does {who} like?", dish),
        )
    )
    question = f"Question: {question} Answer with a few words from the text."
    return Needles((line,), question, fact, judges.phrase(fact))
