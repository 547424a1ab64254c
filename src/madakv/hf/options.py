"""Which generation options can be combined with eviction; the others are refused by name, never ignored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from madakv.errors import UnsupportedOptionError
from madakv.hf.cache import RaggedCache
from madakv.hf.rotary import BY_LENGTH
from madakv.modality import prompt_modality

_REFUSED = {
    "assistant_model": "assisted decoding takes tokens back, but evicted entries cannot come back",
    "assistant_early_exit": "assisted decoding takes tokens back, but evicted entries cannot come back",
    "use_mtp": "multi-token prediction takes tokens back, but evicted entries cannot come back",
    "prompt_lookup_num_tokens": "prompt lookup takes tokens back, but evicted entries cannot come back",
    "penalty_alpha": "contrastive search takes tokens back, but evicted entries cannot come back",
    "dola_layers": "DoLa decoding is not tested with eviction",
    "custom_generate": "a custom generation loop may bring a cache of its own",
    "prefill_chunk_size": "chunked prefill is not supported; the prompt is read in one pass",
    "guidance_scale": "classifier-free guidance reads a second prompt with a cache of its own",
    "negative_prompt_ids": "classifier-free guidance reads a second prompt with a cache of its own",
    "output_attentions": "no N x N attention is ever computed",
}

_HIDES = -1e4
"""An additive mask hides where it is no more than this; biases of distance are far above it."""

STATIC = "static"
"""As transformers calls a cache of fixed addresses, which `generate` may compile."""

_DEFAULT_LENGTH = 20
"""New tokens where nothing says how many, as in transformers."""

_NO_CACHE = "use_cache=False leaves nothing to evict; drop it, or leave `madakv.evict`"

_NEUTRAL = {
    "guidance_scale": 1,
    "penalty_alpha": 0,
    "prefill_chunk_size": 0,
    "output_attentions": False,
    "use_mtp": False,
}


def check_generation_options(options: dict[str, Any], given: Any, default: Any) -> None:
    """Refuse what eviction cannot honour.

    Args:
        options: keyword arguments of the `generate` call.
        given: the `generation_config` argument of the call, or None.
        default: the model's own generation config.

    Raises:
        UnsupportedOptionError: the message starts with the option and its value.
    """
    for name, why in _REFUSED.items():
        value = effective(name, options, given, default)
        if value is not None and value != _NEUTRAL.get(name):
            raise UnsupportedOptionError(f"{name}={_short(value)} cannot be combined with eviction: {why}")
    if effective("use_cache", options, given, default) is False:
        raise UnsupportedOptionError(_NO_CACHE)
    wanted = cache_implementation(options, given)
    if wanted not in (None, "dynamic", STATIC):
        raise UnsupportedOptionError(
            f"cache_implementation={wanted!r} cannot be combined with eviction, which brings its own cache"
        )
    beams = effective("num_beams", options, given, default)
    if wanted == STATIC and beams not in (None, 1):
        raise UnsupportedOptionError(
            f"num_beams={beams} cannot be combined with eviction and cache_implementation={STATIC!r}: beams would "
            "move what has to stay at its address"
        )


def cache_implementation(options: dict[str, Any], given: Any) -> str | None:
    """The kind of cache that a call asks for; what a model's default says gives way.

    Args:
        options: keyword arguments of the `generate` call.
        given: the `generation_config` argument of the call, or None.
    """
    return options.get("cache_implementation") or getattr(given, "cache_implementation", None)


def room_for(inputs: Any, cache: RaggedCache | None, options: dict[str, Any], given: Any, default: Any) -> int:
    """Tokens that a `generate` call reads after the prompt, at most; the last new one is read by nobody.

    Args:
        inputs: the first argument of the call, or None.
        cache: of an earlier call; None if the call begins with a prompt.
        options, given, default: see `check_generation_options`.
    """
    named = (inputs, *(options.get(name) for name in ("input_ids", "inputs_embeds")))
    width = next((x.shape[1] for x in named if isinstance(x, Tensor)), 0)
    later = most_new_tokens(width, options, given, default) - 1
    if cache is None or cache.awaits_prompt:
        return later
    seen = int(cache.get_seq_length())
    return later + (width - seen if width > seen else width)


def most_new_tokens(width: int, options: dict[str, Any], given: Any, default: Any) -> int:
    """How long the answer of a `generate` call may be.

    Args:
        width: tokens of the call's input.
        options, given, default: see `check_generation_options`.
    """
    most, longest = (effective(name, options, given, default) for name in ("max_new_tokens", "max_length"))
    if most is not None:
        return int(most)
    return _DEFAULT_LENGTH if longest is None else int(longest) - width


def check_forward_options(options: dict[str, Any], config: Any) -> None:
    """Refuse what eviction cannot honour in a forward pass.

    Args:
        options: keyword arguments of the pass.
        config: the model's config.
    """
    if options.get("output_attentions") or getattr(config, "output_attentions", False):
        raise UnsupportedOptionError(
            f"output_attentions=True cannot be combined with eviction: {_REFUSED['output_attentions']}"
        )
    if options.get("use_cache") is False:
        raise UnsupportedOptionError(_NO_CACHE)
    check_cache(options.get("past_key_values"))


def check_later_pass(cache: RaggedCache, options: dict[str, Any]) -> None:
    """Refuse passes after the prompt that an evicted cache cannot answer as the full one would.

    Args:
        cache: has read its prompt.
        options: keyword arguments of the pass.
    """
    if cache.is_interrupted:
        raise UnsupportedOptionError("past_key_values: this cache's prefill was interrupted; start with a new one")
    mask = options.get("attention_mask")
    new = new_tokens(options)
    if not isinstance(mask, Tensor) or new is None:
        return
    if cache.is_fixed and mask.dim() == 4 and new.shape[1] == 1:
        # Prepared by generate, from one that says what is padding.
        return
    if mask.dim() != 2:
        raise UnsupportedOptionError(
            f"attention_mask of shape {tuple(mask.shape)}: after the prompt, only [B, seen + new] is supported"
        )
    if cache.prompt is None or (new.shape[1] == 1 and cache.trusts_masks()):
        return
    if not cache.is_fixed and mask.shape[1] != (seen := cache.get_seq_length()) + new.shape[1]:
        raise UnsupportedOptionError(
            f"attention_mask covers {mask.shape[1]} tokens, but {seen} were seen and {new.shape[1]} are new"
        )
    prompt = cache.prompt.length
    if bool(((mask[:, :prompt] != 0) != cache.prompt.valid.to(mask.device)).any()):
        raise UnsupportedOptionError("attention_mask hides other prompt tokens than it did when the prompt was read")


def hidden_by(mask: Any) -> Tensor | None:
    """The tokens of a prompt that a mask of every query and key hides from all others.

    Args:
        mask: the `attention_mask` of a pass.

    Returns:
        [B or 1, N] bool; None if it is no such mask.

    Raises:
        UnsupportedOptionError: it hides other tokens from some heads than from others.
    """
    if not isinstance(mask, Tensor) or mask.dim() != 4:
        return None
    visible = mask > _HIDES if mask.is_floating_point() else mask != 0
    if visible.shape[-2] != visible.shape[-1]:
        raise UnsupportedOptionError(
            f"attention_mask of shape {tuple(mask.shape)}: a prompt's own is [B, N] or [B, 1, N, N]"
        )
    N = visible.shape[-1]
    itself = torch.eye(N, dtype=torch.bool, device=mask.device)
    seen = (visible & ~itself).any(-2)
    # Nobody comes after the last token.
    seen[..., -1] |= visible[..., -1, -1]
    if bool((seen != seen[:, :1]).any()):
        raise UnsupportedOptionError(
            "attention_mask hides tokens from some heads alone: evicted entries are hidden from all or from none"
        )
    return ~seen[:, 0]


def modality_of(config: Any, options: dict[str, Any], mask: Tensor | None) -> Tensor:
    """[B, N] of `Modality` values: what a pass reads.

    Args:
        config: the model's config.
        options: keyword arguments of the pass.
        mask: [B, N], 0 at padding; others are not read.
    """
    return prompt_modality(
        config,
        options.get("input_ids"),
        attention_mask=mask,
        mm_token_type_ids=options.get("mm_token_type_ids"),
        inputs_embeds=options.get("inputs_embeds"),
    )


def new_tokens(options: dict[str, Any]) -> Tensor | None:
    """What a forward pass reads, [B, n] ids or [B, n, D] embeddings."""
    return next((x for name in ("input_ids", "inputs_embeds") if (x := options.get(name)) is not None), None)


def check_cache(cache: Any) -> None:
    """Refuse caches that are not madakv's own."""
    if cache is not None and not isinstance(cache, RaggedCache):
        raise UnsupportedOptionError(
            f"past_key_values={type(cache).__name__} cannot be evicted; pass none and madakv makes the cache, or "
            "pass the cache of an earlier call inside `madakv.evict`"
        )


