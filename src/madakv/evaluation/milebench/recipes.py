"""What the samples of each dataset ask: one recipe per kind of task, with drawn pictures in place of real ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from PIL import Image

from madakv.evaluation.milebench.catalogue import Dataset
from madakv.evaluation.milebench.drawing import COLOURS, any_thing, draw

_CHOICES = 4
_GALLERY = 32


@dataclass(frozen=True)
class Draft:
    """A sample before it is written.

    Attributes:
        context: with a place for every picture, but for the ones that are meant to differ.
        pictures: `{image#1}` first.
        gold: the right answer.
        choices: empty if the answer is free.
    """

    context: str
    pictures: tuple[Image.Image, ...]
    gold: str
    choices: tuple[str, ...] = ()


Recipe = Callable[[Random, int], Draft]
"""From a source of chance and the sample's number to the sample."""


def recipe(dataset: Dataset) -> tuple[Recipe, tuple[str, ...]]:
    """How samples of a dataset are made, and the wordings of its task."""
    return _BY_NAME.get(dataset.name) or _BY_GROUP[dataset.group]


def _frames(counts: Sequence[int]) -> Recipe:
    """Pictures in time, without text between them; so many in turn."""

    def make(rng: Random, number: int) -> Draft:
        count = counts[number % len(counts)]
        things = [any_thing(rng) for _ in range(count)]
        when, thing = rng.choice([("first", things[0]), ("last", things[-1])])
        return Draft(
            context=f"{_row(1, count)}\nQuestion: Which colour is in the {when} picture?",
            pictures=tuple(draw(rng, one) for one in things),
            gold=thing.colour,
            choices=_options(rng, thing.colour, list(COLOURS)),
        )

    return make


def _reading(rng: Random, number: int) -> Draft:
    """Pictures between paragraphs of text; the answer is painted in one of them."""
    titles = rng.sample(_WORDS, 3)
    answers = rng.sample(_NAMES, 3)
    asked = number % 3
    # Web pages do contain the mark that stands for a picture.
    source = " Its source reads <image> where the picture is." if number == 0 else ""
    return Draft(
        context=f"A page on {titles[0]}. {{image#1}}{source}\nA page on {titles[1]}. {{image#2}}\n"
        f"A page on {titles[2]}. {{image#3}}\nQuestion: Whose name is on the page on {titles[asked]}?",
        pictures=tuple(draw(rng, any_thing(rng), name) for name in answers),
        gold=answers[asked],
        choices=_options(rng, answers[asked], _NAMES),
    )


def _table_and_pictures(rng: Random, number: int) -> Draft:
    """A table, which is a picture too, and a picture; every second sample has one more without a place."""
    pictures = [any_thing(rng) for _ in range(2 + number % 2)]
    return Draft(
        context="Table: {table#1} Picture: {image#2} Question: Which colour does the picture show?",
        pictures=tuple(draw(rng, thing) for thing in pictures),
        gold=pictures[1].colour,
        choices=_options(rng, pictures[1].colour, list(COLOURS)),
    )


def _difference(rng: Random, _number: int) -> Draft:
    """Two pictures side by side; the answer is a sentence."""
    before, after = any_thing(rng), any_thing(rng)
    return Draft(
        context="{image#1}{image#2}What has changed?",
        pictures=(draw(rng, before), draw(rng, after)),
        gold=f"The {before.words} has been replaced by a {after.words}.",
    )


def _steps(rng: Random, _number: int) -> Draft:
    """Steps, each with a picture of its outcome; the last one's words are asked for."""
    things = [any_thing(rng) for _ in range(7)]
    told = [f"Step {i}: Fetch the {thing.words}. {{image#{i}}}\n" for i, thing in enumerate(things[:-1], start=1)]
    return Draft(
        context=f"{''.join(told)}Step 7: {{image#7}} What was done?",
        pictures=tuple(draw(rng, thing) for thing in things),
        gold=f"Fetch the {things[-1].words}.",
    )


def _dialogue(rng: Random, number: int) -> Draft:
    """Earlier questions with tables and pictures; places and pictures differ in turn as they may in real data."""
    one, two, three = (any_thing(rng) for _ in range(3))
    contexts = (
        f"Table: {{table#1}} Question: Which shape? Answer: {one.shape}. Picture: {{image#2}} Picture: {{image#3}}",
        f"Table: {{table#1}} Question: Which shape? Answer: {one.shape}. In {{table#1}} again: Picture: {{image#3}}",
        "Table: {table#1} Picture: {image#2} Picture: {image#3} Picture: {image#9}",
        "Picture: {image#2} Table: {table#1} Picture: {image#3}",
    )
    return Draft(
        context=f"{contexts[number % len(contexts)]} Question: Which colour does the last picture show?",
        pictures=tuple(draw(rng, thing) for thing in (one, two, three)),
        gold=three.colour,
    )


