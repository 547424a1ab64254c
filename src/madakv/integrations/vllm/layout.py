"""How the engine's own kernels lay out a block, learned by writing into one: each place is found, none assumed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from madakv.errors import UnsupportedOptionError
from madakv.integrations.vllm.devices import on

Write = Callable[[Tensor, Tensor, Tensor], None]
"""Writes keys and values, [n, H, D] each, into all n slots of a cache [1, H, n, 2 * D]."""

_BASE = 128
"""Whole numbers up to this are exact in every dtype."""


def is_dense(cache: Tensor) -> bool:
    """Whether the numbers of each block of a layer's cache lie together, in whatever order."""
    steps = zip(cache.shape[1:], cache.stride()[1:], strict=True)
    return 1 + sum((count - 1) * step for count, step in steps) == cache.shape[1:].numel()


@dataclass(frozen=True, eq=False)
class Layout:
    """Of a block's numbers in one layer, H * block_size * 2 * D.

    Attributes:
        keys, values: [H, block_size, D] int64, the place of each entry's numbers in the block.
    """

    keys: Tensor
    values: Tensor

    @classmethod
    def learned(cls, write: Write, cache: Tensor) -> Layout:
        """By numbering the entries of a cache of one block.

        Args:
            write: as the engine does.
            cache: of a layer, [blocks, H, block_size, 2 * D], which is looked at and not written to.

        Raises:
            UnsupportedOptionError: the engine does more than moving numbers, or blocks are in pieces.
        """
        if not is_dense(cache):
            raise UnsupportedOptionError(
                "madakv in vLLM: a block's keys and values have to lie together: leave out VLLM_KV_CACHE_LAYOUT"
            )
        _, H, size, width = cache.shape
        places = torch.arange(H * size * width).view(2, size, H, width // 2)
        found = torch.zeros(places.numel(), dtype=torch.int64)
        digit = 1
        while digit < places.numel():
            told = (places // digit % _BASE).to(cache.device, cache.dtype)
            block = torch.empty_strided(
                (1, H, size, width), cache.stride(), dtype=cache.dtype, device=cache.device
            ).zero_()
            write(told[0], told[1], block)
            found += block.as_strided((places.numel(),), (1,)).to("cpu", torch.int64) * digit
            digit *= _BASE
        order = found.argsort()
        if not torch.equal(found[order], places.flatten()):
            raise UnsupportedOptionError("madakv in vLLM: the engine's KV cache holds more than keys and values")
        keys, values = order.view(places.shape).transpose(1, 2).contiguous().to(cache.device)
        return cls(keys, values)

    def gather(self, cache: Tensor, blocks: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
        """The first tokens of a request.

        Args:
            cache: of a layer, [blocks, H, block_size, 2 * D].
            blocks: [b] int64 on the host, the request's, in order.
            tokens: N.

        Returns:
            keys and values [1, H, N, D], copies.
        """
        H, size, dim = self.keys.shape
        rows = cache.as_strided((len(cache), 2 * self.keys.numel()), (cache.stride(0), 1), cache.storage_offset())
        own = rows.index_select(0, on(cache.device, blocks[: -(-tokens // size)]))
        both = (own[:, places.flatten()].view(-1, H, size, dim) for places in (self.keys, self.values))
        keys, values = (x.transpose(0, 1).reshape(1, H, -1, dim)[:, :, :tokens] for x in both)
        return keys, values
