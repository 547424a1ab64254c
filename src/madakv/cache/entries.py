"""What a store of kept entries has to offer: one class per way to hold them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from madakv.plan import KeepPlan

Made = TypeVar("Made")


class Entries(ABC):
    """Keys and values of T entries, heads one after another in row-major [B, H] order, each with its own length.

    A store says how they are held: `pack`, `keys`, `values`, `narrow`, `to`, `nbytes`. All else follows. Attention
    reads keys, values, counts and lengths, and nothing else.

    Args:
        counts: [B, H] int64, entries of each row and head.

    Attributes:
        counts: as given.
        lengths: the counts as plain ints, row-major, so that no step has to ask the device.
    """

    def __init__(self, counts: Tensor) -> None:
        self._recount(counts)

    def _recount(self, counts: Tensor) -> None:
        """Note how many there are now; what was derived of earlier ones is void."""
        self.counts = counts
        self.lengths: tuple[int, ...] = tuple(counts.flatten().tolist())
        self._derived: dict[Any, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Copies derive anew: what kernels read holds addresses of these entries."""
        return {**self.__dict__, "_derived": {}}

    @classmethod
    @abstractmethod
    def pack(cls, keys: Tensor, values: Tensor, counts: Tensor) -> Self:
        """Hold entries that lie in the order of the heads.

        Args:
            keys: [T, Dk], in memory that nobody else uses.
            values: [T, Dv], likewise.
            counts: [B, H] int64 that sums to T.
        """

    @property
    @abstractmethod
    def keys(self) -> Tensor:
        """[T, Dk], as attention multiplies with them."""

    @property
    @abstractmethod
    def values(self) -> Tensor:
        """[T, Dv]."""

    @abstractmethod
    def narrow(self, own: KeepPlan, plan: KeepPlan) -> None:
        """Let go, in place, of what a plan keeps no more.

        Args:
            own: what these entries are.
            plan: some of them.
        """

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """The same entries on another device."""

    def _moved(self, device: torch.device | str) -> Self:
        """A shallow copy whose counts are on a device, without asking it how many they are."""
        moved = copy(self)
        moved.counts, moved._derived = self.counts.to(device), {}
        return moved

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of all storages that are held."""

    def once(self, make: Callable[[Self], Made]) -> Made:
        """What `make` derives of these entries, made once: the tables that a kernel reads, say."""
        if make not in self._derived:
            self._derived[make] = make(self)
        made: Made = self._derived[make]
        return made

    @classmethod
    def gather(cls, keys: Tensor, values: Tensor, plan: KeepPlan) -> Self:
        """Copy the planned entries out of a layer's full keys and values, which are then free to go.

        Args:
            keys: [B, H, N, Dk].
            values: [B, H, N, Dv].
            plan: the entries to keep.
        """
        head = plan.owners()
        keys, values = (_picked(states, head, plan.positions) for states in (keys, values))
        return cls.pack(keys, values, plan.counts)

    def replaced(self, keys: Tensor, values: Tensor) -> Self:
        """The same owners with other contents, [T, Dk] and [T, Dv]."""
        return self.pack(keys, values, self.counts)

    def select_rows(self, rows: Tensor) -> Self:
        """The entries of the given rows, in that order and repeated as asked; a copy.

        Args:
            rows: [B'] int64 row indices.
        """
        counts = self.counts[rows]
        flat = counts.flatten()
        shift = self.starts[rows].flatten() - (flat.cumsum(0) - flat)
        source = torch.arange(int(flat.sum()), device=flat.device) + shift.repeat_interleave(flat)
        return self.pack(self.keys.index_select(0, source), self.values.index_select(0, source), counts)

    def rectangle(self, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a whole prompt as [B, H, N, D], zero where `valid` ([B, N] bool) is false;
        a view of these where it never is.
        """
        B, H = self.counts.shape
        if bool(valid.all()):
            whole = (B, H, valid.shape[1], -1)
            return self.keys.reshape(whole), self.values.reshape(whole)
        where = valid[:, None].expand(B, H, -1)
        keys = self.keys.new_zeros(*where.shape, self.keys.shape[-1])
        values = self.values.new_zeros(*where.shape, self.values.shape[-1])
        keys[where], values[where] = self.keys, self.values
        return keys, values

    @property
    def starts(self) -> Tensor:
        """[B, H] int64: where each head's entries begin."""
        flat = self.counts.flatten()
        return (flat.cumsum(0) - flat).view_as(self.counts)

    @property
    def even(self) -> bool:
        """Whether all rows and heads hold equally many entries, so that the memory is a plain [B, H, t, D]."""
        return len(set(self.lengths)) == 1


def _picked(states: Tensor, head: Tensor, position: Tensor) -> Tensor:
    """Entries [T, D] of states [B, H, N, D], by flat (row, head) index and position, both [T] int64."""
    _, H, N, D = states.shape
    row, column, step, inner = states.stride()
    if (inner, step) != (1, D) or row % D or column % D:
        return states[head // H, head % H, position]
    # As rows of the memory behind: picking rows is ten times as fast on a CPU as picking by three indices.
    rows = states.as_strided((((len(states) - 1) * row + (H - 1) * column) // D + N, D), (D, 1))
    return rows.index_select(0, (head // H * row + head % H * column) // D + position)
