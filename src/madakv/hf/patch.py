"""What is changed on a model for the length of a `with` block, and restored exactly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from madakv.cache import RaggedEntries
from madakv.errors import ConfigurationError, NestedEvictionError, UnsupportedOptionError
from madakv.hf.attention import register
from madakv.hf.capture import compiled_steps, masks_for_steps
from madakv.hf.echo import Echo
from madakv.hf.full import RecordFull
from madakv.hf.generate import guarded, heard, run_cache
from madakv.hf.kinds import takes_kinds
from madakv.hf.layer import IMPLEMENTATION
from madakv.hf.passes import PreparePass, RecordPass, note_positions, require_cache
from madakv.hf.supported import check_supported, refuse_compile
from madakv.methods import Full
from madakv.run import Run


@contextmanager
def patched(model: Any, run: Run) -> Iterator[None]:
    """Evict every prompt that `model` reads inside the block; see `madakv.evict`."""
    check_supported(model)
    # Made once for its refusals alone: better here than in the middle of the first generation.
    empty = run_cache(model, run)
    configs = _attention_configs(model)
    if any(config._attn_implementation == IMPLEMENTATION for config in configs):
        raise NestedEvictionError(
            "this model, or one that shares its config, is already inside `madakv.evict`; leave that block first"
        )
    with ExitStack() as stack:
        if type(run.method) is Full:
            _check_untouched(run)
            # The full cache is transformers' own, bit for bit.
            if callable(getattr(model, "generate", None)):
                stack.enter_context(_overridden(model, {"generate": heard(model, run)}))
            stack.enter_context(
                _hooked(model.register_forward_hook(RecordFull(run, empty.evicted_layers), with_kwargs=True))
            )
        else:
            _evicting(model, run, configs, stack)
        yield


def _evicting(model: PreTrainedModel, run: Run, configs: list[Any], stack: ExitStack) -> None:
    register()
    for config in configs:
        stack.enter_context(_attribute(config, "_attn_implementation_internal", IMPLEMENTATION))
    settings = getattr(model, "generation_config", None)
    if getattr(settings, "cache_implementation", None) is not None:
        # transformers merges the default into whatever config a call brings: it can only be silenced at the source.
        stack.enter_context(_attribute(settings, "cache_implementation", None))
    decoder = model.get_decoder()
    prepare = PreparePass(model, run)
    for hook in (
        model.register_forward_pre_hook(prepare, with_kwargs=True),
        model.register_forward_hook(RecordPass(run), with_kwargs=True),
        decoder.register_forward_pre_hook(require_cache, with_kwargs=True),
    ):
        stack.enter_context(_hooked(hook))
    if run.method.echoes:
        echo = Echo(model.config)
        stack.enter_context(_hooked(decoder.register_forward_pre_hook(echo.before, with_kwargs=True)))
        stack.enter_context(_hooked(decoder.register_forward_hook(echo.after, with_kwargs=True)))
    # Behind the echo's, so that its tokens have positions, too.
    stack.enter_context(_hooked(decoder.register_forward_pre_hook(note_positions, with_kwargs=True)))
    overrides: dict[str, Any] = {
        "generate_batch": _refuse_generate_batch,
        "compile": refuse_compile,
        "get_compiled_call": compiled_steps(model, model.get_compiled_call, prepare),
    }
    if callable(getattr(model, "generate", None)):
        overrides["generate"] = guarded(model, run)
        prepare_inputs: Any = model.prepare_inputs_for_generation
        overrides["prepare_inputs_for_generation"] = masks_for_steps(takes_kinds(prepare_inputs, model.forward))
    stack.enter_context(_overridden(model, overrides))
    for part in (model, decoder):
        # Whoever copies a part of the model copies the hooks on its decoder.
        stack.enter_context(_overridden(part, {"__deepcopy__": _refuse_deepcopy, "__reduce_ex__": _refuse_pickle}))


def _check_untouched(run: Run) -> None:
    if run.records:
        raise ConfigurationError(
            "the method 'full' is transformers' own cache, at which nobody looks on; with record=True, another "
            "method keeps everything with budget=1.0"
        )
    if run.trigger is not None or run.store is not RaggedEntries:
        raise ConfigurationError(
            "the method 'full' is transformers' own cache, which has neither trigger nor store; another method keeps "
            "everything in one with budget=1.0"
        )


@contextmanager
def _attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def _hooked(hook: Any) -> Iterator[None]:
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _overridden(model: torch.nn.Module, overrides: dict[str, Any]) -> Iterator[None]:
    """Attributes of the model itself, over those of its class."""
    own = {name: model.__dict__[name] for name in overrides if name in model.__dict__}
    model.__dict__.update(overrides)
    try:
        yield
    finally:
        for name in overrides:
            model.__dict__.pop(name, None)
        model.__dict__.update(own)


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
