"""The most memory that was in use at a time."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import Cache

from madakv.reading import Reading


class Tally:
    """Bytes alive, and the most there were after any operation."""

    def __init__(self) -> None:
        self.now = 0
        self.peak = 0

    def add(self, size: int) -> None:
        """So many bytes more, or fewer."""
        self.now += size
        self.peak = max(self.peak, self.now)


class LiveStorages(TorchDispatchMode):
    """Follows every storage that an operation inside the block returns, until it is freed.

    What an operation allocates and frees within itself is not seen, nor is what was there before the block.

    Attributes:
        all: of all storages.
        cache: of those that are there for the cache's sake: keys and values from when it is handed them, and all that
            it makes itself, what it scores with included.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.all = Tally()
        self.cache = Tally()
        self._alive: dict[int, weakref.ref[Any]] = {}
        self._known: set[int] = set()
        self._cached: set[int] = set()
        self._caching = False

    def ignore(self, tensors: Sequence[Tensor]) -> None:
        """Do not count the storages of these: they were there before."""
        self._known |= {tensor.untyped_storage()._cdata for tensor in tensors}

    @contextmanager
    def caching(self, handed: Sequence[Tensor]) -> Iterator[None]:
        """What is made in this block is the cache's, and so are the tensors that it is handed."""
        for tensor in handed:
            storage = tensor.untyped_storage()
            if storage._cdata in self._alive and storage._cdata not in self._cached:
                self._cached.add(storage._cdata)
                self.cache.add(storage.nbytes())
        before, self._caching = self._caching, True
        try:
            yield
        finally:
            self._caching = before

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if isinstance(value, Tensor):
                self._follow(value)
        return out

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive or key in self._known:
            return
        size = storage.nbytes()
        self._alive[key] = weakref.ref(storage, partial(self._freed, key, size))
        self.all.add(size)
        if self._caching:
            self._cached.add(key)
            self.cache.add(size)

    def _freed(self, key: int, size: int, _: Any) -> None:
        del self._alive[key]
        self.all.add(-size)
        if key in self._cached:
            self._cached.remove(key)
            self.cache.add(-size)


class Peak:
    """The most bytes that a block took beyond what was there before it; known once the block is left.

    Attributes:
        bytes: of everything, activations included.
        cache_bytes: of what was there for the cache's sake, see `LiveStorages.cache`.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self.cache_bytes = 0


@contextmanager
def peak_memory(device: torch.device, before: Sequence[Tensor]) -> Iterator[Peak]:
    """Measure a block by `LiveStorages`; everything together, on a GPU, by the allocator.

    Args:
        device: whose memory.
        before: tensors that exist already; the block may return views of them.
    """
    found = Peak()
    live = LiveStorages()
    live.ignore(before)
    start = 0
    if device.type == "cuda":
        gc.collect()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_allocated(device)
    with live, _told(live, Cache, "update"), _told(live, Reading, "layer"):
        yield found
    found.bytes, found.cache_bytes = live.all.peak, live.cache.peak
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        found.bytes = torch.cuda.max_memory_allocated(device) - start


@contextmanager
def _told(live: LiveStorages, owner: type, name: str) -> Iterator[None]:
    """Let `live` know, inside the block, when a method that does the cache's work runs."""
    plain: Callable[..., Any] = getattr(owner, name)

    @wraps(plain)
    def watched(*arguments: Any, **options: Any) -> Any:
        with live.caching([x for x in arguments if isinstance(x, Tensor)]):
            return plain(*arguments, **options)

    setattr(owner, name, watched)
    try:
        yield
    finally:
        setattr(owner, name, plain)
