"""What is changed on a model for the length of a `with` block, and restored exactly."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from madakv.errors import NestedEvictionError, UnsupportedOptionError
from madakv.hf.attention import norms_behind, register
from madakv.hf.cache import RaggedCache
from madakv.hf.capture import compiled_steps, masks_for_steps
from madakv.hf.echo import Echo, echo_of
from madakv.hf.full import RecordFull
from madakv.hf.generate import guarded, run_cache
from madakv.hf.kinds import takes_kinds
from madakv.hf.layer import IMPLEMENTATION
from madakv.hf.options import check_forward_options, check_later_pass, hidden_by, new_tokens
from madakv.hf.record import RecordPass, note_kept_whole, record
from madakv.hf.supported import check_supported, refuse_compile
from madakv.methods import Full
from madakv.modality import Modality, prompt_modality
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
            # The full cache is transformers' own, bit for bit.
            stack.enter_context(
                _hooked(model.register_forward_hook(RecordFull(run, empty.evicted_layers), with_kwargs=True))
            )
        else:
            _evicting(model, run, empty, configs, stack)
        yield


def _evicting(model: PreTrainedModel, run: Run, empty: RaggedCache, configs: list[Any], stack: ExitStack) -> None:
    echoed = echo_of(run.method, empty, model.config)
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
        decoder.register_forward_pre_hook(_require_cache, with_kwargs=True),
    ):
        stack.enter_context(_hooked(hook))
    if echoed:
        echo = Echo(echoed, model.config, optional=run.method.echo_is_optional)
        stack.enter_context(_hooked(decoder.register_forward_pre_hook(echo.before, with_kwargs=True)))
        stack.enter_context(_hooked(decoder.register_forward_hook(echo.after, with_kwargs=True)))
    overrides: dict[str, Any] = {
        "generate_batch": _refuse_generate_batch,
        "compile": refuse_compile,
        "__deepcopy__": _refuse_deepcopy,
        "__reduce_ex__": _refuse_pickle,
        "get_compiled_call": compiled_steps(model, model.get_compiled_call, prepare),
    }
    if callable(getattr(model, "generate", None)):
        overrides["generate"] = guarded(model, run)
        prepare_inputs: Any = model.prepare_inputs_for_generation
        overrides["prepare_inputs_for_generation"] = masks_for_steps(takes_kinds(prepare_inputs, model.forward))
    stack.enter_context(_overridden(model, overrides))


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
def _overridden(model: PreTrainedModel, overrides: dict[str, Any]) -> Iterator[None]:
    """Attributes of the model itself, over those of its class."""
    own = {name: model.__dict__[name] for name in overrides if name in model.__dict__}
    model.__dict__.update(overrides)
    try:
        yield
    finally:
        for name in overrides:
            model.__dict__.pop(name, None)
        model.__dict__.update(own)


class PreparePass:
    """The hook before the model: sees to it that there is a cache, and tells it of a new prompt."""

    def __init__(self, model: PreTrainedModel, run: Run) -> None:
        self._model_config = model.config
        self._run = run
        self._model = model
        self._signature = inspect.signature(type(model).forward)
        self._norms = norms_behind(model.get_decoder())

    def __call__(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Before a pass."""
        given = kwargs.get("past_key_values")
        if torch.compiler.is_compiling() or (isinstance(given, RaggedCache) and given.checked):
            return args, kwargs
        if module.training:
            raise UnsupportedOptionError("the model is in training mode; call model.eval() before evicting")
        if args:
            names = list(self._signature.parameters)[1:]
            kwargs = dict(zip(names, args, strict=False)) | kwargs
        check_forward_options(kwargs, self._model_config)
        if kwargs.get("past_key_values") is None:
            kwargs["past_key_values"] = run_cache(self._model, self._run)
            kwargs["use_cache"] = True
        cache: RaggedCache = kwargs["past_key_values"]
        if cache.awaits_prompt:
            cache.begin(self._modality(kwargs), self._norms)
        else:
            self._prepare_later(cache, kwargs)
        return (), kwargs

    def _modality(self, kwargs: dict[str, Any]) -> torch.Tensor:
        mask = kwargs.get("attention_mask")
        modality = prompt_modality(
            self._model_config,
            kwargs.get("input_ids"),
            attention_mask=mask,
            mm_token_type_ids=kwargs.get("mm_token_type_ids"),
            inputs_embeds=kwargs.get("inputs_embeds"),
        )
        hidden = hidden_by(mask)
        return modality if hidden is None else modality.masked_fill(hidden.to(modality.device), Modality.PADDING)

    def _prepare_later(self, cache: RaggedCache, kwargs: dict[str, Any]) -> None:
        """See to a pass behind the prompt's."""
        check_later_pass(cache, kwargs)
        new = new_tokens(kwargs)
        if new is None:
            return
        if cache.reading is not None and cache.reading.is_due_before(new.shape[1]):
            record(cache, self._run)
        if cache.reading is not None and cache.reading.repeats:
            mask = kwargs.get("attention_mask")
            own = kwargs if mask is None else {**kwargs, "attention_mask": mask[:, -new.shape[1] :]}
            cache.reading.announce(self._modality(own))
        elif new.shape[1] > 1 and cache.reading is None:
            note_kept_whole(self._run, new.shape[1])
        cache.take_room(new.shape[1])


def _require_cache(_module: torch.nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before the decoder: whoever came past the model itself would run uncompressed."""
    if not isinstance(kwargs.get("past_key_values"), RaggedCache):
        raise UnsupportedOptionError(
            "inside `madakv.evict`, call the model that was given to it: not a part of it, and not its .forward"
        )


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
