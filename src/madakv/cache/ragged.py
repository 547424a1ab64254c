"""Kept entries as they are: every row and head with its own length, packed without a gap."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from madakv.cache.entries import Entries
from madakv.plan import KeepPlan


class RaggedEntries(Entries):
    """Keys and values in the model's own dtype, each in memory of exactly its size.

    What is generated later goes to a `Tail`, so that nothing here is ever copied to grow.

    Args:
        keys: [T, Dk].
        values: [T, Dv].
        counts: [B, H] int64.
    """

    def __init__(self, keys: Tensor, values: Tensor, counts: Tensor) -> None:
        super().__init__(counts)
        self._keys = keys
        self._values = values

    @classmethod
    def pack(cls, keys: Tensor, values: Tensor, counts: Tensor) -> Self:
        """Take over memory that is packed already."""
        return cls(keys, values, counts)

    @property
    def keys(self) -> Tensor:
        """[T, Dk]."""
        return self._keys

    @property
    def values(self) -> Tensor:
        """[T, Dv]."""
        return self._values

    def narrow(self, own: KeepPlan, plan: KeepPlan) -> None:
        """Copy what stays, keys first, so that there are never two copies of both."""
        source = own.find(plan)
        self._keys = self._keys.index_select(0, source)
        self._values = self._values.index_select(0, source)
        self._recount(plan.counts)

    def to(self, device: torch.device | str) -> Self:
        """A copy there; the same memory where it is there already."""
        moved = self._moved(device)
        moved._keys, moved._values = self._keys.to(device), self._values.to(device)
        return moved

    @property
    def nbytes(self) -> int:
        """Bytes of the storages behind keys and values, whatever part of them is in use."""
        return self._keys.untyped_storage().nbytes() + self._values.untyped_storage().nbytes()