def check_draft(draft: int, cache: RaggedCache, config: Any) -> None:
    """Refuse to read a draft together with the prompt, where the model could not take it back.

    Args:
        draft: how many tokens.
        cache: one that the prompt would be read into.
        config: of the model.

    Raises:
        UnsupportedOptionError: layers keep states of their own, or positions are rotated by how many tokens there
            are.
    """
    if len(cache.evicted_layers) != len(cache.layers):
        raise UnsupportedOptionError(
            f"draft={draft} needs a model whose layers all have full attention: sliding windows and linear states "
            "cannot take back what is read behind the prompt; use lookahead"
        )
    if (known := rope_by_length(config)) is not None:
        raise UnsupportedOptionError(
            f"draft={draft} cannot be combined with a RoPE that changes behind {known:,} positions: the prompt would "
            "be rotated as a longer one; use lookahead"
        )


def rope_by_length(config: Any) -> int | None:
    """Up to how many tokens positions alone decide on rotations that depend on the length behind it; None: always."""
    text = config.get_text_config(decoder=True)
    parameters = getattr(text, "rope_parameters", None) or {}
    kinds = [own for own in parameters.values() if isinstance(own, dict)] or [parameters]
    of_length = [kind for kind in kinds if kind.get("rope_type") in BY_LENGTH]
    known = [
        kind.get("original_max_position_embeddings")
        or getattr(text, "original_max_position_embeddings", None)
        or text.max_position_embeddings
        for kind in of_length
    ]
    return min(known, default=None)


def effective(name: str, options: dict[str, Any], given: Any, default: Any) -> Any:
    """A generation option as it counts: of the call, else of the call's config, else of the model's."""
    if name in options:
        return options[name]
    for config in (given, default):
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else type(value).__name__
