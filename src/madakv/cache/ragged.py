"""Kept prompt entries of one layer: every row and head with its own length, packed without a gap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from madakv.plan import KeepPlan

_Made = TypeVar("_Made")


@dataclass(eq=False)
class RaggedEntries:
    """Keys and values of T entries, heads one after another in row-major [B, H] order.

    What is generated later goes to a `Tail`, so that nothing here is ever copied to grow; `narrow` alone changes it.

    Attributes:
        keys: [T, Dk], owning exactly its memory.
        values: [T, Dv].
        counts: [B, H] int64, entries of each row and head.
        lengths: the counts as plain ints, row-major, so that no step has to ask the device.
    """

    keys: Tensor
    values: Tensor
    counts: Tensor
    lengths: tuple[int, ...]
    _made: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def pack(cls, keys: Tensor, values: Tensor, counts: Tensor) -> RaggedEntries:
        """Entries that lie in the order of the heads already; nothing is copied.

        Args:
            keys: [T, Dk].
            values: [T, Dv].
            counts: [B, H] int64, T in all.
        """
        return cls(keys, values, counts, _lengths(counts))

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
        return cls.pack(keys[source], values[source], plan.counts)

    def once(self, make: Callable[[RaggedEntries], _Made]) -> _Made:
        """What `make` makes of these entries: made when it is first asked for, kept until they change.

        The result must not refer to these entries, or to their keys and values: it would keep freed memory alive.
        """
        if make not in self._made:
            self._made[make] = make(self)
        return cast(_Made, self._made[make])

    def narrow(self, own: KeepPlan, plan: KeepPlan) -> None:
        """Let go of all but the planned entries, keys before values, so that there are never two copies of both.

        Args:
            own: what these entries are.
            plan: some of them.
        """
        source = own.find(plan)
        self._made.clear()
        self.keys = self.keys[source]
        self.values = self.values[source]
        self.counts, self.lengths = plan.counts, _lengths(plan.counts)

    def rectangle(self, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a whole prompt as [B, H, N, D], zero where `valid` ([B, N] bool) is false."""
        B, H = self.counts.shape
        where = valid[:, None].expand(B, H, -1)
        keys = self.keys.new_zeros(*where.shape, self.keys.shape[-1])
        values = self.values.new_zeros(*where.shape, self.values.shape[-1])
        keys[where], values[where] = self.keys, self.values
        return keys, values

    def replaced(self, keys: Tensor, values: Tensor) -> RaggedEntries:
        """The same owners with other contents, [T, Dk] and [T, Dv]."""
        return replace(self, keys=keys, values=values)

    @property
    def starts(self) -> Tensor:
        """[B, H] int64: where each head's entries begin."""
        flat = self.counts.flatten()
        return (flat.cumsum(0) - flat).view_as(self.counts)

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
        return self.pack(self.keys[source], self.values[source], counts)

    def to(self, device: torch.device | str) -> RaggedEntries:
        """The same entries on another device."""
        keys, values, counts = self.keys.to(device), self.values.to(device), self.counts.to(device)
        return replace(self, keys=keys, values=values, counts=counts)


def _lengths(counts: Tensor) -> tuple[int, ...]:
    return tuple(counts.flatten().tolist())