def _text_needle(rng: Random, number: int) -> Draft:
    """A number hidden in one of many sentences between pictures."""
    count = (33, 4)[number % 2]
    secret = str(rng.randrange(1000, 10000))
    hidden = rng.randrange(count)
    pieces = []
    for index in range(count):
        told = f"The secret number is {secret}. " if index == hidden else ""
        pieces.append(f"{{image#{index + 1}}} {told}Here is a note on {rng.choice(_WORDS)}. ")
    return Draft(
        context=f"{''.join(pieces)}\nQuestion: What is the secret number?",
        pictures=tuple(draw(rng, any_thing(rng)) for _ in range(count)),
        gold=secret,
    )


def _image_needle(rng: Random, number: int) -> Draft:
    """A number painted in one of many pictures."""
    count = (4, 33)[number % 2]
    secret = str(rng.randrange(1000, 10000))
    hidden = rng.randrange(count)
    notes = [f"{{image#{i}}} Here is a note on {rng.choice(_WORDS)}. " for i in range(1, count + 1)]
    return Draft(
        context=f"{''.join(notes)}\nQuestion: Which number is written in a picture?",
        pictures=tuple(draw(rng, any_thing(rng), secret if i == hidden else "") for i in range(count)),
        gold=secret,
    )


def _retrieval(rng: Random, _number: int) -> Draft:
    """Find the thing of the first picture among more pictures than there are letters."""
    things = [any_thing(rng) for _ in range(_GALLERY)]
    names = [f"Image {i}" for i in range(2, _GALLERY + 2)]
    hidden = rng.randrange(_GALLERY)
    return Draft(
        context=f"Wanted: {{image#1}} Pictures: {_row(2, _GALLERY + 1)}\nQuestion: Which one shows the wanted code?",
        pictures=(
            draw(rng, things[hidden], f"code {hidden}"),
            *(draw(rng, thing, f"code {i}") for i, thing in enumerate(things)),
        ),
        gold=names[hidden],
        choices=tuple(names),
    )


def _row(first: int, last: int) -> str:
    return "".join(f"{{image#{i}}}" for i in range(first, last + 1))


def _options(rng: Random, right: str, every: Sequence[str]) -> tuple[str, ...]:
    options = [right, *rng.sample([one for one in every if one != right], _CHOICES - 1)]
    rng.shuffle(options)
    return tuple(options)


_WORDS = ("rivers", "clocks", "bridges", "lamps", "gardens", "ships", "markets", "towers")
_NAMES = ("ADA", "BRUNO", "CLARA", "DMITRI", "EMMA", "FELIX")

_WATCH = (
    "Look at the pictures in their order and pick the right option.",
    "These pictures follow each other in time. Choose the answer.",
    "Given frames of a film, answer with one of the choices.",
)
_READ = ("Read the pages and choose the answer.", "Pick the option that the pages support.")
_COMPARE = ("Say what differs.", "Describe the change from the first picture to the second one.")
_FOLLOW = ("Tell the last step.", "Continue the instructions.")
_TALK = ("Answer the last question of the talk.", "Use tables and pictures to answer.")
_SEEK = ("Find what is hidden.", "Answer in one word.")
_RETRIEVE = ("Find the picture that belongs to the first one.",)

_BY_GROUP: dict[str, tuple[Recipe, tuple[str, ...]]] = {
    **dict.fromkeys(("T-1", "T-2", "T-4"), (_frames((2, 4)), _WATCH)),
    "T-3": (_frames((33, 7, 3)), _WATCH),
    "S-1": (_reading, _READ),
    "S-2": (_reading, _READ),
    "S-3": (_difference, _COMPARE),
    "S-5": (_frames((6,)), _WATCH),
    "N-1": (_text_needle, _SEEK),
    "N-2": (_image_needle, _SEEK),
    "I-1": (_retrieval, _RETRIEVE),
}
_BY_NAME: dict[str, tuple[Recipe, tuple[str, ...]]] = {
    "MultiModalQA": (_table_and_pictures, _READ),
    "ALFRED": (_steps, _FOLLOW),
    "MMCoQA": (_dialogue, _TALK),
}
