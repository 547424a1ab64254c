"""Which models can be evicted; the others are refused as a whole, before anything is changed on them."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from madakv.errors import ConfigurationError, UnsupportedModelError, UnsupportedOptionError
from madakv.modality import placeholder_ids

_CROSS_ATTENTION = "its cross-attention layers keep entries of pictures that no token of the prompt stands for"
_INNER_MODEL = "its generate hands embeddings to a model inside it, and no token id says which of them are pictures"
_SPEAKS = "it is several models that generate in turn; pass the one that reads, model.thinker"
_UNFIT_FAMILIES = {
    "mllama": _CROSS_ATTENTION,
    "idefics": _CROSS_ATTENTION,
    "blip-2": _INNER_MODEL,
    "instructblip": _INNER_MODEL,
    "instructblipvideo": _INNER_MODEL,
    "kosmos-2": _INNER_MODEL,
    "kosmos-2.5": "a mask, and no token id, says where its pictures are",
    "git": "its pictures stand before the prompt, and no token of it stands for them",
    "qwen2_5_omni": _SPEAKS,
    "qwen3_omni_moe": _SPEAKS,
}
"""By `model_type`: why. To register them would not help."""

_PREFIX_TUNING = ("PREFIX_TUNING", "CARTRIDGE")
"""What PEFT calls adapters that are entries in the cache."""


def check_supported(model: Any) -> None:
    """Refuse models that eviction does not fit.

    Raises:
        ConfigurationError: it is no transformers model, but perhaps a wrapper of one.
        UnsupportedOptionError: it is in training mode, or compiled as a whole.
        UnsupportedModelError: its architecture, or a multimodal family that is not known; see `placeholder_ids`.
    """
    if not isinstance(model, PreTrainedModel):
        raise ConfigurationError(
            f"evict needs a transformers PreTrainedModel; got {type(model).__name__}{_inside(model)}"
        )
    if model.training:
        raise UnsupportedOptionError("the model is in training mode; call model.eval() before evicting")
    if model._compiled_call_impl is not None:
        refuse_compile()
    model_type = getattr(model.config, "model_type", None)
    if (why := _UNFIT_FAMILIES.get(str(model_type))) is not None:
        raise UnsupportedModelError(f"{type(model).__name__} ({model_type}) cannot be evicted: {why}")
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{type(model).__name__} is an encoder-decoder; only decoders are evicted")
    placeholder_ids(model.config)


def _inside(wrapper: Any) -> str:
    """Where a wrapper has the model that it wraps."""
    if callable(getattr(wrapper, "get_base_model", None)):
        return ". Of a PEFT model, pass model.get_base_model(), and call the PEFT model inside the block"
    if hasattr(wrapper, "_orig_mod"):
        return ". Of what torch.compile made, pass model._orig_mod, and call that inside the block"
    if isinstance(getattr(wrapper, "model", None), PreTrainedModel):
        return ". Pass the model inside, .model"
    return ". Of a pipeline or a wrapper, pass the model inside"


def refuse_compile(*_: Any, **__: Any) -> None:
    """Refuse a model whose forward pass is compiled as a whole, or is to be."""
    raise UnsupportedOptionError(
        "model.compile() cannot be combined with eviction, which has to see each prompt before it is read; undo it "
        'with model._compiled_call_impl = None, and let model.generate(..., cache_implementation="static") compile '
        "its steps"
    )


def check_preparation(model: Any) -> None:
    """Refuse PEFT adapters that are entries in the cache, at a call of `generate`: only there they can be seen.

    Args:
        model: inside a PEFT model, perhaps, whose `generate` puts its own preparation of inputs on it.
    """
    preparing = getattr(model.prepare_inputs_for_generation, "__self__", model)
    adapter = getattr(preparing, "active_peft_config", None)
    kind = getattr(getattr(adapter, "peft_type", None), "value", None)
    if preparing is not model and kind in _PREFIX_TUNING:
        raise UnsupportedOptionError(
            f"PEFT's {kind} cannot be combined with eviction: it brings past_key_values of its own; use LoRA, or "
            "leave `madakv.evict`"
        )
