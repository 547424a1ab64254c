"""The wording of documents for models that read English: the same parts and questions in whole sentences.

Names are words that tokenizers of English have whole, so that a name is one token, as in the other wording.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from madakv.evaluation.documents.wording import Lengths, Wording

if TYPE_CHECKING:
    import numpy as np

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# fmt: off
_NAMES = (
    "Oslo", "Rome", "Paris", "London", "Berlin", "Madrid", "Lima", "Cairo", "Delhi", "Tokyo", "Boston", "Chicago",
    "Dublin", "Vienna", "Athens", "Moscow", "Dallas", "Denver", "Miami", "Seattle", "Austin", "Atlanta", "Detroit",
    "Houston", "Phoenix", "Toronto", "Sydney", "Melbourne", "Perth", "Prague", "Warsaw", "Munich", "Hamburg", "Milan",
    "Venice", "Florence", "Naples", "Geneva", "Brussels", "Amsterdam", "Copenhagen", "Stockholm", "Helsinki",
    "Lisbon", "Barcelona", "Istanbul", "Mumbai", "Beijing", "Shanghai", "Seoul", "Havana", "Nairobi", "Manila",
    "Cleveland", "Portland", "Oxford", "Cambridge", "Bristol", "Glasgow", "Edinburgh", "Manchester", "Liverpool",
    "Leeds", "Belfast", "Anna", "Peter", "Mary", "John", "Paul", "Laura", "Maria", "David", "Sarah", "Emma", "Jack",
    "Lucy", "Tom", "Alice", "Bob", "Charlie", "Daniel", "Edward", "Frank", "George", "Henry", "Jane", "Kate", "Leo",
    "Martin", "Nina", "Oscar", "Philip", "Robert", "Simon", "Victor", "Walter", "Adam", "Ben", "Clara", "Diana",
    "Eric", "Grace", "Hannah", "Ivan", "Julia", "Kevin", "Linda", "Michael", "Nancy", "Patrick", "Rachel", "Samuel",
    "Thomas", "Vincent", "William", "Andrew", "Barbara", "Carl", "Ellen", "Felix", "Gordon", "Helen", "Isaac",
    "James", "Karen", "Louis", "Margaret", "Nathan", "Albert", "Bruce", "Catherine", "Douglas", "Elizabeth",
    "Francis", "Gregory", "Harold", "Joseph", "Keith", "Lawrence", "Marcus", "Nicholas", "Oliver", "Ralph", "Susan",
    "Timothy", "Wendy", "Arthur", "Brian", "Christine", "Donald", "Emily", "Fred", "Gary", "Howard", "Jason",
    "Jennifer", "Kenneth", "Lisa", "Matthew", "Norman", "Roger", "Sandra", "Stephen",
)
_PLACES = ("market", "river", "garden", "school", "bridge", "station", "church", "forest", "harbour", "library")
_PEOPLE = ("farmer", "teacher", "doctor", "neighbour", "child", "baker", "sailor", "painter", "guest", "driver")
_QUALITIES = ("old", "young", "quiet", "tall", "tired", "happy", "busy", "clever", "poor", "friendly")
_DEEDS = ("walked to", "waited near", "came from", "looked at", "slept by", "worked at", "talked about", "left")
_TIMES = ("in the morning", "after lunch", "at night", "in winter", "last week", "every day", "before the rain")
# fmt: on


def _sentence(rng: np.random.Generator, _left: int) -> tuple[str, int]:
    def one(words: tuple[str, ...]) -> str:
        return words[int(rng.integers(len(words)))]

    said = f"The {one(_QUALITIES)} {one(_PEOPLE)} {one(_DEEDS)} the {one(_PLACES)} {one(_TIMES)}."
    return said, len(said.split()) + 2


ENGLISH = Wording(
    names=_NAMES,
    numbers=_NUMBERS,
    cells=("top left", "top right", "bottom left", "bottom right"),
    steps=_NUMBERS[1:7],
    joint="\n",
    within="",
    also=", ",
    parts={
        "picture": "Picture {name}:{mark}",
        "code": "The code of {name} is {code}.",
        "owner": "{name} owns picture {other}.",
        "album": "Album {name}:{mark}",
        "before": "Before, {name}:{mark}",
        "after": "After, {name}:{mark}",
        "pair": "Pair {name}:{mark}{mark}",
        "step": "Step {name}:{mark}",
    },
    asked={
        "code": "What is the code of {name}?",
        "read": "Which two words are written in picture {name}?",
        "twin": "What is shown twice, and where else than in picture {name}?",
        "owner": "Which picture, and showing what, is owned by {name}?",
        "differ": "What colour was the corner that is empty in the second picture of pair {name}?",
        "plan": "What do the steps show, in order?",
        "change": "What was there before and after, of {name}?",
        "album": "What do the three pictures show in album {name}?",
        "show": "What is shown in picture {name}?",
    },
    owned="{other}, {thing}",
    emptied="{name}, {colour}",
    sentence=_sentence,
    lengths=Lengths(picture=19, code=12, owner=6, heading=4, question=26),
)
