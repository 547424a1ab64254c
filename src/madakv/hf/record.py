"""After each pass: decide what is due, and note what was kept."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cache

from transformers import Cache

from madakv.hf.cache import RaggedCache
from madakv.kept import Kept
from madakv.run import Run

logger = logging.getLogger(__name__)


def record(cache: RaggedCache, run: Run) -> None:
    """Decide what is open on a cache, and note what was kept."""
    plans = cache.decide()
    if cache.prompt is None:
        raise RuntimeError("a prompt was read that nobody announced")
    run.recording = cache.recording
    cache.kept = run.last = Kept(
        method=repr(cache.method),
        layers=cache.evicted_layers,
        plans=tuple(plan.to("cpu") for plan in plans),
        modality=cache.prompt.modality.to("cpu"),
        kv_bytes=cache.prompt_nbytes,
        kv_bytes_full=cache.full_nbytes,
        other_bytes=cache.other_nbytes,
    )


def finish(cache: Cache, run: Run) -> None:
    """Evict what still waits for more tokens: the answer was shorter than the lookahead."""
    if isinstance(cache, RaggedCache) and cache.reads_prompt:
        record(cache, run)


@cache
def _say_once() -> None:
    logger.warning(
        "tokens that are read several in one pass behind the prompt are kept whole, and counted in "
        "run.last.later_tokens: only what the first pass on a cache reads is evicted. A prompt that is read in "
        "chunks has to be read in one pass instead"
    )


def note_kept_whole(run: Run, tokens: int) -> None:
    """Note that a pass of several tokens behind the prompt is kept whole: a next turn, or a chunk made by hand."""
    if run.last is None:
        return
    _say_once()
    run.last = replace(run.last, later_tokens=run.last.later_tokens + tokens)
