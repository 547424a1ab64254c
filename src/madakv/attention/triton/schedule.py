"""Which program of the decode kernel reads which entries of which head: decided once per eviction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from madakv.attention.programs import programs_of
from madakv.cache import Entries

_STEP = 64
"""Chunks are multiples of this many entries, and at least it: fewer do not pay for writing and merging a part."""


@dataclass(frozen=True, eq=False)
class DecodeSchedule:
    """Heads cut into chunks of about equal size, so that a long head is only many chunks, not a long wait.

    The tail is cut too, by the same rule, but for its whole capacity: which of its chunks hold something is looked
    up on the device, so that launches and addresses stay the same while it grows.

    Attributes:
        chunks: [P, 4] int32, the longest first: flat (row, head) index, first entry, entries, and which part of all
            parts the result is. Parts of one head follow each other.
        first: [B * H + 1] int32, where the parts of each head begin.
        chunk: entries that no chunk of the prompt exceeds.
        programs: chunks that are aimed at, for the prompt and for the tail.
    """

    chunks: Tensor
    first: Tensor
    chunk: int
    programs: int

    @classmethod
    def of(
        cls, lengths: tuple[int, ...], device: torch.device | str, *, programs: int | None = None
    ) -> DecodeSchedule:
        """Cut heads of the given lengths, which lie one behind another in row-major [B, H] order.

        Args:
            lengths: entries of each row and head, below 2**31 in all.
            device: where the kernel runs; the table is copied there once.
            programs: chunks to aim at; None = what keeps the device busy.
        """
        if programs is None:
            programs = programs_of(torch.device(device))
        count = torch.tensor(lengths)
        chunk = _chunk_size(sum(lengths), programs)
        pieces = (count + chunk - 1) // chunk
        first = torch.cat([pieces.new_zeros(1), pieces.cumsum(0)])
        owner = torch.arange(len(lengths)).repeat_interleave(pieces)
        part = torch.arange(len(owner))
        rank = part - first[owner]
        # Of a head's pieces, the first ones take an entry more where it does not divide.
        base, more = (count[owner] // pieces[owner]), count[owner] % pieces[owner]
        start = (count.cumsum(0) - count)[owner] + rank * base + torch.minimum(rank, more)
        size = base + (rank < more)
        chunks = torch.stack([owner, start, size, part], dim=1)[size.argsort(descending=True, stable=True)]
        return cls(
            chunks=chunks.to(device, torch.int32).contiguous(),
            first=first.to(device, torch.int32),
            chunk=chunk,
            programs=programs,
        )

    @property
    def owners(self) -> int:
        """B * H."""
        return len(self.first) - 1

    def tail_chunk(self, capacity: int) -> int:
        """Entries per chunk of a tail that can hold `capacity` entries of each row and head."""
        return max(self.chunk, _chunk_size(capacity * self.owners, self.programs))

    def tail_splits(self, capacity: int) -> int:
        """Chunks per head of such a tail, at least 1."""
        return max(1, -(-capacity // self.tail_chunk(capacity)))

    def parts(self, capacity: int) -> int:
        """Parts in all, those of the prompt first, then `tail_splits` for each row and head."""
        return len(self.chunks) + self.owners * self.tail_splits(capacity)

    def workspace_size(self, capacity: int, group: int, value_dim: int) -> int:
        """fp32 elements that the parts of one step take: G means of Dv values and G denominators each.

        Layers run one after another and can share one workspace, of the largest size.
        """
        return self.parts(capacity) * group * (value_dim + 1)

    def to(self, device: torch.device | str) -> DecodeSchedule:
        """The same schedule on another device."""
        return DecodeSchedule(self.chunks.to(device), self.first.to(device), self.chunk, self.programs)


def decode_schedule(entries: Entries) -> DecodeSchedule:
    """What the decode kernel reads of some entries; for `Entries.once`."""
    return DecodeSchedule.of(entries.lengths, entries.keys.device)


def _chunk_size(entries: int, programs: int) -> int:
    return max(1, -(-entries // (programs * _STEP))) * _STEP
