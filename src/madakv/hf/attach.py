"""Put a model under eviction for the length of a `with` block, and restore it exactly."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from madakv.errors import (
    NestedEvictionError,
    UnsupportedModelError,
    UnsupportedOptionError,
)
from madakv.hf.attention import norms_behind, register
from madakv.hf.cache import IMPLEMENTATION, RaggedCache
from madakv.hf.compiled import compiled_steps, masks_for_steps
from madakv.hf.draft import generate_with_draft
from madakv.hf.echo import Echo, echo_of
from madakv.hf.kinds import takes_kinds
from madakv.hf.options import (
    STATIC,
    cache_implementation,
    check_cache,
    check_forward_options,
    check_generation_options,
    check_later_pass,
    new_tokens,
    own_cache_implementation,
    room_for,
)
from madakv.hf.supported import check_preparation, check_supported, refuse_compile
from madakv.modality import prompt_modality
from madakv.native import native_linears
from madakv.run import Kept, Run


@contextmanager
def attached(model: Any, run: Run) -> Iterator[None]:
    """Evict every prompt that `model` reads inside the block; see `madakv.evict`."""
    check_supported(model)
    # Made once for its refusals alone: better here than in the middle of the first generation.
    empty = RaggedCache(model.config, run.method)
    echoed = echo_of(run.method, empty, model.config)
    register()
    configs = _attention_configs(model)
    before = [config._attn_implementation for config in configs]
    if IMPLEMENTATION in before:
        raise NestedEvictionError(
            "this model, or one that shares its config, is already inside `madakv.evict`; leave that block first"
        )
    overrides: dict[str, Any] = {
        "generate_batch": _refuse_generate_batch,
        "compile": refuse_compile,
        "__deepcopy__": _refuse_deepcopy,
        "__reduce_ex__": _refuse_pickle,
    }
    before_pass = _Prepare(model, run)
    overrides["get_compiled_call"] = compiled_steps(model, model.get_compiled_call, before_pass, before_pass.done)
    if callable(getattr(model, "generate", None)):
        overrides["generate"] = _guarded(model, model.generate, run)
        prepare = takes_kinds(model.prepare_inputs_for_generation, model.forward)
        overrides["prepare_inputs_for_generation"] = masks_for_steps(prepare)
    own = {name: model.__dict__[name] for name in overrides if name in model.__dict__}
    hooks = []
    try:
        for config in configs:
            config._attn_implementation_internal = IMPLEMENTATION
        hooks.append(model.register_forward_pre_hook(before_pass, with_kwargs=True))
        hooks.append(model.register_forward_hook(_Record(run), with_kwargs=True))
        hooks.append(model.get_decoder().register_forward_pre_hook(_require_cache, with_kwargs=True))
        if echoed:
            echo = Echo(echoed, model.config, optional=run.method.echo_is_optional)
            hooks.append(model.get_decoder().register_forward_pre_hook(echo.before, with_kwargs=True))
            hooks.append(model.get_decoder().register_forward_hook(echo.after, with_kwargs=True))
        model.__dict__.update(overrides)
        with native_linears(model):
            yield
    finally:
        for hook in hooks:
            hook.remove()
        for name in overrides:
            model.__dict__.pop(name, None)
        model.__dict__.update(own)
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation_internal = implementation


class _Prepare:
    """Before each forward pass: see to it that there is a cache, and tell it of a new prompt."""

    def __init__(self, model: PreTrainedModel, run: Run) -> None:
        self._config = model.config
        self._run = run
        self._signature = inspect.signature(type(model).forward)
        self._norms = norms_behind(model.get_decoder())
        self._done = False

    @contextmanager
    def done(self) -> Iterator[None]:
        """What is passed inside the block has been seen to; also where it was to be compiled, and is not."""
        self._done = True
        try:
            yield
        finally:
            self._done = False

    def __call__(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self._done or torch.compiler.is_compiling():
            return args, kwargs
        if module.training:
            raise UnsupportedOptionError("the model is in training mode; call model.eval() before evicting")
        if args:
            names = list(self._signature.parameters)[1:]
            kwargs = dict(zip(names, args, strict=False)) | kwargs
        check_forward_options(kwargs, self._config)
        if kwargs.get("past_key_values") is None:
            kwargs["past_key_values"] = RaggedCache(self._config, self._run.method)
            kwargs["use_cache"] = True
        cache: RaggedCache = kwargs["past_key_values"]
        if cache.awaits_prompt:
            modality = prompt_modality(
                self._config,
                kwargs.get("input_ids"),
                attention_mask=kwargs.get("attention_mask"),
                mm_token_type_ids=kwargs.get("mm_token_type_ids"),
                inputs_embeds=kwargs.get("inputs_embeds"),
            )
            cache.begin_prompt(modality, self._norms)
        else:
            check_later_pass(cache, kwargs)
            new = new_tokens(kwargs)
            if cache.reads_prompt and not cache.hears_echo and new is not None and new.shape[1] > 1:
                # The next turn: the answer was shorter than the lookahead.
                record(cache, self._run)
            if new is not None:
                cache.take_room(new.shape[1])
        return (), kwargs


def _require_cache(_module: torch.nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before the decoder: whoever came past the model itself would run uncompressed."""
    if not isinstance(kwargs.get("past_key_values"), RaggedCache):
        raise UnsupportedOptionError(
            "inside `madakv.evict`, call the model that was given to it: not a part of it, and not its .forward"
        )


