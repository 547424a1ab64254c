"""`madakv bench prefill`: time to read a prompt, with eviction and without, and of the eviction alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import log
from statistics import median
from typing import Any

import torch

from madakv.bench.contenders import BASELINE, Contender, Evicted, Read, baseline
from madakv.bench.decode import check, how
from madakv.bench.decoding import Decoding
from madakv.bench.prompt import Prompt
from madakv.bench.results import Row
from madakv.bench.roofline import Rates
from madakv.bench.settings import Settings
from madakv.bench.subject import Subject
from madakv.bench.synthetic import synthetic_views
from madakv.bench.timing import against_floor, seconds, speedup, take_turns


@torch.no_grad()
def measure_prefill(subject: Subject, settings: Settings, rates: Rates, case: dict[str, Any]) -> list[Row]:
    """Time prefills, the contenders taking turns; a contender with wrong attention afterwards gets no time.

    Scoring and eviction are timed alone as well, on random keys and values, since a share of a few per cent drowns in
    a prefill's own spread. Where prefills take too long, nothing else is (see `Fill`).
    """
    prompt = subject.prompt(settings.context, settings.batch, settings.shortest)
    floor = subject.cost.prefill(prompt.lengths).floor(rates)
    methods = [Evicted(method) for method in settings.methods]
    read = how(subject, settings, prompt, rates) == "prefill"
    rows = _prefills(subject, prompt, methods, settings.repeats, floor, case) if read else {}
    if prompt.modality is None:
        return list(rows.values())
    whole = rows[BASELINE].figures.get("ms") if read else None
    works = _evictions(subject, prompt, methods)
    for work in works:
        work()
    for contender, times in zip(methods, take_turns(works, settings.repeats), strict=True):
        row = rows.get(contender.label) or Row(case, contender.label, {}, {"described": contender.described})
        alone = median(times) * 1e3
        figures = {
            **row.figures,
            "evict_ms": alone,
            "floor_ms": floor * 1e3,
            "evict_floor_share": alone / floor / 1e3,
        }
        if whole is not None:
            figures["evict_share"] = alone / whole
        if row.refused is None:
            rows[contender.label] = replace(row, figures=figures)
    return list(rows.values())


def _prefills(
    subject: Subject,
    prompt: Prompt,
    methods: Sequence[Contender],
    repeats: int,
    floor: float,
    case: dict[str, Any],
) -> dict[str, Row]:
    """Whole prefills, by label, the baseline first."""
    rows: dict[str, Row] = {}
    runs: dict[str, Callable[[], float]] = {}
    base = None
    for contender in (baseline(), *methods):
        # Also warms up.
        with contender.inside(subject) as run:
            read = contender.read(subject, prompt, 1, run)
        output = Decoding(subject, prompt, contender, read, 1).first()
        base = output if base is None else base
        error, refused = check(subject, contender, read.cache, output, base)
        figures = {} if error is None else {"error": error}
        details = {"described": contender.described}
        rows[contender.label] = Row(case, contender.label, figures, details, refused)
        if refused is None:
            runs[contender.label] = _timer(contender, subject, prompt)
    times = dict(zip(runs, take_turns(list(runs.values()), repeats), strict=True))
    for label, own in times.items():
        figures = {
            **rows[label].figures,
            **against_floor(own, floor),
            "ms_least": min(own) * 1e3,
            "ms_most": max(own) * 1e3,
            "tokens_per_s": sum(prompt.lengths) / median(own),
            "added": 1 / speedup(times[BASELINE], own) - 1,
        }
        rows[label] = replace(rows[label], figures=figures)
    return rows


def _evictions(subject: Subject, prompt: Prompt, methods: Sequence[Contender]) -> list[Callable[[], float]]:
    """Scoring, deciding and copying out of all layers, each of which sees the same random keys and values."""
    one = replace(subject.cost, layers=1)
    views = synthetic_views(one, prompt, dtype=subject.dtype, device=subject.device) * subject.cost.layers

    def timed(contender: Contender) -> float:
        with contender.inside(subject) as run:
            return seconds(lambda: contender.fill(subject, views, 1, run), subject.device)

    return [partial(timed, contender) for contender in methods]


def grown(before: Sequence[Row], rows: Sequence[Row]) -> list[Row]:
    """The rows, with the powers of the context that a contender's times grew with since the case before."""
    shorter = {row.contender: row for row in before}
    more = []
    for row in rows:
        figures = dict(row.figures)
        for power, time in (("growth", "ms"), ("evict_growth", "evict_ms")):
            found = growth(shorter[row.contender], row, time) if row.contender in shorter else None
            if found is not None:
                figures[power] = found
        more.append(replace(row, figures=figures))
    return more


def growth(shorter: Row, longer: Row, time: str = "ms") -> float | None:
    """The power of the context that a time grew with, between two cases; None if one of them has no such time."""
    contexts = longer.case["context"] / shorter.case["context"]
    if time not in shorter.figures or time not in longer.figures or contexts <= 1:
        return None
    return log(longer.figures[time] / shorter.figures[time]) / log(contexts)


def _timer(contender: Contender, subject: Subject, prompt: Prompt) -> Callable[[], float]:
    def timed() -> float:
        read: list[Read] = []
        with torch.no_grad(), contender.inside(subject) as run:
            return seconds(lambda: read.append(contender.read(subject, prompt, 1, run)), subject.device)

    return timed
