"""`madakv bench memory`: bytes of the cache after the prompt and later, and the most while the prompt is read."""

from __future__ import annotations

from typing import Any

import torch

from madakv.bench.contenders import BASELINE, Contender, contenders, live_bytes
from madakv.bench.decode import kept_entries
from madakv.bench.decoding import Decoding
from madakv.bench.live import peak_memory
from madakv.bench.prompt import Prompt
from madakv.bench.results import Row
from madakv.bench.settings import Settings
from madakv.bench.subject import Subject


@torch.no_grad()
def measure_memory(subject: Subject, settings: Settings, case: dict[str, Any]) -> list[Row]:
    """Measure one contender after the other, each on its own."""
    prompt = subject.prompt(settings.context, settings.batch, settings.shortest)
    chosen, _ = contenders(subject.model.config, settings.methods, rivals=settings.rivals)
    figures = {contender.label: _measure(contender, subject, prompt, settings.tokens) for contender in chosen}
    full = figures[BASELINE]
    rows = []
    for contender in chosen:
        own = figures[contender.label]
        ratios = {"kv_ratio": own["kv_bytes"] / full["kv_bytes"], "peak_ratio": own["peak"] / full["peak"]}
        rows.append(Row(case, contender.label, {**own, **ratios}, {"described": contender.described}))
    return rows


def _measure(contender: Contender, subject: Subject, prompt: Prompt, tokens: int) -> dict[str, float]:
    there = [*subject.model.parameters(), *subject.model.buffers()]
    there += [x for x in {**prompt.inputs, **prompt.told}.values() if isinstance(x, torch.Tensor)]
    with peak_memory(subject.device, there) as peak, contender.inside(subject) as run:
        read = contender.read(subject, prompt, tokens, run)
    after_prompt = live_bytes(read.cache)
    needed = kept_entries(subject, prompt, read.kept) * subject.cost.entry_bytes
    Decoding(subject, prompt, contender, read, tokens).run(tokens)
    return {
        "kv_bytes": float(after_prompt),
        "kv_bytes_later": float(live_bytes(read.cache)),
        "tokens_later": float(tokens),
        "peak": float(peak.bytes),
        "floor_bytes": float(needed),
        "over_floor": after_prompt / needed,
    }
