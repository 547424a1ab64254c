"""What came after the prompt: one entry per step for every row and head, so a plain rectangle."""

from __future__ import annotations

import torch
from torch import Tensor

_GROWTH_SHARE = 16


class Tail:
    """Keys and values of the tokens seen after the prompt; append is amortised O(1).

    Capacity grows by a sixteenth of all that the layer holds, so that unused memory stays small beside the
    prompt's entries and the copies of growing stay a small, constant share of each step's reading.

    Attributes:
        length: entries of each row and head that attention reads.
    """

    def __init__(self) -> None:
        self.length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing was ever appended, so that there is no storage."""
        return self._keys is None

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

    def written(self) -> tuple[Tensor, Tensor]:
        """Keys and values that were appended, [B, H, n, D]; of a fixed tail, asking waits for the device."""
        return self.keys, self.values

    def newest(self) -> tuple[Tensor, Tensor, Tensor]:
        """The last key and value, [B, H, 1, D], and how many entries came before: one integer on the device."""
        last = self.length - 1
        # Filled on the device: nothing is copied, and nothing waits.
        before = torch.full((1,), last, dtype=torch.int32, device=self.keys.device)
        return self.keys[:, :, last:], self.values[:, :, last:], before

    def width_with(self, new: int) -> int:
        """Entries of each row and head that attention reads once so many more are appended."""
        return self.length + new

    def seen(self, span: int) -> int | Tensor:
        """How many tokens were read, of which `span` came before the tail."""
        return span + self.length

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
            capacity = end + max(1, (prompt_length + end) // _GROWTH_SHARE)
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


class FixedTail(Tail):
    """The same with a capacity and addresses that never change, and its length on the device.

    So a step can be captured once and replayed: nothing on the host tells how far it has come. Attention reads the
    whole capacity, of which a mask hides what is not written yet. Whoever appends sees to it that there is room.

    Args:
        keys: [B, H, capacity, Dk], contiguous.
        values: [B, H, capacity, Dv], contiguous.
        count: [] int64, entries of each row and head that are written.
        before: [] int64, how many tokens were read before the tail; None where nobody asks.

    Attributes:
        count: as given.
        handle: under which captured steps find the entries before it; None until there was a step.
    """

    def __init__(self, keys: Tensor, values: Tensor, count: Tensor, before: Tensor | None = None) -> None:
        super().__init__()
        self.handle: Tensor | None = None
        self.length, self.count, self._before = keys.shape[2], count, before
        self._keys, self._values = keys, values

    @classmethod
    def following(
        cls, old: Tail, *, like: tuple[Tensor, Tensor], owners: tuple[int, int], room: int, span: int
    ) -> FixedTail:
        """A tail with the same entries and room for more.

        Args:
            old: what was appended so far.
            like: keys [.., Dk] and values [.., Dv] of the prompt, for sizes, dtype and device.
            owners: B and H.
            room: tokens to come.
            span: how many tokens were read before the tail.
        """
        length = 0 if old.empty else old.written()[0].shape[2]
        # Zeros: what is hidden still meets a weight of 0, and 0 times anything that is not a number is not 0.
        keys, values = (x.new_zeros(*owners, max(1, length + room), x.shape[-1]) for x in like)
        if length:
            keys[:, :, :length], values[:, :, :length] = old.written()
        count, before = (torch.tensor(tokens, device=keys.device) for tokens in (length, span))
        tail = cls(keys, values, count, before)
        tail._mark()
        return tail

    def width_with(self, new: int) -> int:  # noqa: ARG002
        """All of it, always."""
        return self.length

    def seen(self, span: int) -> int | Tensor:
        """How many tokens were read: an integer tensor on the device, so that nothing waits."""
        return self.count + (span if self._before is None else self._before)

    def written(self) -> tuple[Tensor, Tensor]:
        """Keys and values that were appended, [B, H, n, D]; asking waits for the device."""
        count = int(self.count)
        return self.keys[:, :, :count], self.values[:, :, :count]

    def newest(self) -> tuple[Tensor, Tensor, Tensor]:
        """The last key and value, [B, H, 1, D], and how many entries came before: one integer on the device."""
        before = (self.count - 1).view(1)
        return self.keys.index_select(2, before), self.values.index_select(2, before), before

    def visible(self, new: int) -> Tensor:
        """[1, 1, new, length] bool: which entries the last so many tokens may see, padding aside."""
        places = torch.arange(self.length, device=self.count.device)
        ends = self.count - new + 1 + torch.arange(new, device=self.count.device)
        return (places < ends[:, None])[None, None]

    def append(self, keys: Tensor, values: Tensor, prompt_length: int = 0) -> None:  # noqa: ARG002
        """Write new entries for every row and head behind the last ones, [B, H, n, D], n at most what is left."""
        places = torch.arange(keys.shape[2], device=self.count.device) + self.count
        for buffer, states in zip(self.buffers, (keys, values), strict=True):
            buffer.index_copy_(2, places, states.to(buffer.dtype))
        self.count.add_(keys.shape[2])

    def growing(self) -> Tail:
        """A tail that grows, with the same entries."""
        tail = Tail()
        if int(self.count):
            tail.append(*self.written(), 0)
        return tail

    def select_rows(self, rows: Tensor) -> None:
        """Reorder and repeat rows, [B'] int64; the addresses are new ones then."""
        super().select_rows(rows)
        self._mark()

    def to(self, device: torch.device | str) -> None:
        """Move to another device in place."""
        super().to(device)
        self.count = self.count.to(device)
        self._before = None if self._before is None else self._before.to(device)
        self._mark()

    def _mark(self) -> None:
        """Tell torch.compile that these stay where they are; else it would copy them before each replay."""
        self.handle = None
        for tensor in (*self.buffers, self.count, *([] if self._before is None else [self._before])):
            torch._dynamo.mark_static_address(tensor, guard=False)


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