class _Record:
    """After the prefill: make sure that every layer was read, and note what was kept once that is decided."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __call__(self, module: torch.nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
        cache: RaggedCache = kwargs["past_key_values"]
        if not cache.reads_prompt:
            return
        if cache.unread_layers:
            raise UnsupportedModelError(
                f"{type(module).__name__} ran layers {cache.unread_layers} without madakv's attention: "
                "they do not go through transformers' AttentionInterface, or change the keys on the way there"
            )
        if cache.is_due:
            record(cache, self._run)


def record(cache: RaggedCache, run: Run) -> None:
    """End the reading of a prompt, and note what was kept."""
    modality, plans = cache.modality, cache.end_prompt()
    if modality is None:
        raise RuntimeError("a prompt was read that nobody announced")
    run.last = Kept(
        method=repr(cache.method),
        layers=cache.evicted_layers,
        plans=tuple(plan.to("cpu") for plan in plans),
        modality=modality.to("cpu"),
        kv_bytes=cache.prompt_nbytes,
        kv_bytes_full=cache.full_nbytes,
        other_bytes=cache.other_nbytes,
    )


def finish(cache: RaggedCache, run: Run) -> None:
    """Evict what still waits for more tokens: the answer was shorter than the lookahead."""
    if cache.reads_prompt:
        record(cache, run)


def _guarded(model: PreTrainedModel, generate: Callable[..., Any], run: Run) -> Callable[..., Any]:
    """`generate` with madakv's cache, refusing what cannot be combined with it."""

    @functools.wraps(generate)
    def guarded(inputs: Any = None, generation_config: Any = None, *args: Any, **kwargs: Any) -> Any:
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
        kwargs["generation_config"] = generation_config
        with own_cache_implementation(default), own_cache_implementation(generation_config):
            if cache is None and run.method.draft:
                ids = kwargs.pop("input_ids", None) if inputs is None else inputs
                return generate_with_draft(
                    model,
                    generate,
                    ids,
                    lambda: RaggedCache(model.config, run.method, room=room),
                    run.method.draft,
                    **kwargs,
                )
            cache = RaggedCache(model.config, run.method) if cache is None else cache
            cache.reserve(room)
            out = generate(inputs, past_key_values=cache, **kwargs)
        finish(cache, run)
        return out

    return guarded


def _refuse_generate_batch(*_: Any, **__: Any) -> None:
    raise UnsupportedOptionError("generate_batch (continuous batching) cannot be combined with eviction")


def _refuse_deepcopy(_memo: dict[int, Any]) -> None:
    raise UnsupportedOptionError(
        "copy.deepcopy(model) inside `madakv.evict` would copy the eviction; copy it outside"
    )


def _refuse_pickle(_protocol: int) -> None:
    raise UnsupportedOptionError(
        "copying or pickling the model inside `madakv.evict` (torch.save(model)) would take the eviction along; do "
        "it outside, or save model.state_dict() or model.save_pretrained(...), which are without it"
    )


def _attention_configs(model: PreTrainedModel) -> list[Any]:
    """The config objects that the decoder's attention modules and masks consult, each once."""
    found = {id(config): config for config in [model.config.get_text_config(decoder=True)]}
    for module in model.get_decoder().modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "_attn_implementation"):
            found[id(config)] = config
    return list(found.values())
