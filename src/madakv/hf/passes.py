"""The hooks around each pass of a model inside the block. What they know of a pass is on the cache that it is on."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import PreTrainedModel

from madakv.errors import UnsupportedModelError, UnsupportedOptionError
from madakv.hf.attention import norms_behind
from madakv.hf.cache import RaggedCache
from madakv.hf.generate import run_cache
from madakv.hf.options import check_forward_options, check_later_pass, hidden_by, modality_of, new_tokens
from madakv.hf.record import note_kept_whole, record
from madakv.hf.rotary import Rope
from madakv.modality import Modality
from madakv.run import Run


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
        modality = modality_of(self._model_config, kwargs, mask)
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


def require_cache(_module: torch.nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before the decoder: whoever came past the model itself would run uncompressed."""
    if not isinstance(kwargs.get("past_key_values"), RaggedCache):
        raise UnsupportedOptionError(
            "inside `madakv.evict`, call the model that was given to it: not a part of it, and not its .forward"
        )


def note_positions(decoder: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before the decoder reads a prompt: its layers are told of the positions, which nobody tells attention."""
    cache: RaggedCache = kwargs["past_key_values"]
    reading = cache.prompt_ahead
    if reading is None:
        return
    given = dict(zip(inspect.signature(decoder.forward).parameters, args, strict=False)) | kwargs
    rope = Rope(getattr(decoder, "rotary_emb", None), given.get("position_ids"), reading.tokens)
    for layer in cache.ragged_layers:
        layer.rope = rope


class RecordPass:
    """The hook behind the model: makes sure that every layer was read, and decides what is due."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __call__(self, module: torch.nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
        """After a pass.

        Raises:
            UnsupportedModelError: layers that should have been evicted were not read.
        """
        cache: RaggedCache = kwargs["past_key_values"]
        if cache.reading is None:
            return
        if cache.unread_layers:
            raise UnsupportedModelError(
                f"{type(module).__name__} ran layers {cache.unread_layers} without madakv's attention: "
                "they do not go through transformers' AttentionInterface, or change the keys on the way there"
            )
        if cache.reading.is_due:
            record(cache, self._run)
