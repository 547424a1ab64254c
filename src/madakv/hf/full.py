"""The full cache: transformers' own, left alone, and a note of what it holds."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from madakv.hf.cache import state_nbytes
from madakv.hf.options import hidden_by, modality_of, new_tokens
from madakv.kept import Kept
from madakv.plan import KeepPlan
from madakv.run import Run


class RecordFull:
    """The hook behind the model; it only looks.

    Args:
        run: to be told.
        layers: model indices of those with full attention.
    """

    def __init__(self, run: Run, layers: Sequence[int]) -> None:
        self._run = run
        self._layers = tuple(layers)

    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """After a pass: note the prompt, if it was one."""
        if torch.compiler.is_compiling():
            return
        if args:
            names = list(inspect.signature(type(module).forward).parameters)[1:]
            kwargs = dict(zip(names, args, strict=False)) | kwargs
        given, new = kwargs.get("past_key_values"), new_tokens(kwargs)
        cache = getattr(output, "past_key_values", None) if given is None else given
        if not isinstance(cache, Cache) or new is None or int(cache.get_seq_length()) != new.shape[1]:
            return
        padding = _padding(kwargs.get("attention_mask"), new.shape[1])
        modality = modality_of(module.config, kwargs, padding)
        record_full(cache, modality, self._run, self._layers)


def _padding(mask: Any, tokens: int) -> Tensor | None:
    """[B, N], 0 at padding, from any mask that transformers hands to a prompt's pass."""
    if isinstance(mask, dict):
        # Prepared for a static cache, one for each kind of layer.
        mask = next((own for own in mask.values() if isinstance(own, Tensor)), None)
    if not isinstance(mask, Tensor):
        return None
    if mask.dim() == 2:
        return mask
    hidden = hidden_by(mask[..., :tokens])
    return None if hidden is None else (~hidden).to(torch.int64)


def record_full(cache: Cache, modality: Tensor, run: Run, layers: Sequence[int]) -> None:
    """Note that everything was kept.

    Args:
        cache: has read the prompt and nothing else.
        modality: [B, N] of `Modality` values.
        run: to be told.
        layers: model indices of those with full attention.
    """
    others = [layer for i, layer in enumerate(cache.layers) if i not in layers]
    plans, bytes_of_prompt = [], 0
    for i in layers:
        layer: Any = cache.layers[i]
        keys, values = layer.keys, layer.values
        plans.append(KeepPlan.everything(modality, keys.shape[1]).to("cpu"))
        per_token = sum(x.shape[1] * x.shape[3] * x.element_size() for x in (keys, values))
        bytes_of_prompt += modality.numel() * per_token
    run.last = Kept(
        method=repr(run.method),
        layers=tuple(layers),
        plans=tuple(plans),
        modality=modality.to("cpu"),
        kv_bytes=bytes_of_prompt,
        kv_bytes_full=bytes_of_prompt,
        other_bytes=sum(state_nbytes(layer) for layer in others),
    )
