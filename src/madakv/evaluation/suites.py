"""Suites by name: where samples come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from PIL import Image

from madakv.errors import ConfigurationError
from madakv.evaluation import digits
from madakv.evaluation.documents import Document, make_document
from madakv.evaluation.documents.document import SEVERAL_SIZES, SIZES

LENGTHS = (512, 1024, 2048, 4096)


@dataclass(frozen=True)
class Sample:
    """One question.

    Attributes:
        id: unique within its suite.
        kind: what the question needs; tables have one column per kind.
        prompt: text with `<image>` marks.
        images: in the order of the marks.
        gold: the right answer; an answer counts only if all of it is equal.
        follow_up: asked on the same cache after the prompt has been answered; `gold` is then its answer.
    """

    id: str
    kind: str
    prompt: str
    images: tuple[Image.Image, ...]
    gold: str
    follow_up: str | None = None


SuiteMaker = Callable[[int, int, bool], Iterator[Sample]]
"""From (documents, seed of the first, whether pictures may differ in size) to samples."""


def digit_documents(documents: int, seed: int, _several_sizes: bool) -> Iterator[Sample]:
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


def long_documents(lengths: Sequence[int], documents: int, seed: int, several_sizes: bool) -> Iterator[Sample]:
    """Held-out long documents, their lengths in turn, each with one question of every kind.

    The kind `second` asks one of `SECOND` after another question has been answered on the same cache.
    """
    for number in range(documents):
        tokens = lengths[number % len(lengths)]
        sizes = SEVERAL_SIZES if several_sizes else SIZES
        document = make_document(seed + number, tokens=tokens, sizes=sizes)
        asked = {question.kind: question for question in document.questions}
        for kind, question in asked.items():
            if kind != "show":
                yield _sample(document, f"{seed + number}-{tokens}", kind, question.prompt, question.answer)
        second = SECOND[number % len(SECOND)]
        yield _sample(
            document,
            f"{seed + number}-{tokens}",
            "second",
            asked["show"].prompt,
            asked[second].answer,
            follow_up=asked[second].prompt,
        )


SECOND = ("code", "read", "owner", "change")
"""What is asked second, in turn, after the first question has had one picture described."""


def _sample(
    document: Document, number: str, kind: str, prompt: str, gold: str, follow_up: str | None = None
) -> Sample:
    return Sample(f"{number}-{kind}", kind, f"{document.text} {prompt}", document.images, gold, follow_up)


SUITES: dict[str, SuiteMaker] = {
    "digits": digit_documents,
    "long": partial(long_documents, LENGTHS),
    **{f"long-{tokens}": partial(long_documents, (tokens,)) for tokens in LENGTHS},
}


def suite(name: str) -> SuiteMaker:
    """How the samples of a suite are made.

    Raises:
        ConfigurationError: unknown name.
    """
    if name not in SUITES:
        raise ConfigurationError(f"unknown suite {name!r}; known: {', '.join(sorted(SUITES))}")
    return SUITES[name]
