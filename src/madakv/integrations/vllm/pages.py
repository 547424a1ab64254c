"""Where a request's kept entries lie: uneven heads in pages of equal size, in whatever layer's memory there is room.

A block of the engine holds, in every layer's memory, a cell of `2 * block_size` rows for each KV head: here, a few
pages, each of them its keys and then its values. All cells have one shape, and keys are rotated already, so that a
page of any layer's any head can lie in any cell. Nobody but these tables reads them, so that cells follow each other
whatever the engine's own order of heads and entries in a block is. Tokens behind the prompt lie by their position: a
cell is one page of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from madakv.integrations.vllm.devices import on
from madakv.integrations.vllm.layout import is_dense
from madakv.integrations.vllm.settings import page_size
from madakv.plan import KeepPlan


@dataclass(frozen=True, eq=False)
class Memory:
    """The engine's KV cache of all layers as rows of one head's keys or values.

    Attributes:
        rows: [R, D], a view of all there is.
        layers: [L] int64 on the host, the first row of each layer's block 0.
        block_rows: rows from one block of a layer to its next.
        heads: KV heads.
        block_size: entries of a cell.
    """

    rows: Tensor
    layers: Tensor
    block_rows: int
    heads: int
    block_size: int

    @classmethod
    def behind(cls, caches: Sequence[Tensor]) -> Memory:
        """That of layers' caches, [blocks, heads, block_size, 2 * D] each, all views of one storage.

        Raises:
            ValueError: they are not, or a block's numbers do not lie together.
        """
        first = caches[0]
        _, heads, size, width = first.shape
        D = width // 2
        same = all(
            cache.shape == first.shape
            and cache.stride() == first.stride()
            and cache.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
            and cache.storage_offset() % D == 0
            for cache in caches
        )
        if not same or not is_dense(first) or first.stride(0) % D:
            raise ValueError(
                f"caches of {tuple(first.shape)}, strides {first.stride()}, are not blocks of one memory"
            )
        total = first.untyped_storage().nbytes() // first.element_size()
        rows = first.as_strided((total // D, D), (D, 1), 0)
        starts = torch.tensor([cache.storage_offset() // D for cache in caches])
        return cls(rows, starts, first.stride(0) // D, heads, size)

    @property
    def cell_rows(self) -> int:
        """Rows of a cell."""
        return 2 * self.block_size

    @property
    def page_size(self) -> int:
        """Entries of a page."""
        return page_size(self.block_size)

    def cells(self, layer: Tensor, block: Tensor, head: Tensor) -> Tensor:
        """The first row of each cell, int64."""
        return self.layers[layer] + block * self.block_rows + head * self.cell_rows


class PageTable:
    """The pages of one request.

    Args:
        memory: that they lie in.
        plans: of each layer, of one row.
        blocks: [K] int64 on the host, the engine's blocks that hold them.

    Attributes, all on the host:
        counts: [L, H] int64, entries of each head.
        pages: [P] int64, their first rows, head after head and layer after layer.
        first: [L, H] int64, where in `pages` those of each head begin.
    """

    def __init__(self, memory: Memory, plans: Sequence[KeepPlan], blocks: Tensor) -> None:
        self._memory = memory
        self.counts = torch.cat([plan.counts for plan in plans]).cpu()
        size, of_cell = memory.page_size, memory.block_size // memory.page_size
        needed = (self.counts + size - 1) // size
        L, H = needed.shape
        if int(needed.sum()) > L * H * of_cell * len(blocks):
            raise RuntimeError(f"{int(needed.sum())} pages do not fit into {len(blocks)} blocks of {L * H * of_cell}")
        layer, head, number = torch.meshgrid(*(torch.arange(n) for n in (L, H, of_cell * len(blocks))), indexing="ij")
        pages = memory.cells(layer, blocks[number // of_cell], head) + number % of_cell * 2 * size
        # Each head takes of its own cells first, so that its pages lie together; what it lacks, others leave.
        own = number < needed[..., None]
        lacking = (needed - own.sum(-1)).flatten()
        owners = torch.cat([(layer * H + head)[own], torch.arange(L * H).repeat_interleave(lacking)])
        taken = torch.cat([pages[own], pages[~own][: int(lacking.sum())]])
        self.pages = taken[owners.argsort(stable=True)]
        self.first = (needed.flatten().cumsum(0) - needed.flatten()).view(L, H)

    def key_rows(self, layer: int) -> Tensor:
        """[T] int64: the row of each entry's key, head after head; its value lies `page_size` rows behind."""
        size, counts = self._memory.page_size, self.counts[layer]
        place = torch.arange(int(counts.sum())) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        return self.pages[self.first[layer].repeat_interleave(counts) + place // size] + place % size

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Put a layer's entries into its pages, [T, D] each."""
        rows = on(keys.device, self.key_rows(layer))
        self._memory.rows.index_copy_(0, rows, keys)
        self._memory.rows.index_copy_(0, rows + self._memory.page_size, values)


def token_rows(memory: Memory, blocks: Tensor, positions: Tensor) -> Tensor:
    """[H, n] int64 on the host: the row of each head's key of tokens that lie by position in a request's blocks.

    Their values lie `block_size` rows behind.

    Args:
        memory: that they lie in; rows are those of a layer that begins at row 0.
        blocks: [b] int64, all blocks of the request.
        positions: [n] int64.
    """
    block = blocks[positions // memory.block_size] * memory.block_rows
    heads = torch.arange(memory.heads)[:, None] * memory.cell_rows
    return block + heads + positions % memory.block_size
