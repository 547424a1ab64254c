"""Run methods over samples: every method on the same ones, resumable at any point, whatever fails on the way."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Cache

from madakv.api import evict
from madakv.errors import (
    ConfigurationError,
    MissingExtraError,
    UnsupportedModelError,
    UnsupportedOptionError,
)
from madakv.evaluation.records import Key, Row, latest, of_other_models, open_results
from madakv.evaluation.samples import Sample, Verdict, inputs_of
from madakv.evaluation.workers import WHOLE, Shard
from madakv.fingerprint import of_model
from madakv.hf.record import finish
from madakv.hf.replay import ReadPrompt, continue_greedily, end_ids, loss_on, prefill, read_more
from madakv.methods import Method
from madakv.prompts import follow_up_ids
from madakv.run import Run

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with (answers done, answers in all)."""

_OF_THE_RUN = (UnsupportedOptionError, UnsupportedModelError, ConfigurationError, MissingExtraError)
"""What every sample would raise, so that the run ends."""


@dataclass(frozen=True)
class Asked:
    """What all answers of a run have in common.

    Attributes:
        model_name: for the record.
        fingerprint: of the model.
        max_new_tokens: most tokens of an answer.
    """

    model_name: str
    fingerprint: str
    max_new_tokens: int

    def key(self, method: Method, sample: Sample) -> Key:
        """That of the row with this answer, see `Row.key`."""
        return self.model_name, self.fingerprint, repr(method), sample.dataset, sample.id


def run_samples(
    model: Any,
    processor: Any,
    *,
    samples: Sequence[Sample],
    settings: dict[str, Any],
    model_name: str,
    methods: Sequence[Method],
    out: Path,
    max_new_tokens: int,
    progress: Progress,
    fingerprint: str | None = None,
    shard: Shard = WHOLE,
    retry_failed: bool = False,
) -> list[Row]:
    """Answer every sample with every method; rows already in `out` are not done again.

    Each prompt is read once, and every method evicts from that same prefill; a model with layers that are not
    evicted reads it for each method. A sample that fails is written down as failed, and the run goes on.

    Args:
        model, processor: as from `madakv.loading.load`.
        samples: of all shards.
        settings: what must agree for rows of one folder to be comparable.
        model_name: for the record.
        methods: method objects, budgets set.
        out: folder of results; it may hold those of other models.
        max_new_tokens: most tokens of an answer.
        progress: called after every answer.
        fingerprint: of the model, see `madakv.fingerprint`; None takes that of what is in memory. Rows of another
            one are left as they are, and answered again.
        shard: which share of the samples is answered here.
        retry_failed: do failed samples of earlier runs again.

    Returns:
        One row per sample of this shard and method, earlier ones included.
    """
    todo = [sample for number, sample in enumerate(samples) if shard.of(number)]
    asked = Asked(model_name, of_model(model, processor) if fingerprint is None else fingerprint, max_new_tokens)
    wanted = {asked.key(method, sample) for method in methods for sample in todo}
    settings = settings | {"max_new_tokens": max_new_tokens}
    about = {
        "model": asked.model_name,
        "model_fingerprint": asked.fingerprint,
        "methods": [repr(method) for method in methods],
    }
    with open_results(out, settings, Row, about=about, shard=shard) as (rows, append):
        _check_same_data(rows, samples, out)
        models = ((row.model, row.model_fingerprint) for row in rows)
        if said := of_other_models(models, asked.model_name, asked.fingerprint, out):
            logger.warning(said)
        done = {row.key for row in latest(rows) if row.error is None or not retry_failed} & wanted
        finished = len(done)
        progress(finished, len(wanted))
        for sample in todo:
            left = [method for method in methods if asked.key(method, sample) not in done]
            for row in _rows_of(model, processor, asked, sample, left):
                append(row)
                rows.append(row)
                finished += 1
                progress(finished, len(wanted))
    return [row for row in latest(rows) if row.key in wanted]


def _check_same_data(rows: Sequence[Row], samples: Sequence[Sample], out: Path) -> None:
    asked = {(sample.dataset, sample.id): sample.fingerprint for sample in samples}
    for row in rows:
        wanted = asked.get((row.dataset, row.sample), row.fingerprint)
        # What failed may have been repaired since.
        if row.error is None and wanted != row.fingerprint:
            raise ConfigurationError(
                f"{out} holds answers to other data: sample {row.sample} of {row.dataset} asked something else then; "
                "choose another --out"
            )


def _rows_of(model: Any, processor: Any, asked: Asked, sample: Sample, methods: Sequence[Method]) -> Iterator[Row]:
    """A row per method. A function of its own, so that a prompt is gone before the next one is read."""
    if methods:
        prompt = _Prompt(model, processor, sample)
        for method in methods:
            yield _attempt(model, processor, prompt, asked, method, sample)


def _ends_the_run(error: Exception) -> bool:
    # After an error of the device itself, nothing works on it any more.
    broken = isinstance(error, torch.AcceleratorError) and not isinstance(error, torch.OutOfMemoryError)
    return broken or isinstance(error, _OF_THE_RUN)


