"""MileBench as samples for the runner."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NoReturn

from madakv.errors import InputError
from madakv.evaluation.milebench.catalogue import Dataset
from madakv.evaluation.milebench.data import Annotations, BrokenSample, Question
from madakv.evaluation.milebench.pictures import open_pictures
from madakv.evaluation.milebench.prompts import cut_left, write
from madakv.evaluation.milebench.scores import score
from madakv.evaluation.samples import Sample, Verdict

SCORERS = ("official", "strict")


def milebench_samples(
    datasets: Sequence[Annotations],
    processor: Any,
    *,
    limit: int | None = None,
    seed: int = 0,
    combined: bool = False,
    max_context: int | None = None,
) -> list[Sample]:
    """Samples of the datasets in their order; one whose data is broken fails when it is its turn.

    Args:
        datasets: see `data.read_annotations`.
        processor: of the model; its tokenizer counts where prompts are cut.
        limit: samples per dataset; None = all. A larger limit adds to those of a smaller one.
        seed: draws those that `limit` leaves.
        combined: show every question's pictures as a single one.
        max_context: see `prompts.cut_left`; None = whole prompts.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    samples = []
    for found in datasets:
        own = list(_samples(found, tokenizer, combined, max_context))
        order = random.Random(f"{seed} {found.dataset.name}").sample(range(len(own)), len(own))
        samples += [own[number] for number in sorted(order[:limit])]
    return samples


def _samples(found: Annotations, tokenizer: Any, combined: bool, max_context: int | None) -> Iterator[Sample]:
    for read in found.questions(combined=combined):
        if isinstance(read, BrokenSample):
            yield _broken(found.dataset, read.id, "broken", read.reason)
            continue
        try:
            yield _sample(read, tokenizer, max_context)
        except InputError as error:
            yield _broken(found.dataset, read.id, read.level, str(error))


def _sample(question: Question, tokenizer: Any, max_context: int | None) -> Sample:
    prompt = write(question) if max_context is None else cut_left(question, tokenizer, max_context_len=max_context)
    dataset = question.dataset
    return Sample(
        id=question.id,
        dataset=dataset.label,
        group=dataset.group,
        level=question.level,
        document=f"{dataset.label} {question.id}",
        prompt=prompt.text,
        pictures=partial(open_pictures, prompt),
        images=len(question.images),
        gold=question.gold,
        scorers=SCORERS,
        judge=partial(_judge, question),
    )


def _judge(question: Question, answer: str) -> Verdict:
    found = score(question.dataset.metric, answer, question.gold, question.choices)
    return Verdict({"official": found.official, "strict": found.strict}, found.fault)


def _broken(dataset: Dataset, id_: str, level: str, reason: str) -> Sample:
    def fail(*_: object) -> NoReturn:
        raise InputError(reason)

    return Sample(
        id=id_,
        dataset=dataset.label,
        group=dataset.group,
        level=level,
        document=f"{dataset.label} {id_}",
        prompt="",
        pictures=fail,
        images=0,
        gold="",
        scorers=SCORERS,
        judge=fail,
    )
