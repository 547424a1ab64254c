"""How the engine's own kernels lay out a cell, learned by writing into one: each place is found, none assumed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from madakv.errors import UnsupportedOptionError

Write = Callable[[Tensor, Tensor, Tensor], None]
"""Writes keys and values, [n, H, D] each, into all n slots of a cache [1, H, n, 2 * D]."""

_BASE = 128
"""Whole numbers up to this are exact in every dtype."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Of a cell of [block_size, 2 * D] numbers.

    Attributes:
        keys, values: [block_size, D] int64, the place of each entry's numbers in the cell.
    """

    keys: Tensor
    values: Tensor

    @classmethod
    def learned(cls, write: Write, *, heads: int, block_size: int, dim: int, dtype: torch.dtype) -> Layout:
        """By numbering the entries of a cache of one block.

        Raises:
            UnsupportedOptionError: the engine does more than moving numbers.
        """
        places = torch.arange(2 * block_size * dim).view(2, block_size, 1, dim)
        found = torch.zeros(heads, 2 * block_size * dim, dtype=torch.int64)
        digit = 1
        while digit < places.numel():
            told = (places // digit % _BASE).to(dtype).expand(2, block_size, heads, dim).contiguous()
            cache = torch.zeros(1, heads, block_size, 2 * dim, dtype=dtype)
            write(told[0], told[1], cache)
            found += cache.view(heads, -1).to(torch.int64) * digit
            digit *= _BASE
        order = found[0].argsort()
        if not torch.equal(found[0][order], places.flatten()) or not bool((found == found[0]).all()):
            raise UnsupportedOptionError("madakv in vLLM: the engine's KV cache holds more than keys and values")
        keys, values = order.view(2, block_size, dim)
        return cls(keys, values)

    def gather(self, cache: Tensor, blocks: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
        """The first tokens of a request.

        Args:
            cache: of a layer, [blocks, H, block_size, 2 * D].
            blocks: [b] int64, the request's, in order.
            tokens: N.

        Returns:
            keys and values [1, H, N, D], copies.
        """
        H = cache.shape[1]
        size, dim = self.keys.shape
        cells = cache[blocks[: -(-tokens // size)]].flatten(2)
        both = (cells[:, :, places.flatten()].view(-1, H, size, dim) for places in (self.keys, self.values))
        keys, values = (x.transpose(0, 1).reshape(1, H, -1, dim)[:, :, :tokens] for x in both)
        return keys, values
