"""The attention and mask functions that transformers calls while a model is inside `madakv.evict`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from madakv.attention import attend, prompt_attention
from madakv.errors import InputError, UnsupportedModelError, UnsupportedOptionError
from madakv.hf.cache import reading_behind, recording_behind
from madakv.hf.layer import IMPLEMENTATION, RaggedLayer, layer_behind, take_tags_off
from madakv.reading import Reading
from madakv.scoring import LayerView, OutputProjection
from madakv.scoring.proxies import newest

_PROJECTIONS = ("o_proj", "out_proj", "dense", "c_proj", "wo")
"""What attention modules call the matrix behind their heads."""
_SANDWICHED = ("pre_feedforward_layernorm", "post_feedforward_layernorm")
"""Where a layer has one of these, its `post_attention_layernorm` is what the name says; else the MLP's."""
_TYPICAL = 32
"""The newest tokens of a row tell what a norm divides by."""


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend; if the keys are an evicted layer's prompt, evict it right after.

    Args:
        query: [B, Hq, n, Dk].
        key, value: [B, H, n, D], the new tokens alone if they come from a `RaggedLayer`.
        attention_mask: [B or 1, 1, n, T] or None, from `mask`.
        softcap, s_aux: logit cap and attention sinks of models that have them.

    Returns:
        [B, n, Hq, Dv], and None in place of attention weights.
    """
    if kwargs.get("output_attentions"):
        raise UnsupportedOptionError("output_attentions=True cannot be combined with eviction: no N x N is computed")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer = layer_behind(key)
    if layer is not None:
        _check_call(module, layer, key, value, attention_mask, kwargs)
    if layer is not None and layer.memory.entries is not None:
        if (hears := reading_behind(key)) is None:
            if (recording := recording_behind(key)) is not None:
                recording.step(
                    layer.number,
                    query,
                    layer.memory,
                    scaling=scaling,
                    mask=attention_mask,
                    softcap=softcap,
                    sinks=s_aux,
                )
            out = attend(query, layer.memory, scaling=scaling, mask=attention_mask, softcap=softcap, sinks=s_aux)
        else:
            out = hears.attend(
                layer.number, query, scaling=scaling, mask=attention_mask, softcap=softcap, sinks=s_aux
            )
        return out.transpose(1, 2).contiguous(), None
    given = kwargs.get("is_causal")
    causal = bool(getattr(module, "is_causal", True) if given is None else given)
    if softcap is None and s_aux is None:
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    else:
        out = prompt_attention(
            query, key, value, scaling=scaling, mask=attention_mask, softcap=softcap, sinks=s_aux, causal=causal
        ).transpose(1, 2)
    if layer is not None:
        reading = _reading(key)
        _check_order(module, layer, reading)
        take_tags_off(key, value)
        if attention_mask is None and not causal:
            N = key.shape[2]
            attention_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=key.device).expand(1, 1, N, N)
        projection = projection_of(module, layer.norms)
        view = LayerView(
            query=query,
            key=key,
            value=value,
            modality=reading.modality.to(key.device),
            scaling=scaling,
            mask=attention_mask,
            softcap=softcap,
            sinks=s_aux,
            projection=projection,
            divisor=_divisor(projection, out, reading),
            rotary=None if layer.rope is None else layer.rope.of(module),
        )
        reading.layer(view)
    return out, None


def projection_of(module: torch.nn.Module, norms: Mapping[int, torch.nn.Module]) -> OutputProjection | None:
    """What becomes of the outputs of an attention module's heads; None if it has no such part under a known name."""
    found = (getattr(module, name, None) for name in _PROJECTIONS)
    norm = norms.get(id(module))
    return next((OutputProjection(part, norm) for part in found if isinstance(part, torch.nn.Module)), None)


def _reading(key: Tensor) -> Reading:
    """Who reads the prompt that these keys are of."""
    reading = reading_behind(key)
    if not isinstance(reading, Reading):
        raise RuntimeError("the prompt was not announced: call RaggedCache.begin before the prefill")
    return reading


def _check_order(module: torch.nn.Module, layer: RaggedLayer, reading: Reading) -> None:
    """Refuse models that read a layer while those before it were not."""
    if layer.number != reading.layers_read:
        raise UnsupportedModelError(
            f"{type(module).__name__}: layers {list(range(reading.layers_read, layer.number))} of those to evict ran "
            "without madakv's attention: they do not go through transformers' AttentionInterface, or change the keys "
            "on the way there"
        )


def _divisor(projection: OutputProjection | None, out: Tensor, reading: Reading) -> Tensor | None:
    """[B]: what a norm behind the projection divides by, as the prompt's newest tokens have it; None without one."""
    if projection is None or not projection.is_normed:
        return None
    told = newest(reading.prompt.valid.to(out.device), _TYPICAL)
    return projection.typical(out[:, : told.shape[1]], told)


def norms_behind(decoder: torch.nn.Module) -> dict[int, torch.nn.Module]:
    """The norms that stand between attention and the residual stream, by the ids of the attention modules."""
    found = {}
    for layer in decoder.modules():
        attention, norm = getattr(layer, "self_attn", None), getattr(layer, "post_self_attn_layernorm", None)
        if norm is None and any(hasattr(layer, name) for name in _SANDWICHED):
            norm = getattr(layer, "post_attention_layernorm", None)
        if isinstance(attention, torch.nn.Module) and isinstance(norm, torch.nn.Module):
            found[id(attention)] = norm
    return found


def _check_call(
    module: torch.nn.Module,
    layer: RaggedLayer,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    options: dict[str, Any],
) -> None:
    """Refuse attention modules that do more than attend to what the cache handed them."""
    name = type(module).__name__
    if options.get("position_bias") is not None:
        raise UnsupportedOptionError(f"{name} adds a position_bias, which eviction does not support")
    if layer_behind(value) is not layer:
        raise UnsupportedModelError(f"{name} changes the values between cache and attention; it cannot be evicted")
    tail = layer.memory.tail.length
    if layer.memory.entries is None:
        known = _reading(key).tokens
        if known != key.shape[2]:
            raise InputError(
                f"the prompt has {known} tokens, but {name} reads {key.shape[2]}: placeholders are expanded inside "
                "the model; use a processor that writes one placeholder per embedding"
            )
    elif attention_mask is not None and attention_mask.shape[-1] != tail:
        raise UnsupportedModelError(
            f"{name} makes a mask of its own ({attention_mask.shape[-1]} wide where {tail} tokens came after the "
            "prompt); it cannot be evicted"
        )


def mask(**arguments: Any) -> Tensor | None:
    """Build masks as for sdpa.

    After the prompt the width that `RaggedLayer.get_mask_sizes` gives is that of the tail, so the mask holds
    exactly what can still be hidden: later tokens, and padding among the new ones.
    """
    offset = arguments.get("q_offset", 0)
    after_prompt = not isinstance(offset, int) or offset > 0
    on_cpu = torch.device(arguments.get("device", "cpu")).type == "cpu"
    if after_prompt and (arguments["q_length"] > 1 or not on_cpu):
        # sdpa would leave out a mask that hides nothing: causal masks mean something else on a tail, and looking
        # whether there is padding makes the host wait for the device at every step.
        arguments["allow_is_causal_skip"] = False
    built: Tensor | None = sdpa_mask(**arguments)
    return built


def register() -> None:
    """Make both functions known to transformers; registering one without the other would lose all padding."""
    AttentionInterface.register(IMPLEMENTATION, attention)
    AttentionMaskInterface.register(IMPLEMENTATION, mask)
