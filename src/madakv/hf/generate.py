"""`generate` with madakv's cache, refusing what cannot be combined with it."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from transformers import PreTrainedModel

from madakv.hf.cache import RaggedCache
from madakv.hf.draft import generate_with_draft
from madakv.hf.options import STATIC, cache_implementation, check_cache, check_generation_options, room_for
from madakv.hf.record import finish
from madakv.hf.supported import check_preparation
from madakv.run import Run


def guarded(model: PreTrainedModel, run: Run) -> Callable[..., Any]:
    """The model's `generate` inside the block of a run."""
    generate: Callable[..., Any] = model.generate  # type: ignore[assignment]

    @functools.wraps(generate)
    def call(inputs: Any = None, generation_config: Any = None, *args: Any, **kwargs: Any) -> Any:
        named = list(inspect.signature(generate).parameters)[2:]
        kwargs = dict(zip(named, args, strict=False)) | kwargs
        default = model.generation_config
        check_preparation(model)
        fixed = cache_implementation(kwargs, generation_config) == STATIC
        check_generation_options(kwargs, generation_config, default)
        check_cache(kwargs.get("past_key_values"))
        cache: RaggedCache | None = kwargs.pop("past_key_values", None)
        kwargs.pop("cache_implementation", None)
        room = room_for(inputs, cache, kwargs, generation_config, default) if fixed else None
        kwargs["generation_config"] = _without_cache(generation_config)
        with ExitStack() as stack:

            def fresh() -> RaggedCache:
                cache = run_cache(model, run, room=room)
                stack.enter_context(cache.in_generate())
                return cache

            if cache is None and run.method.draft:
                ids = kwargs.pop("input_ids", None) if inputs is None else inputs
                return generate_with_draft(model, generate, ids, fresh, run.method.draft, **kwargs)
            if cache is None:
                cache = fresh()
            else:
                stack.enter_context(cache.in_generate())
            cache.reserve(room)
            out = generate(inputs, past_key_values=cache, **kwargs)
            finish(cache, run)
        return out

    return call


def run_cache(model: Any, run: Run, *, room: int | None = None) -> RaggedCache:
    """An empty cache for a prompt of a run's block."""
    return RaggedCache(model.config, run.method, room=room, trigger=run.trigger, store=run.store)


def _without_cache(config: Any) -> Any:
    """The call's own settings, without the kind of cache that they name: ours takes its place."""
    if getattr(config, "cache_implementation", None) is None:
        return config
    config = copy.copy(config)
    config.cache_implementation = None
    return config
