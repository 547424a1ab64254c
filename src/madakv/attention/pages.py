"""Where sequences' keys and values lie among the rows of one memory: pages of equal size, uneven heads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Pages:
    """Kept entries and tails of S sequences in one layer.

    A page is so many rows of keys, and then as many of their values. Of a head's kept entries each page is full but
    the last. Tails, of what came since, hold equally many entries of each head, and begin anywhere in their first
    page; theirs may be of another size. All tensors are int64, contiguous, and on the device of the rows; those of
    tails may be written to between steps.

    Attributes:
        size: entries of a page of kept ones.
        tail_size: of a page of a tail.
        pages: [P], the first row of each.
        first: [S, H], where in `pages` those of each head begin.
        counts: [S, H], kept entries.
        longest: no head keeps more; known without looking at the device.
        tail_pages: [S, C], the first row of each page of the first head, in a layer that begins at row 0; C at least
            1, what lies behind a tail is not read.
        tail_begin: [S], entries of the first page that do not belong to the tail.
        tail_counts: [S], entries of the tail, all visible.
        tail_row: where this layer begins.
        head_rows: rows from a head's page of a tail to the next head's.
    """

    size: int
    tail_size: int
    pages: Tensor
    first: Tensor
    counts: Tensor
    longest: int
    tail_pages: Tensor
    tail_begin: Tensor
    tail_counts: Tensor
    tail_row: int
    head_rows: int

    def __post_init__(self) -> None:
        """Refuse what kernels would read wrongly, as far as that shows without looking at the device."""
        S, H = self.counts.shape
        wanted = {
            "pages": (len(self.pages),),
            "first": (S, H),
            "counts": (S, H),
            "tail_pages": (S, self.tail_capacity),
            "tail_begin": (S,),
            "tail_counts": (S,),
        }
        for name, shape in wanted.items():
            tensor = getattr(self, name)
            if tuple(tensor.shape) != shape or tensor.dtype != torch.int64 or not tensor.is_contiguous():
                raise ValueError(
                    f"{name} has to be contiguous int64 {shape}; it is {tensor.dtype} {tuple(tensor.shape)}"
                )

    @property
    def tail_capacity(self) -> int:
        """C."""
        return self.tail_pages.shape[1]

    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """All keys' and values' rows, padded to one length.

        Returns:
            rows of keys and of values [S, H, longest + C * tail_size] int64, 0 where there is no entry, and where
            there is one, bool.
        """
        n = torch.arange(self.longest, device=self.counts.device)
        kept = n < self.counts[..., None]
        page = torch.where(kept, self.first[..., None] + n // self.size, 0)
        rows = self.pages[page] + n % self.size if len(self.pages) else page
        m = torch.arange(self.tail_capacity * self.tail_size, device=self.counts.device)
        at = m - self.tail_begin[:, None]
        new = ((at >= 0) & (at < self.tail_counts[:, None]))[:, None].expand(*self.counts.shape, -1)
        heads = torch.arange(self.counts.shape[1], device=self.counts.device)[:, None] * self.head_rows
        tail = (
            (self.tail_pages.repeat_interleave(self.tail_size, 1) + m % self.tail_size)[:, None]
            + heads
            + self.tail_row
        )
        there = torch.cat([kept, new], -1)
        keys, values = (
            torch.cat([rows + behind, tail + tail_behind], -1).masked_fill(~there, 0)
            for behind, tail_behind in ((0, 0), (self.size, self.tail_size))
        )
        return keys, values, there
