"""The samples of the suites `text-1k` to `text-8k`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from madakv.evaluation.samples import EXACT, LOSS_TOKENS, Sample, Verdict
from madakv.evaluation.texts import needles
from madakv.evaluation.texts.copying import copy
from madakv.evaluation.texts.corpus import Source, sources, split_of
from madakv.evaluation.texts.counting import cwe, fwe
from madakv.evaluation.texts.passage import Passage, draw
from madakv.evaluation.texts.task import Asked, Needles

TEXT_LENGTHS: Mapping[str, int] = {"text-1k": 1024, "text-2k": 2048, "text-4k": 4096, "text-8k": 8192}
COUNTS_FROM = 0.6
"""A task counts in the average where the full cache has so much of it right."""
LOSS = "loss"
_ANSWER = 24
_BESIDE = 64 + _ANSWER
"""Tokens for a chat template and an answer, which are in no text."""

_NEEDLES: Mapping[str, tuple[str, Callable[[random.Random], Needles]]] = {
    "niah_single": ("retrieval", lambda rng: needles.niah(rng, 1)),
    "niah_multikey_3": ("retrieval", lambda rng: needles.niah(rng, 3)),
    "niah_multikey_8": ("retrieval", lambda rng: needles.niah(rng, 8)),
    "second": ("retrieval", needles.second),
    "niah_multivalue": ("retrieval", needles.niah_multivalue),
    "vt": ("tracing", needles.vt),
    "qa": ("facts", needles.qa),
}
TASKS = (*_NEEDLES, "copy", "cwe", "fwe", LOSS)


def text_documents(tokens: int, documents: int, seed: int, _presentation: object) -> Iterator[Sample]:
    """Documents of about so many tokens with a question of every kind each, and one whose loss is measured.

    Every task draws its own passage of the document's source. Sources of the split take turns, two documents of
    prose for one of code.

    Raises:
        ConfigurationError: seeds of more than one split, see `corpus.split_of`.
    """
    split = split_of(seed, documents)
    for number in range(seed, seed + documents):
        for task in TASKS:
            yield _sample(split, number, tokens, task)


def _sample(split: str, number: int, tokens: int, task: str) -> Sample:
    rng = random.Random(f"{split} {number} {tokens} {task}")
    source = _source(split, number)
    name = f"{number}-{tokens}"
    of_text = partial(Sample, id=name, dataset=task, level=str(tokens), document=name, pictures=tuple, images=0)
    if task == LOSS:
        passage = draw(rng, source, tokens - LOSS_TOKENS)
        return of_text(
            group=task,
            prompt=passage.text,
            gold="",
            scorers=(),
            judge=lambda _: Verdict({}),
            following=passage.following,
        )
    group, asked = _asked(rng, tokens - _BESIDE, split, source, task)
    return of_text(
        group=group,
        prompt=asked.prompt,
        gold=asked.gold,
        scorers=(EXACT,),
        judge=asked.judge,
        follow_up=asked.follow_up,
        most_tokens=_ANSWER,
    )


def _source(split: str, number: int) -> Source:
    """Of its kind there is one in each split."""
    return _of_kind(split, "code" if number % 3 == 2 else "prose")


def _of_kind(split: str, kind: str) -> Source:
    return next(source for source in sources() if (source.split, source.kind) == (split, kind))


def _asked(rng: random.Random, tokens: int, split: str, source: Source, task: str) -> tuple[str, Asked]:
    def drawn(length: int) -> Passage:
        return draw(rng, source, length)

    if task in _NEEDLES:
        group, needle = _NEEDLES[task]
        return group, needle(rng).within(rng, tokens, drawn)
    if task == "copy":
        return "copying", copy(rng, tokens, drawn)
    if task == "cwe":
        return "aggregation", cwe(rng, tokens, _of_kind(split, "prose"))
    return "aggregation", fwe(rng, tokens)
