"""States that layers keep instead of entries: taken down before a pass, and put back after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from madakv.hf.cache import RaggedCache
from madakv.hf.layer import RaggedLayer


@contextmanager
def put_back(cache: RaggedCache) -> Iterator[None]:
    """Whatever is read inside the block leaves no trace in layers that are not evicted.

    Their states are small: a sliding window, the state of a linear layer. The block works on copies, since some are
    changed in place; gradients go through the states themselves as before.
    """
    others = [layer for layer in cache.layers if not isinstance(layer, RaggedLayer)]
    before = [dict(layer.__dict__) for layer in others]
    for layer, state in zip(others, before, strict=True):
        layer.__dict__.update(_copied(state))
    try:
        yield
    finally:
        for layer, state in zip(others, before, strict=True):
            layer.__dict__.clear()
            layer.__dict__.update(state)


def _copied(state: Any) -> Any:
    """Tensors and what holds them; `copy.deepcopy` refuses tensors that gradients go through."""
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, dict):
        return {name: _copied(value) for name, value in state.items()}
    return [_copied(value) for value in state] if isinstance(state, list) else state
