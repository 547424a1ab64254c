"""What came after the prompt: one entry per step for every row and head, so a plain rectangle."""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST_GROWTH = 8
_GROWTH_SHARE = 16


class Tail:
    """Keys and values of the tokens seen after the prompt; append is amortised O(1).

    Capacity grows by a sixteenth of all that the layer holds, so that unused memory stays small beside the
    prompt's entries and the copies of growing stay a small, constant share of each step's reading.
    """

    def __init__(self) -> None:
        self.length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    @property
    def keys(self) -> Tensor:
        """[B, H, length, Dk], a view."""
        return _filled(self._keys, self.length)

    @property
    def values(self) -> Tensor:
        """[B, H, length, Dv], a view."""
        return _filled(self._values, self.length)

    @property
    def buffers(self) -> tuple[Tensor, Tensor]:
        """Keys [B, H, capacity, Dk] and values [B, H, capacity, Dv]; behind `length` they hold anything."""
        if self._keys is None or self._values is None:
            raise RuntimeError("the tail is empty: append before reading")
        return self._keys, self._values

    @property
    def nbytes(self) -> int:
        """Bytes of the storages, unused capacity included."""
        return sum(x.untyped_storage().nbytes() for x in (self._keys, self._values) if x is not None)

    def append(self, keys: Tensor, values: Tensor, prompt_length: int) -> None:
        """Add new entries for every row and head.

        Args:
            keys: [B, H, n, Dk].
            values: [B, H, n, Dv].
            prompt_length: mean entries per head that the layer holds from the prompt; sets the growth step.
        """
        end = self.length + keys.shape[2]
        if self._keys is None or self._values is None or end > self._keys.shape[2]:
            capacity = end + max(_LEAST_GROWTH, (prompt_length + end) // _GROWTH_SHARE)
            self._keys = _grown(self._keys, keys, self.length, capacity)
            self._values = _grown(self._values, values, self.length, capacity)
        self._keys[:, :, self.length : end] = keys
        self._values[:, :, self.length : end] = values
        self.length = end

    def select_rows(self, rows: Tensor) -> None:
        """Reorder and repeat rows in place, [B'] int64; capacity stays, so that the next append need not grow."""
        if self._keys is not None and self._values is not None:
            self._keys, self._values = self._keys[rows], self._values[rows]

    def to(self, device: torch.device | str) -> None:
        """Move to another device in place."""
        if self._keys is not None and self._values is not None:
            self._keys, self._values = self._keys.to(device), self._values.to(device)


def _filled(buffer: Tensor | None, length: int) -> Tensor:
    if buffer is None:
        raise RuntimeError("the tail is empty: append before reading")
    return buffer[:, :, :length]


def _grown(old: Tensor | None, like: Tensor, length: int, capacity: int) -> Tensor:
    B, H, _, D = like.shape
    grown = like.new_empty(B, H, capacity, D)
    if old is not None:
        grown[:, :, :length] = old[:, :, :length]
    return grown
