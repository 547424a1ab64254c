"""`madakv bench memory`: bytes of the cache after the prompt and later, and the most while the prompt is read."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from madakv.bench.contenders import BASELINE, Contender, Evicted, contenders, live_bytes
from madakv.bench.decode import kept_entries
from madakv.bench.decoding import Decoding
from madakv.bench.live import Peak, peak_memory
from madakv.bench.prompt import Prompt
from madakv.bench.results import Row
from madakv.bench.settings import Settings
from madakv.bench.subject import Subject
from madakv.budget.entries import prompt_entries


@torch.no_grad()
def measure_memory(subject: Subject, settings: Settings, case: dict[str, Any]) -> list[Row]:
    """Measure one contender after the other, each on its own.

    The cache's part of a prefill's peak is told in two ways, both in layers of full keys and values beyond what is
    kept. `work_layers` counts the storages that are there for the cache's sake, whatever else is alive
    (`LiveStorages.cache`). `extra_layers` is what the whole process needs more at its peak than the same pass without
    a cache: less, and below zero, where what the cache needs for a moment is gone by the time that the activations
    are at their largest.
    """
    prompt = subject.prompt(settings.context, settings.batch, settings.shortest)
    chosen, _ = contenders(subject.model.config, settings.methods, rivals=settings.rivals)
    with _peak(subject, prompt) as bare:
        subject.output(**prompt.inputs, use_cache=False)
    figures = {contender.label: _measure(contender, subject, prompt, settings.tokens, bare) for contender in chosen}
    full = figures[BASELINE]
    rows = []
    for contender in chosen:
        own = figures[contender.label]
        ratios = {"kv_ratio": own["kv_bytes"] / full["kv_bytes"], "peak_ratio": own["peak"] / full["peak"]}
        rows.append(Row(case, contender.label, {**own, **ratios}, {"described": contender.described}))
    return rows


def _measure(contender: Contender, subject: Subject, prompt: Prompt, tokens: int, bare: Peak) -> dict[str, float]:
    """The figures of one contender.

    Args:
        tokens: to read after the prompt.
        bare: of the same pass without a cache.
    """
    entry = subject.cost.entry_bytes
    with _peak(subject, prompt) as peak, contender.inside(subject) as run:
        read = contender.read(subject, prompt, tokens, run)
    after_prompt = live_bytes(read.cache)
    needed = kept_entries(subject, prompt, read.kept) * entry
    layer = subject.cost.entries(len(prompt.lengths) * prompt.width) * entry / subject.cost.layers
    answer = Decoding(subject, prompt, contender, read, tokens)
    slack = 0.0
    for token in range(1, tokens + 1):
        answer.run(1)
        used = needed + subject.cost.entries(token * len(prompt.lengths)) * entry
        slack = max(slack, live_bytes(read.cache) / used - 1)
    figures = {
        "kv_bytes": float(after_prompt),
        "kv_bytes_later": float(live_bytes(read.cache)),
        "tokens_later": float(tokens),
        "slack": slack,
        "peak": float(peak.bytes),
        "work_layers": (peak.cache_bytes - after_prompt) / layer,
        "extra_layers": (peak.bytes - bare.bytes - after_prompt) / layer,
        "floor_bytes": float(needed),
        "over_floor": after_prompt / needed,
    }
    if isinstance(contender, Evicted):
        per_head = int(prompt_entries(contender.method.budget, torch.tensor(prompt.lengths)).sum())
        figures["over_budget"] = after_prompt / (subject.cost.entries(per_head) * entry)
    return figures


def _peak(subject: Subject, prompt: Prompt) -> AbstractContextManager[Peak]:
    """Measure a pass over the prompt; weights and inputs are there already."""
    there = [*subject.model.parameters(), *subject.model.buffers()]
    there += [x for x in {**prompt.inputs, **prompt.told}.values() if isinstance(x, torch.Tensor)]
    return peak_memory(subject.device, there)
