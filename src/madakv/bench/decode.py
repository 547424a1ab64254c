"""`madakv bench decode`: time per new token, with every cache in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor

from madakv.bench.check import TOLERANCE, attention_error, largest, products_error, refusal, relative_rms
from madakv.bench.contenders import BASELINE, STATIC, Contender, Read, contenders, live_bytes
from madakv.bench.decoding import Decoding
from madakv.bench.machine import in_turn, reading
from madakv.bench.prompt import Prompt
from madakv.bench.results import Row
from madakv.bench.roofline import Rates
from madakv.bench.settings import Settings
from madakv.bench.subject import Subject
from madakv.bench.synthetic import synthetic_views
from madakv.bench.timing import against_floor, speedup, take_turns
from madakv.hf.cache import RaggedCache
from madakv.kept import Kept
from madakv.linears import MOST_ROWS
from madakv.scoring import LayerView

_PATIENCE = 20.0
"""Seconds that the floor of one prefill may take before caches are filled without the model."""


@torch.no_grad()
def measure_decode(subject: Subject, settings: Settings, rates: Rates, case: dict[str, Any]) -> list[Row]:
    """Time decoding after a prompt, the contenders taking turns.

    A contender gets no time if its attention differs from the reference, or its first token from the baseline's.
    """
    prompt = subject.prompt(settings.context, settings.batch, settings.shortest)
    filled = how(subject, settings, prompt, rates)
    views = (
        synthetic_views(subject.cost, prompt, dtype=subject.dtype, device=subject.device)
        if filled == "synthetic"
        else None
    )
    rows: dict[str, Row] = {}
    runs: dict[str, Decoding] = {}
    base: Tensor | None = None
    chosen, _ = contenders(
        subject.model.config,
        settings.methods,
        rivals=settings.rivals,
        timed=subject,
        fast_linears=settings.fast_linears,
    )
    for contender in chosen:
        room = 1 + contender.settling + settings.tokens * settings.repeats
        run = Decoding(subject, prompt, contender, _read(contender, subject, prompt, views, room), room)
        first = run.first()
        base = first if base is None else base
        error, refused = check(subject, contender, run.read.cache, first, base)
        figures, details = (
            {"error": error} if error is not None else {},
            {"filled": filled, "described": contender.described},
        )
        rows[contender.label] = Row(case, contender.label, figures, details, refused)
        if refused is None:
            run.run(contender.settling)
            runs[contender.label] = run
    del views
    blocks = [_block(run, settings.tokens) for run in runs.values()]
    *turns, reads = take_turns([*blocks, reading(subject.device)], settings.repeats)
    rates = in_turn(rates, reads)
    times = dict(zip(runs, turns, strict=True))
    floors = {
        contender.label: subject.cost.decode(
            _bytes_read(subject, prompt, contender, runs[contender.label]), settings.batch
        ).floor(rates)
        for contender in chosen
        if contender.label in runs
    }
    for contender in chosen:
        if contender.label in runs:
            run = runs[contender.label]
            timed = _figures(contender, times, floors, settings.batch)
            row = rows[contender.label]
            figures = {**row.figures, **timed, "bandwidth": rates.bandwidth, **_memory(subject, prompt, run.read)}
            rows[contender.label] = replace(row, figures=figures)
    return list(rows.values())


def check(
    subject: Subject, contender: Contender, cache: Any, output: Tensor, base: Tensor
) -> tuple[float | None, str | None]:
    """The relative RMS error of a contender, if it can be told, and why it is refused, if it is.

    Args:
        subject: the model.
        contender: whose results these are.
        cache: has read the prompt and one token.
        output: [B, X] of that token.
        base: the baseline's.
    """
    tolerance = TOLERANCE[subject.dtype]
    error = None
    if isinstance(cache, RaggedCache):
        error = attention_error(cache, subject.cost.query_heads)
        refused = refusal(error, tolerance, "the attention reference")
        if refused is not None:
            return error, refused
    if contender.fast_linears:
        products = products_error(subject.model, min(output.shape[0], MOST_ROWS))
        error, refused = largest([error or 0.0, products]), refusal(products, tolerance, "products in fp64")
        if refused is not None:
            return error, refused
    if contender.exact:
        # Each layer rounds anew: over L layers errors add up as a random walk does.
        allowed = tolerance * subject.cost.layers**0.5
        drift = relative_rms(output, base)
        return largest([drift, error or 0.0]), refusal(drift, allowed, f"{BASELINE}'s output")
    return error, None


def how(subject: Subject, settings: Settings, prompt: Prompt, rates: Rates) -> str:
    """Whether caches are filled by a "prefill" or "synthetic", see `Fill`."""
    if settings.fill != "auto":
        return settings.fill
    slow = subject.cost.prefill(prompt.lengths).floor(rates) > _PATIENCE
    return "synthetic" if slow and prompt.modality is not None else "prefill"


def _read(
    contender: Contender, subject: Subject, prompt: Prompt, views: Sequence[LayerView] | None, room: int
) -> Read:
    with contender.inside(subject) as run:
        if views is None:
            return contender.read(subject, prompt, room, run)
        return contender.fill(subject, views, room, run)


def _block(run: Decoding, tokens: int) -> Callable[[], float]:
    return lambda: run.run(tokens) / tokens


def kept_entries(subject: Subject, prompt: Prompt, kept: Kept | None) -> int:
    """KV entries of the prompt that stay, over all layers, rows and heads; padding left out."""
    if kept is None:
        return subject.cost.entries(sum(prompt.lengths))
    return int(kept.counts.sum())


def _bytes_read(subject: Subject, prompt: Prompt, contender: Contender, run: Decoding) -> float:
    """KV bytes that a step must read, in the middle of the timed ones."""
    cost = subject.cost
    if run.read.kept is None and not contender.exact:
        # Quantised: what it stores is what it must read.
        return live_bytes(run.read.cache)
    entries = kept_entries(subject, prompt, run.read.kept) + cost.entries(run.tokens // 2) * len(prompt.lengths)
    return float(entries * cost.entry_bytes)


def _figures(
    contender: Contender, turns: Mapping[str, Sequence[float]], floors: Mapping[str, float], batch: int
) -> dict[str, float]:
    """Of seconds per token, round by round, by label; ratios are to the caches that differ in nothing else."""
    times, floor = turns[contender.label], floors[contender.label]
    full, static = contender.like(BASELINE), contender.like(STATIC)
    ratios = {}
    if full in turns:
        ratios = {"speedup": speedup(turns[full], times), "floor_speedup": floors[full] / floor}
    if static in turns:
        ratios["speedup_static"] = speedup(turns[static], times)
    return {
        **against_floor(times, floor),
        "ms_mean": fmean(times) * 1e3,
        "ms_least": min(times) * 1e3,
        "ms_most": max(times) * 1e3,
        "tokens_per_s": batch / median(times),
        **ratios,
    }


def _memory(subject: Subject, prompt: Prompt, read: Read) -> dict[str, float]:
    figures = {
        "kv_bytes": float(live_bytes(read.cache)),
        "kept_share": kept_entries(subject, prompt, read.kept) / subject.cost.entries(sum(prompt.lengths)),
    }
    if read.kept is not None:
        counts = read.kept.counts.sum(-1).to(torch.float64)
        figures["longest_head"] = float((counts.amax(-1) / counts.mean(-1)).mean())
    return figures
