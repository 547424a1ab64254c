"""What `generate` compiles while a model is inside `madakv.evict`: single steps after the prompt, nothing else."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_masks_for_generate

from madakv.hf.cache import RaggedCache
from madakv.hf.options import new_tokens


def masks_for_steps(prepare: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """`prepare_inputs_for_generation` with masks of a fixed size, as for static caches, for single steps alone.

    Every other pass needs to be told what is padding, which such a mask does not say.
    """

    @functools.wraps(prepare)
    def prepared(*args: Any, **kwargs: Any) -> dict[str, Any]:
        cache = kwargs.get("past_key_values")
        if not isinstance(cache, RaggedCache):
            return prepare(*args, **kwargs)
        if cache.is_fixed and not kwargs.get("is_first_iteration"):
            return prepare(*args, **kwargs)
        with cache.masks_inside():
            return prepare(*args, **kwargs)

    return prepared


def compiled_steps(
    model: Any,
    compiled_call: Callable[[Any], Callable[..., Any]],
    check: Callable[..., Any],
) -> Callable[[Any], Callable[..., Any]]:
    """`get_compiled_call` whose result compiles single steps on a cache of fixed addresses.

    All other passes run as they are: a lookahead still scores the prompt, a next turn is of another length, and the
    first step makes tables for the others.

    Args:
        model: inside `madakv.evict`.
        compiled_call: its own.
        check: the forward pre-hook.
    """

    @functools.wraps(compiled_call)
    def compiled(compile_config: Any = None) -> Callable[..., Any]:
        run = compiled_call(compile_config)

        def step(*args: Any, **kwargs: Any) -> Any:
            cache, new = kwargs.get("past_key_values"), new_tokens(kwargs)
            if not isinstance(cache, RaggedCache) or not cache.can_be_captured or new is None or new.shape[1] != 1:
                return model(*args, **kwargs)
            _, kwargs = check(model, args, kwargs)
            with cache.seen_to():
                return run(**with_step_mask(model, kwargs))

        return step

    return compiled


def with_step_mask(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Inputs of a step with a mask of a fixed size in place of one that grows, made outside of what is compiled.

    Args:
        model: whose step it is.
        inputs: with a cache of fixed addresses; a mask that `generate` has prepared stays.
    """
    mask, new = inputs.get("attention_mask"), new_tokens(inputs)
    if new is None or not (mask is None or (isinstance(mask, Tensor) and mask.dim() == 2)):
        return inputs
    # Some models have a function of their own for it.
    masks = getattr(model, "create_masks_for_generate", create_masks_for_generate)
    made = masks(
        config=model.config,
        inputs_embeds=torch.empty(*new.shape[:2], 0, dtype=model.dtype, device=new.device),
        attention_mask=mask,
        past_key_values=inputs["past_key_values"],
        position_ids=inputs.get("position_ids"),
    )
    return {**inputs, "attention_mask": made}
