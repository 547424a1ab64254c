"""`madakv bench prefill`: time to read a prompt, with eviction and without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import log
from statistics import median
from typing import Any

import torch

from madakv.bench.contenders import BASELINE, Contender, Evicted, Read, baseline
from madakv.bench.decode import check
from madakv.bench.decoding import Decoding
from madakv.bench.prompt import Prompt
from madakv.bench.results import Row
from madakv.bench.roofline import Rates
from madakv.bench.settings import Settings
from madakv.bench.subject import Subject
from madakv.bench.timing import seconds, speedup, take_turns


@torch.no_grad()
def measure_prefill(subject: Subject, settings: Settings, rates: Rates, case: dict[str, Any]) -> list[Row]:
    """Time prefills, the contenders taking turns; a contender with wrong attention afterwards gets no time."""
    prompt = subject.prompt(settings.context, settings.batch, settings.shortest)
    rows: dict[str, Row] = {}
    runs: dict[str, Callable[[], float]] = {}
    chosen = [baseline(), *map(Evicted, settings.methods)]
    base = None
    for contender in chosen:
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
    times = dict(zip(runs, take_turns(list(runs.values()), settings.repeats), strict=True))
    floor = subject.cost.prefill(prompt.lengths).floor(rates)
    for label, own in times.items():
        middle = median(own)
        figures = {
            **rows[label].figures,
            "ms": middle * 1e3,
            "ms_least": min(own) * 1e3,
            "ms_most": max(own) * 1e3,
            "tokens_per_s": sum(prompt.lengths) / middle,
            "added": 1 / speedup(times[BASELINE], own) - 1,
            "floor_ms": floor * 1e3,
            "over_floor": middle / floor,
        }
        rows[label] = replace(rows[label], figures=figures)
    return list(rows.values())


def growth(shorter: Row, longer: Row) -> float | None:
    """The power of the context that a contender's time grew with, between two cases; None if there are no times."""
    contexts = longer.case["context"] / shorter.case["context"]
    if "ms" not in shorter.figures or "ms" not in longer.figures or contexts <= 1:
        return None
    return log(longer.figures["ms"] / shorter.figures["ms"]) / log(contexts)


def _timer(contender: Contender, subject: Subject, prompt: Prompt) -> Callable[[], float]:
    def timed() -> float:
        read: list[Read] = []
        with torch.no_grad(), contender.inside(subject) as run:
            return seconds(lambda: read.append(contender.read(subject, prompt, 1, run)), subject.device)

    return timed
