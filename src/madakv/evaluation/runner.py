"""Run methods over a suite: every method on the same samples, resumable at any point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from madakv.answering import answer
from madakv.evaluation.records import Row, open_results
from madakv.evaluation.suites import Sample, suite
from madakv.methods import Method
from madakv.prompts import model_inputs

Progress = Callable[[int, int], None]
"""Called with (answers done, answers in all)."""


def run_suite(
    model: Any,
    processor: Any,
    *,
    suite_name: str,
    model_name: str,
    methods: Sequence[Method],
    samples: int,
    seed: int,
    out: Path,
    max_new_tokens: int,
    progress: Progress,
) -> list[Row]:
    """Answer every sample with every method; rows already in `out` are not done again.

    Args:
        model, processor: as from `madakv.loading.load`.
        suite_name: see `madakv.evaluation.suites`.
        model_name: for the record.
        methods: method objects, budgets set.
        samples: how many documents the suite makes.
        seed: of the first document.
        out: folder of results.
        max_new_tokens: most tokens of an answer.
        progress: called after every answer.

    Returns:
        All rows of these methods, earlier ones included.
    """
    todo = list(suite(suite_name)(samples, seed))
    settings = {"suite": suite_name, "model": model_name, "seed": seed, "max_new_tokens": max_new_tokens}
    with open_results(out, settings) as (rows, append):
        done = {(row.method, row.sample) for row in rows}
        total = len(todo) * len(methods)
        wanted = {(repr(method), sample.id) for method in methods for sample in todo}
        finished = len(done & wanted)
        progress(finished, total)
        for sample in todo:
            left = [method for method in methods if (repr(method), sample.id) not in done]
            if not left:
                continue
            inputs = model_inputs(processor, sample.prompt, sample.images).to(model.device)
            for method in left:
                row = _answer_row(model, processor, inputs, method, sample, max_new_tokens)
                append(row)
                rows.append(row)
                finished += 1
                progress(finished, total)
    return [row for row in rows if (row.method, row.sample) in wanted]


def _answer_row(model: Any, processor: Any, inputs: Any, method: Method, sample: Sample, max_new_tokens: int) -> Row:
    given = answer(model, processor, inputs, method, max_new_tokens=max_new_tokens)
    if given.kept is None:
        raise RuntimeError("generation ended without a prefill")
    return Row(
        method=repr(method),
        sample=sample.id,
        kind=sample.kind,
        gold=sample.gold,
        answer=given.text,
        correct=given.text == sample.gold,
        prompt_tokens=sum(given.kept.prompt_tokens.values()),
        kept_share=given.kept.kept_share,
        kv_bytes=given.kept.kv_bytes,
        kv_bytes_full=given.kept.kv_bytes_full,
    )
