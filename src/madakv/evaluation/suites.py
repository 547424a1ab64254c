"""Suites by name: where samples come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from madakv.errors import ConfigurationError
from madakv.evaluation import digits
from madakv.evaluation.documents import MILEBENCH, Document, make_document
from madakv.evaluation.documents.presentation import Presentation
from madakv.evaluation.samples import EXACT, Sample, equal_to
from madakv.evaluation.texts import COUNTS_FROM, TEXT_LENGTHS, text_documents

LENGTHS = (512, 1024, 2048, 4096)


SuiteMaker = Callable[[int, int, Presentation], Iterator[Sample]]
"""From (documents, seed of the first, how the model is shown them) to samples."""


def digit_documents(documents: int, seed: int, _presentation: Presentation) -> Iterator[Sample]:
    """Held-out documents of 12 images, each with one question of every kind (see `evaluation.digits`)."""
    for number in range(documents):
        document = digits.make_document(seed + number)
        for kind in digits.KINDS:
            question = next(asked for asked in document.questions if asked.kind == kind)
            asks = f"{document.text} {question.prompt}"
            yield _sample(document, str(seed + number), kind, "digits", asks, question.answer)


def long_documents(lengths: Sequence[int], documents: int, seed: int, presentation: Presentation) -> Iterator[Sample]:
    """Held-out long documents, their lengths in turn, each with one question of every kind.

    The kind `second` asks one of `SECOND` after another question has been answered on the same cache.
    """
    for number in range(documents):
        tokens = lengths[number % len(lengths)]
        document = make_document(seed + number, tokens=tokens, **vars(presentation))
        asked = {question.kind: question for question in document.questions}
        name = f"{seed + number}-{tokens}"
        for kind, question in asked.items():
            if kind != "show":
                asks = document.text + presentation.wording.joint + question.prompt
                yield _sample(document, name, kind, MILEBENCH[kind], asks, question.answer, str(tokens))
        first, second = asked["show"], asked[SECOND[number % len(SECOND)]]
        yield _sample(
            document,
            name,
            "second",
            MILEBENCH["second"],
            document.text + presentation.wording.joint + first.prompt,
            second.answer,
            str(tokens),
            follow_up=second.prompt,
        )


SECOND = ("code", "read", "owner", "change")
"""What is asked second, in turn, after the first question has had one picture described."""


IN_ANY_ORDER = frozenset({"album"})
"""Kinds whose answers are lists without an order."""


def _sample(
    document: Document,
    name: str,
    kind: str,
    group: str,
    prompt: str,
    gold: str,
    level: str = "",
    follow_up: str | None = None,
) -> Sample:
    return Sample(
        id=name,
        dataset=kind,
        group=group,
        level=level,
        document=name,
        prompt=prompt,
        pictures=lambda: document.images,
        images=len(document.images),
        gold=gold,
        scorers=(EXACT,),
        judge=equal_to(gold, in_any_order=kind in IN_ANY_ORDER),
        follow_up=follow_up,
    )


SUITES: dict[str, SuiteMaker] = {
    "digits": digit_documents,
    "long": partial(long_documents, LENGTHS),
    **{f"long-{tokens}": partial(long_documents, (tokens,)) for tokens in LENGTHS},
    **{name: partial(text_documents, tokens) for name, tokens in TEXT_LENGTHS.items()},
}


def suite_settings(name: str) -> dict[str, float]:
    """What a suite asks of its report: the score of the full cache from which a task counts, if it says any."""
    return {"counts_from": COUNTS_FROM} if name in TEXT_LENGTHS else {}


def suite(name: str) -> SuiteMaker:
    """How the samples of a suite are made.

    Raises:
        ConfigurationError: unknown name.
    """
    if name not in SUITES:
        raise ConfigurationError(f"unknown suite {name!r}; known: {', '.join(sorted(SUITES))}")
    return SUITES[name]
