"""Run methods over a suite: every method on the same samples, resumable at any point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from madakv.api import evict
from madakv.errors import UnsupportedModelError, UnsupportedOptionError
from madakv.evaluation.records import Row, open_results
from madakv.evaluation.suites import Sample, suite
from madakv.hf.attach import finish
from madakv.hf.replay import ReadPrompt, continue_greedily, end_ids, prefill, read_more
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

    Each prompt is read once, and every method evicts from that same prefill; a model with layers that are not
    evicted reads it for each method.

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
    todo = list(suite(suite_name)(samples, seed, takes_several_sizes(processor)))
    settings = {"suite": suite_name, "model": model_name, "seed": seed, "max_new_tokens": max_new_tokens}
    with open_results(out, settings, Row) as (rows, append):
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
            prompt = _read_once(model, inputs)
            if prompt is None and (drafting := [method.label for method in left if method.draft]):
                raise UnsupportedOptionError(
                    f"{', '.join(drafting)}: a draft needs full attention in all layers of the model; use lookahead"
                )
            for method in left:
                row = _answer_row(model, processor, inputs, prompt, method, sample, max_new_tokens)
                append(row)
                rows.append(row)
                finished += 1
                progress(finished, total)
    return [row for row in rows if (row.method, row.sample) in wanted]


def takes_several_sizes(processor: Any) -> bool:
    """Whether the model behind a processor reads pictures in their own size."""
    return hasattr(getattr(processor, "image_processor", None), "merge_size")


def _read_once(model: Any, inputs: Any) -> ReadPrompt | None:
    """The prompt's prefill for all methods; None if the model has layers that cannot be replayed."""
    try:
        return ReadPrompt.of(model, inputs)
    except UnsupportedModelError:
        return None


def _answer_row(
    model: Any,
    processor: Any,
    inputs: Any,
    prompt: ReadPrompt | None,
    method: Method,
    sample: Sample,
    max_new_tokens: int,
) -> Row:
    tokenizer = getattr(processor, "tokenizer", processor)
    end = end_ids(model)
    with evict(model, method) as run:
        if prompt is None:
            cache, logits = prefill(model, inputs)
        else:
            cache, logits = prompt.evicted(model, run, max_new_tokens=max_new_tokens), prompt.logits
        ids = continue_greedily(model, cache, logits, end=end, max_new_tokens=max_new_tokens)
        finish(cache, run)
        if sample.follow_up is not None:
            # What ended the first answer was not read, and need not be.
            unread = [token for token in ids[-1:] if token not in end]
            asked = tokenizer(sample.follow_up, add_special_tokens=False)["input_ids"]
            logits = read_more(model, cache, [*unread, *asked])
            ids = continue_greedily(model, cache, logits, end=end, max_new_tokens=max_new_tokens)
    kept = run.last
    if kept is None:
        raise RuntimeError("the prompt was never evicted")
    answered = tokenizer.decode(ids, skip_special_tokens=True).strip()
    return Row(
        method=repr(method),
        label=method.label,
        budget=method.budget,
        sample=sample.id,
        kind=sample.kind,
        gold=sample.gold,
        answer=answered,
        correct=answered == sample.gold,
        prompt_tokens=sum(kept.prompt_tokens.values()),
        kept_share=kept.kept_share,
        kv_bytes=kept.kv_bytes,
        kv_bytes_full=kept.kv_bytes_full,
    )
