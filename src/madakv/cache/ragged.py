"""Kept prompt entries of one layer: every row and head with its own length, packed without a gap."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from madakv.cache.tiles import TileSchedule
from madakv.plan import KeepPlan

if TYPE_CHECKING:
    from madakv.attention.triton import DecodeSchedule
    from madakv.attention.varlen import VarlenSchedule

_LEAST_TILE = 8
_SHORT_TILE = 64
_MOST_TILE = 512


@dataclass(frozen=True, eq=False)
class RaggedEntries:
    """Keys and values of T entries, heads one after another in row-major [B, H] order.

    Immutable: what is generated later goes to a `Tail`, so that nothing here is ever copied to grow.

    Attributes:
        keys: [T, Dk], owning exactly its memory.
        values: [T, Dv].
        counts: [B, H] int64, entries of each row and head.
        lengths: the counts as plain ints, row-major, so that no step has to ask the device.
        tile: entries that attention reads as one block where heads are uneven.
    """

    keys: Tensor
    values: Tensor
    counts: Tensor
    lengths: tuple[int, ...]
    tile: int

    @classmethod
    def gather(cls, keys: Tensor, values: Tensor, plan: KeepPlan) -> RaggedEntries:
        """Copy the planned entries out of a layer's full keys and values, which are then free to go.

        Args:
            keys: [B, H, N, Dk].
            values: [B, H, N, Dv].
            plan: the entries to keep.
        """
        H = keys.shape[1]
        head = plan.owners()
        source = (head // H, head % H, plan.positions)
        return cls._pack(keys, values, source, plan.counts)

    def rectangle(self, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a whole prompt as [B, H, N, D], zero where `valid` ([B, N] bool) is false."""
        B, H = self.counts.shape
        where = valid[:, None].expand(B, H, -1)
        keys = self.keys.new_zeros(*where.shape, self.keys.shape[-1])
        values = self.values.new_zeros(*where.shape, self.values.shape[-1])
        keys[where], values[where] = self.keys, self.values
        return keys, values

    @classmethod
    def narrowed(cls, parts: list[Tensor], own: KeepPlan, plan: KeepPlan) -> RaggedEntries:
        """Copy the planned entries out of kept ones.

        Args:
            parts: their values and keys, in this order; taken out of the list one by one, so that there are never
                two copies of both.
            own: what these entries are.
            plan: some of them.
        """
        source = own.find(plan)
        keys = parts.pop()[source]
        return cls._of(keys, parts.pop()[source], plan.counts)

    def replaced(self, keys: Tensor, values: Tensor) -> RaggedEntries:
        """The same owners with other contents, [T, Dk] and [T, Dv]."""
        return replace(self, keys=keys, values=values)

    @classmethod
    def _pack(cls, keys: Tensor, values: Tensor, source: tuple[Tensor, ...], counts: Tensor) -> RaggedEntries:
        """Copy `keys[source]` and `values[source]`, which lie in the order of the heads, into fresh memory."""
        return cls._of(keys[source], values[source], counts)

    @classmethod
    def _of(cls, keys: Tensor, values: Tensor, counts: Tensor) -> RaggedEntries:
        """Entries that are packed already."""
        lengths = tuple(counts.flatten().tolist())
        return cls(keys=keys, values=values, counts=counts, lengths=lengths, tile=_tile_size(lengths))

    @cached_property
    def starts(self) -> Tensor:
        """[B, H] int64: where each head's entries begin."""
        flat = self.counts.flatten()
        return (flat.cumsum(0) - flat).view_as(self.counts)

    @cached_property
    def tiles(self) -> TileSchedule:
        """Which heads own which tile of the memory; asked for only where heads are uneven."""
        return TileSchedule.of(self.lengths, self.tile, like=self.keys)

    @cached_property
    def decode_schedule(self) -> DecodeSchedule:
        """What the decode kernel reads; asked for only where that runs."""
        from madakv.attention.triton import DecodeSchedule

        return DecodeSchedule.of(self.lengths, self.keys.device)

    @cached_property
    def varlen_schedule(self) -> VarlenSchedule:
        """What kernels for sequences of uneven length read; asked for only where they run."""
        from madakv.attention.varlen import VarlenSchedule

        return VarlenSchedule.of(self)

    @property
    def even(self) -> bool:
        """Whether all rows and heads hold equally many entries, so that the memory is a plain [B, H, t, D]."""
        return len(set(self.lengths)) == 1

    @property
    def nbytes(self) -> int:
        """Bytes of the storages behind keys and values, whatever part of them is in use."""
        return self.keys.untyped_storage().nbytes() + self.values.untyped_storage().nbytes()

    def select_rows(self, rows: Tensor) -> RaggedEntries:
        """The entries of the given rows, in that order and repeated as asked; a copy.

        Args:
            rows: [B'] int64 row indices.
        """
        counts = self.counts[rows]
        flat = counts.flatten()
        shift = self.starts[rows].flatten() - (flat.cumsum(0) - flat)
        source = torch.arange(int(flat.sum()), device=flat.device) + shift.repeat_interleave(flat)
        return self._pack(self.keys, self.values, (source,), counts)

    def to(self, device: torch.device | str) -> RaggedEntries:
        """The same entries on another device."""
        keys, values, counts = self.keys.to(device), self.values.to(device), self.counts.to(device)
        return replace(self, keys=keys, values=values, counts=counts)


def _tile_size(lengths: tuple[int, ...]) -> int:
    """Entries per tile: one head's length if all are equal, else a power of two that few heads share.

    A tile in which heads meet is read once more for each; small tiles leave more parts to merge. A sixteenth of a
    head balances the two for long heads, a quarter for short ones, where merging would cost more than reading.
    """
    if len(set(lengths)) == 1:
        return max(1, lengths[0])
    size = (sum(lengths) // len(lengths)).bit_length()
    wanted = max(min(_SHORT_TILE, 1 << max(0, size - 2)), 1 << max(0, size - 4))
    return min(sum(lengths), max(_LEAST_TILE, min(_MOST_TILE, wanted)))
