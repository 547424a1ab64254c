"""Evicted requests that answer together: the tables by which their layers' attention finds pages and tails.

Which requests these are changes seldom. Until it does, a step writes what has grown: a length each, and now and then
a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from madakv.attention import Pages
from madakv.integrations.vllm.devices import on
from madakv.integrations.vllm.pages import Memory
from madakv.integrations.vllm.requests import Request

_SPARE_BLOCKS = 4
"""Of each tail, so that new tables are not needed as soon as one grows."""


@dataclass(frozen=True, eq=False)
class Span:
    """New tokens of one evicted request in a step.

    Attributes:
        request: whose.
        row: of the batch.
        begin: the first of them among the tokens of the step.
        tokens: how many.
        start: the position of the first.
    """

    request: Request
    row: int
    begin: int
    tokens: int
    start: int

    @property
    def behind(self) -> int:
        """How many of them do not belong to the prompt."""
        return max(0, min(self.tokens, self.start + self.tokens - self.request.prompt))

    @property
    def evicted(self) -> bool:
        """Whether none of them does, so that they attend to pages."""
        return self.behind == self.tokens

    @property
    def completes(self) -> bool:
        """Whether the prompt's last token is among them."""
        return not self.evicted and self.start + self.tokens >= self.request.prompt


class Decoding:
    """Tables of some spans, and of those that follow them; each token is a sequence of its own.

    Args:
        memory: that pages and tails lie in.
        spans: evicted ones, at least one.

    Attributes:
        layers: of each layer, where its S sequences' entries lie.
        tokens: [S] int64, which tokens of the step they are.
    """

    def __init__(self, memory: Memory, spans: Sequence[Span]) -> None:
        self._memory = memory
        self._tables = [span.request.table for span in spans]
        self._lasts = all(span.tokens == 1 for span in spans)
        tables = [table for table in self._tables if table is not None]
        assert len(tables) == len(spans)
        device, size = memory.rows.device, memory.block_size
        repeats = torch.tensor([span.tokens for span in spans])
        before = torch.tensor([0, *(len(table.pages) for table in tables)]).cumsum(0)[:-1, None, None]
        pages = on(device, torch.cat([table.pages for table in tables]))
        first, counts = (
            on(device, torch.stack(own).repeat_interleave(repeats, 0).transpose(0, 1).contiguous())
            for own in (
                [table.first + more for table, more in zip(tables, before, strict=True)],
                [table.counts for table in tables],
            )
        )
        self._blocks = [0] * len(spans)
        capacity = max(_tail_blocks(span, size) for span in spans) + _SPARE_BLOCKS
        self._tail_pages = torch.zeros(int(repeats.sum()), capacity, dtype=torch.int64, device=device)
        self._tail_counts = torch.zeros(len(self._tail_pages), dtype=torch.int64, device=device)
        begins = torch.tensor([span.request.prompt % size for span in spans]).repeat_interleave(repeats)
        self._tail_begin = on(device, begins)
        self._heads = torch.arange(memory.heads, device=device) * memory.cell_rows
        self._starts = on(device, memory.layers)[:, None, None]
        self.layers = [
            Pages(
                size=memory.page_size,
                tail_size=size,
                pages=pages,
                first=first[layer],
                counts=counts[layer],
                longest=int(max(table.counts[layer].max() for table in tables)),
                tail_pages=self._tail_pages,
                tail_begin=self._tail_begin,
                tail_counts=self._tail_counts,
                tail_row=start,
                head_rows=memory.cell_rows,
            )
            for layer, start in enumerate(memory.layers.tolist())
        ]
        self._advance(spans)

    @classmethod
    def of(cls, memory: Memory, spans: Sequence[Span], last: Decoding | None) -> Decoding | None:
        """That of a step's evicted spans: the last one if it serves them too; None if there are none."""
        if last is not None and last._goes_on(spans):
            last._advance(spans)
            return last
        return cls(memory, spans) if spans else None

    def _goes_on(self, spans: Sequence[Span]) -> bool:
        return (
            self._lasts
            and len(spans) == len(self._tables)
            and all(
                span.tokens == 1
                and span.request.table is table
                and _tail_blocks(span, self._memory.block_size) <= self._tail_pages.shape[1]
                for span, table in zip(spans, self._tables, strict=True)
            )
        )

    def _advance(self, spans: Sequence[Span]) -> None:
        size, row = self._memory.block_size, 0
        tokens: list[int] = []
        counts: list[int] = []
        for number, span in enumerate(spans):
            have, needed = self._blocks[number], _tail_blocks(span, size)
            if have < needed:
                first = span.request.prompt // size
                more = torch.tensor(span.request.blocks()[first + have : first + needed]) * self._memory.block_rows
                self._tail_pages[row : row + span.tokens, have:needed] = on(self._tail_pages.device, more)
                self._blocks[number] = needed
            behind = span.start - span.request.prompt + 1
            tokens += range(span.begin, span.begin + span.tokens)
            counts += range(behind, behind + span.tokens)
            row += span.tokens
        self.tokens, grown = on(self._tail_counts.device, torch.tensor([tokens, counts]))
        self._tail_counts.copy_(grown)
        last = self._tail_begin + self._tail_counts - 1
        rows = self._tail_pages.gather(1, (last // size)[:, None]) + (last % size)[:, None] + self._heads
        self._slots = (rows + self._starts).flatten(1)

    def store(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Write a layer's keys and values of the step, [n, H, D], those of its tokens."""
        for behind, given in ((0, key), (self._memory.block_size, value)):
            own = given.index_select(0, self.tokens).flatten(0, 1)
            self._memory.rows.index_copy_(0, self._slots[layer] + behind, own)


def _tail_blocks(span: Span, size: int) -> int:
    return (span.start + span.tokens - 1) // size - span.request.prompt // size + 1
