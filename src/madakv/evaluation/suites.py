"""Suites by name: where samples come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from PIL import Image

from madakv.errors import ConfigurationError
from madakv.evaluation import digits


@dataclass(frozen=True)
class Sample:
    """One question.

    Attributes:
        id: unique within its suite.
        kind: what the question needs; tables have one column per kind.
        prompt: text with `<image>` marks.
        images: in the order of the marks.
        gold: the right answer; an answer counts only if all of it is equal.
    """

    id: str
    kind: str
    prompt: str
    images: tuple[Image.Image, ...]
    gold: str


def digit_documents(documents: int, seed: int) -> Iterator[Sample]:
    """Held-out documents of 12 images, each with one question of every kind (see `evaluation.digits`)."""
    for number in range(documents):
        document = digits.make_document(seed + number)
        for kind in digits.KINDS:
            question = next(asked for asked in document.questions if asked.kind == kind)
            yield Sample(
                id=f"{seed + number}-{kind}",
                kind=kind,
                prompt=f"{document.text} {question.prompt}",
                images=document.images,
                gold=question.answer,
            )


SUITES: dict[str, Callable[[int, int], Iterator[Sample]]] = {"digits": digit_documents}


def suite(name: str) -> Callable[[int, int], Iterator[Sample]]:
    """A function from (documents, seed) to samples.

    Raises:
        ConfigurationError: unknown name.
    """
    if name not in SUITES:
        raise ConfigurationError(f"unknown suite {name!r}; known: {', '.join(sorted(SUITES))}")
    return SUITES[name]
