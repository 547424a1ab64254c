"""The most memory that was in use at a time."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveStorages(TorchDispatchMode):
    """Follows every storage that an operation inside the block returns, until it is freed.

    What an operation allocates and frees within itself is not seen, nor is what was there before the block.

    Attributes:
        now: bytes alive.
        peak: the most there were after any operation.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._alive: dict[int, weakref.ref[Any]] = {}
        self._known: set[int] = set()

    def ignore(self, tensors: Sequence[Tensor]) -> None:
        """Do not count the storages of these: they were there before."""
        self._known |= {tensor.untyped_storage()._cdata for tensor in tensors}

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
        self.now += size
        self.peak = max(self.peak, self.now)

    def _freed(self, key: int, size: int, _: Any) -> None:
        del self._alive[key]
        self.now -= size


class Peak:
    """The most bytes that a block took beyond what was there before it; known once the block is left."""

    def __init__(self) -> None:
        self.bytes = 0


@contextmanager
def peak_memory(device: torch.device, before: Sequence[Tensor]) -> Iterator[Peak]:
    """Measure a block: on a GPU by the allocator, on a CPU by `LiveStorages`.

    Args:
        device: whose memory.
        before: tensors that exist already; the block may return views of them.
    """
    found = Peak()
    if device.type == "cuda":
        gc.collect()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_allocated(device)
        yield found
        torch.cuda.synchronize(device)
        found.bytes = torch.cuda.max_memory_allocated(device) - start
        return
    live = LiveStorages()
    live.ignore(before)
    with live:
        yield found
    found.bytes = live.peak
