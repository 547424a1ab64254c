"""`generate` with madakv's cache, refusing what cannot be combined with it."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from transformers import PreTrainedModel

from madakv.hf.cache import RaggedCache
from madakv.hf.draft import generate_with_draft
from madakv.hf.options import (
    STATIC,
    cache_implementation,
    check_cache,
    check_generation_options,
    effective,
    room_for,
)
from madakv.hf.record import finish
from madakv.hf.supported import check_preparation
from madakv.kept import Kept
from madakv.recording import Exchange
from madakv.run import Run


def guarded(model: PreTrainedModel, run: Run) -> Callable[..., Any]:
    """The model's `generate` inside the block of a run."""
    generate: Callable[..., Any] = model.generate  # type: ignore[assignment]

    @functools.wraps(generate)
    def call(inputs: Any = None, generation_config: Any = None, *args: Any, **kwargs: Any) -> Any:
        named = list(inspect.signature(generate).parameters)[2:]
        kwargs = dict(zip(named, args, strict=False)) | kwargs
        said = _note(model, run, inputs, kwargs | {"generation_config": generation_config})
        default = model.generation_config
        check_preparation(model)
        fixed = cache_implementation(kwargs, generation_config) == STATIC
        check_generation_options(kwargs, generation_config, default)
        check_cache(kwargs.get("past_key_values"))
        cache: RaggedCache | None = kwargs.pop("past_key_values", None)
        kwargs.pop("cache_implementation", None)
        room = room_for(inputs, cache, kwargs, generation_config, default) if fixed else None
        reads_prompt = cache is None or cache.awaits_prompt
        kwargs["generation_config"] = _without_cache(generation_config)
        with ExitStack() as stack:

            def fresh() -> RaggedCache:
                cache = run_cache(model, run, room=room)
                stack.enter_context(cache.in_generate())
                return cache

            if cache is None and run.method.draft:
                ids = kwargs.pop("input_ids", None) if inputs is None else inputs
                made: list[RaggedCache] = []

                def counted() -> RaggedCache:
                    made.append(fresh())
                    return made[-1]

                out = generate_with_draft(model, generate, ids, counted, run.method.draft, **kwargs)
                return said(out, made[-1].kept)
            if cache is None:
                cache = fresh()
            else:
                stack.enter_context(cache.in_generate())
            cache.reserve(room)
            out = generate(inputs, past_key_values=cache, **kwargs)
            finish(cache, run)
        return said(out, cache.kept) if reads_prompt else out

    return call


def heard(model: PreTrainedModel, run: Run) -> Callable[..., Any]:
    """The model's `generate`, as it is, but for a note of what was said."""
    generate: Callable[..., Any] = model.generate  # type: ignore[assignment]

    @functools.wraps(generate)
    def call(*args: Any, **kwargs: Any) -> Any:
        inputs, config, *_ = (*args, None, None)
        told = kwargs if config is None else {**kwargs, "generation_config": config}
        said, before = _note(model, run, kwargs.get("inputs") if inputs is None else inputs, told), run.last
        out = generate(*args, **kwargs)
        if kwargs.get("past_key_values") is not None:
            return out
        return said(out, None if run.last is before else run.last)

    return call


def _note(
    model: PreTrainedModel, run: Run, inputs: Any, options: Mapping[str, Any]
) -> Callable[[Any, Kept | None], Any]:
    """Hands on what the call returns, once it is noted together with what the call was given."""
    ids = options.get("input_ids") if inputs is None else inputs
    ending = effective("eos_token_id", dict(options), options.get("generation_config"), model.generation_config)
    ends = frozenset(torch.as_tensor([] if ending is None else ending).flatten().tolist())
    given = {name: value for name, value in options.items() if name not in ("inputs", "input_ids")}

    def said(out: Any, kept: Kept | None) -> Any:
        run.exchange = Exchange.of(model, ids, given, out, kept, ends=ends, hold=run.records)
        return out

    return said


def run_cache(model: Any, run: Run, *, room: int | None = None) -> RaggedCache:
    """An empty cache for a prompt of a run's block."""
    return RaggedCache(model.config, run.method, room=room, trigger=run.trigger, store=run.store, records=run.records)


def _without_cache(config: Any) -> Any:
    """The call's own settings, without the kind of cache that they name: ours takes its place."""
    if getattr(config, "cache_implementation", None) is None:
        return config
    config = copy.copy(config)
    config.cache_implementation = None
    return config
