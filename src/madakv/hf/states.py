"""States that layers keep instead of entries: taken down before a pass, and put back after it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from madakv.hf.cache import RaggedCache
from madakv.hf.layer import RaggedLayer


@contextmanager
def put_back(cache: RaggedCache) -> Iterator[None]:
    """Whatever is read inside the block leaves no trace in layers that are not evicted.

    Their states are small: a sliding window, the state of a linear layer. They are copied, since some are changed in
    place.
    """
    others = [layer for layer in cache.layers if not isinstance(layer, RaggedLayer)]
    before = [copy.deepcopy(layer.__dict__) for layer in others]
    try:
        yield
    finally:
        for layer, state in zip(others, before, strict=True):
            layer.__dict__.clear()
            layer.__dict__.update(state)