class _Prompt:
    """A sample's prompt as far as it could be read.

    Attributes:
        inputs: for the model; None if they could not be made.
        following: ids of the text that follows, whose loss is asked for; empty where a question is.
        read: its prefill for all methods; None if each has to read for itself.
        unread: why.
        error: why there are no inputs.
    """

    def __init__(self, model: Any, processor: Any, sample: Sample) -> None:
        self.inputs: Any = None
        self.following: list[int] = []
        self.read: ReadPrompt | None = None
        self.unread: Exception | None = None
        self.error: str | None = None
        try:
            inputs, self.following = inputs_of(processor, sample)
            self.inputs = inputs.to(model.device)
        except Exception as error:
            # Broken pictures raise anything.
            if _ends_the_run(error):
                raise
            self.error = _reason(error)
            return
        try:
            self.read = ReadPrompt.of(model, self.inputs)
        except Exception as error:
            # Some layer cannot be replayed; or all layers at once are more than memory holds, where a method that
            # evicts on the way may fit. Without its frames, which hold what was read so far.
            if _ends_the_run(error) and not isinstance(error, UnsupportedModelError):
                raise
            self.unread = error.with_traceback(None)
        _free_memory()


def _attempt(
    model: Any,
    processor: Any,
    prompt: _Prompt,
    asked: Asked,
    method: Method,
    sample: Sample,
) -> Row:
    """A row with the answer, or with the reason why there is none."""
    row: dict[str, Any] = dict(
        model=asked.model_name,
        model_fingerprint=asked.fingerprint,
        method=repr(method),
        label=method.label,
        budget=method.budget,
        dataset=sample.dataset,
        sample=sample.id,
        document=sample.document,
        group=sample.group,
        level=sample.level,
        images=sample.images,
        gold=sample.gold,
        fingerprint=sample.fingerprint,
    )
    error = prompt.error
    if error is None:
        try:
            return Row(**row, **_answer(model, processor, prompt, method, sample, asked.max_new_tokens))
        except Exception as raised:
            if _ends_the_run(raised):
                raise
            error = _reason(raised)
        # Outside of the handler, so that what its frames hold is free.
        _free_memory()
    return Row(**row, answer="", scores=dict.fromkeys(sample.scorers, 0.0), error=error)


def _free_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


def _answer(
    model: Any,
    processor: Any,
    prompt: _Prompt,
    method: Method,
    sample: Sample,
    max_new_tokens: int,
) -> dict[str, Any]:
    """What `Row` says of an answer, or of a loss."""
    most = sample.most_tokens or max_new_tokens
    with evict(model, method) as run:
        begun = time.perf_counter()
        cache, logits = _evicted(model, prompt, method, run, most)
        if prompt.read is None:
            begun = time.perf_counter()
        if prompt.following:
            ids = prompt.following
            loss = loss_on(model, cache, logits, ids, one_by_one=method.lookahead)
            finish(cache, run)
            found = dict(answer="", scores={}, loss=loss)
        else:
            ids = _reply(model, processor, prompt, cache, logits, sample, run, most)
            found = _judged(processor, sample, ids)
    kept = run.last
    if kept is None:
        raise RuntimeError("the prompt was never evicted")
    return dict(
        **found,
        prompt_tokens=sum(kept.prompt_tokens.values()),
        kept_share=kept.kept_share,
        kv_bytes=kept.kv_bytes,
        kv_bytes_full=kept.kv_bytes_full,
        new_tokens=len(ids),
        seconds=round(time.perf_counter() - begun, 4),
    )


def _evicted(model: Any, prompt: _Prompt, method: Method, run: Run, most: int) -> tuple[Cache, torch.Tensor]:
    """A cache that has read the prompt by a method, and the logits at its end."""
    if prompt.read is not None:
        return prompt.read.evicted(model, run, max_new_tokens=most), prompt.read.logits
    if method.draft and prompt.unread is not None:
        if not isinstance(prompt.unread, UnsupportedModelError):
            raise prompt.unread
        raise UnsupportedOptionError(
            f"{method.label}: a draft needs full attention in all layers of the model; use lookahead"
        )
    return prefill(model, prompt.inputs)


def _reply(
    model: Any,
    processor: Any,
    prompt: _Prompt,
    cache: Cache,
    logits: torch.Tensor,
    sample: Sample,
    run: Run,
    most: int,
) -> list[int]:
    """The ids of the answer, to the second question where there is one."""
    end = end_ids(model)
    seen = prompt.inputs["input_ids"][0].tolist()
    ids = continue_greedily(model, cache, logits, seen=seen, end=end, max_new_tokens=most)
    finish(cache, run)
    if sample.follow_up is None:
        return ids
    # What ended the first answer was not read, and need not be: where a model wants it, its template has it.
    unread = [token for token in ids[-1:] if token not in end]
    asked = follow_up_ids(processor, sample.follow_up)
    logits = read_more(model, cache, [*unread, *asked])
    seen = [*seen, *ids, *asked]
    return continue_greedily(model, cache, logits, seen=seen, end=end, max_new_tokens=most)


def _judged(processor: Any, sample: Sample, ids: list[int]) -> dict[str, Any]:
    """What `Row` says of an answer's words."""
    answered = getattr(processor, "tokenizer", processor).decode(ids, skip_special_tokens=True).strip()
    try:
        verdict = sample.judge(answered)
    except Exception as error:
        # The answer has cost more than its score, which can be made up for from the row.
        if _ends_the_run(error):
            raise
        verdict = Verdict(dict.fromkeys(sample.scorers, 0.0), _reason(error))
    return dict(answer=answered, scores=dict(verdict.scores), fault=verdict.fault)
