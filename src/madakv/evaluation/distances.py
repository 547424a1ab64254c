"""Run the distance of methods from the full cache, and of the oracle at their bytes, over a suite."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from madakv.evaluation.distance import ORACLES, errors, oracle_plans, plans_of, read_with_answer, scores_of
from madakv.evaluation.documents.presentation import presentation_for
from madakv.evaluation.records import of_other_models, open_results
from madakv.evaluation.runner import Progress
from madakv.evaluation.suites import suite
from madakv.fingerprint import of_model
from madakv.hf.replay import ReadPrompt
from madakv.markdown import budget_text, markdown_table
from madakv.methods import Method
from madakv.prompts import model_inputs

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DistanceRow:
    """One method on one sample.

    Attributes:
        method: repr, budget included.
        label, budget: see `Row`.
        dataset, sample: see `Row`.
        errors: relative error of the attention output, per layer.
        oracle: mean error over layers when the oracle decides, by what it decides (`ORACLES`).
        model_fingerprint: see `Row`.
    """

    method: str
    label: str
    budget: float | int
    dataset: str
    sample: str
    errors: list[float]
    oracle: dict[str, float]
    model_fingerprint: str = ""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What is measured once."""
        return self.model_fingerprint, self.method, self.dataset, self.sample


def run_distances(
    model: Any,
    processor: Any,
    *,
    suite_name: str,
    model_name: str,
    methods: Sequence[Method],
    samples: int,
    seed: int,
    out: Path,
    progress: Progress,
    fingerprint: str | None = None,
) -> list[DistanceRow]:
    """Measure every method on every sample; args and resuming as `run_samples`. No second turns, no losses."""
    tokenizer = getattr(processor, "tokenizer", processor)
    drawn = suite(suite_name)(samples, seed, presentation_for(processor))
    todo = [sample for sample in drawn if sample.follow_up is None and sample.following is None]
    settings = {"measures": "distance", "suite": suite_name, "model": model_name, "seed": seed}
    own = of_model(model, processor) if fingerprint is None else fingerprint
    with open_results(out, settings, DistanceRow, about={"model_fingerprint": own}) as (rows, append):
        if said := of_other_models(((model_name, row.model_fingerprint) for row in rows), model_name, own, out):
            logger.warning(said)
        done = {row.key for row in rows}
        wanted = {(own, repr(method), sample.dataset, sample.id) for method in methods for sample in todo}
        finished = len(done & wanted)
        progress(finished, len(wanted))
        for sample in todo:
            left = [method for method in methods if (own, repr(method), sample.dataset, sample.id) not in done]
            if not left:
                continue
            inputs = model_inputs(processor, sample.prompt, sample.pictures()).to(model.device)
            answer = tokenizer(sample.gold, add_special_tokens=False)["input_ids"]
            layers = read_with_answer(model, inputs, answer)
            prompt = ReadPrompt.of(model, inputs)
            for method in left:
                plans = plans_of(layers, method, scores_of(model, prompt, method))
                row = DistanceRow(
                    method=repr(method),
                    label=method.label,
                    budget=method.budget,
                    dataset=sample.dataset,
                    sample=sample.id,
                    errors=errors(layers, plans, method),
                    oracle={name: mean(errors(layers, oracle_plans(layers, plans, name))) for name in ORACLES},
                    model_fingerprint=own,
                )
                append(row)
                rows.append(row)
                finished += 1
                progress(finished, len(wanted))
    return [row for row in rows if row.key in wanted]


def distance_table(rows: Sequence[DistanceRow]) -> str:
    """A Markdown table: one line per method, one column per layer, and what the oracle would still gain."""
    layers = len(rows[0].errors) if rows else 0
    head = ["method", "budget", *(f"layer {number}" for number in range(layers)), "mean"]
    head += [f"oracle: {name}" if i == 0 else f"+ {name}" for i, name in enumerate(ORACLES)]
    body = []
    for method in dict.fromkeys(row.method for row in rows):
        own = [row for row in rows if row.method == method]
        per_layer = [mean(row.errors[number] for row in own) for number in range(layers)]
        cells = [*per_layer, mean(per_layer), *(mean(row.oracle[name] for row in own) for name in ORACLES)]
        body.append([f"`{own[0].label}`", budget_text(own[0].budget), *(f"{cell:.3f}" for cell in cells)])
    return markdown_table(head, body)
