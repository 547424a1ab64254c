"""What one layer remembers: the entries that were chosen of what it read, and a tail of all that came after."""

from __future__ import annotations

import torch
from torch import Tensor

from madakv.cache.entries import Entries
from madakv.cache.ragged import RaggedEntries
from madakv.cache.tail import FixedTail, Tail
from madakv.plan import KeepPlan


class LayerMemory:
    """Kept entries and a tail. Knows no prompt, no method and nobody who uses it.

    Args:
        store: the kind of entries.

    Attributes:
        entries: what was kept; None until the first `keep`.
        tail: what was read since.
        span: how many tokens, padding included, the entries were chosen of.
        full_nbytes: bytes of these tokens' entries had all been kept.
    """

    def __init__(self, store: type[Entries] = RaggedEntries) -> None:
        self._store = store
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.entries: Entries | None = None
        self.tail = Tail()
        self.span = 0
        self.full_nbytes = 0
        self._per_head = 0

    @property
    def empty(self) -> bool:
        """Whether nothing was kept yet."""
        return self.entries is None

    @property
    def kept(self) -> Entries:
        """The entries.

        Raises:
            RuntimeError: nothing was kept yet.
        """
        if self.entries is None:
            raise RuntimeError("this layer has read nothing yet")
        return self.entries

    def keep(self, keys: Tensor, values: Tensor, plan: KeepPlan) -> None:
        """Copy what is planned out of what was read, which is then free to go.

        Args:
            keys: [B, H, N, Dk].
            values: [B, H, N, Dv].
            plan: on their device.
        """
        self.span = keys.shape[2]
        self.full_nbytes = sum(x.numel() * x.element_size() for x in (keys, values))
        self._hold(self._store.gather(keys, values, plan))

    def narrow(self, own: KeepPlan, plan: KeepPlan) -> None:
        """Let go of what a plan keeps no more.

        Args:
            own: what the entries are.
            plan: some of them.
        """
        self.kept.narrow(own, plan)
        self._hold(self.kept)

    def replace(self, keys: Tensor, values: Tensor) -> None:
        """Other contents for the same entries, [T, Dk] and [T, Dv]."""
        self._hold(self.kept.replaced(keys, values))

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Add later tokens to the tail, [B, H, n, D]."""
        self.tail.append(keys, values, self._per_head)

    def fold_tail(self, own: KeepPlan, visible: Tensor) -> KeepPlan:
        """Make entries of the tail, so that a later decision can choose among both; the tail is empty then.

        Args:
            own: what the entries are.
            visible: [B, n] bool, the tokens of the tail that are more than padding.

        Returns:
            What the entries are now.
        """
        keys, values = self.tail.written()
        more = KeepPlan.of_tokens(visible, keys.shape[1])
        plan, order = own.followed_by(more, self.span)
        head, place = more.owners(), more.positions
        H, old = keys.shape[1], self.kept
        source = (head // H, head % H, place)
        keys_of_all = torch.cat([old.keys, keys[source]])[order]
        values_of_all = torch.cat([old.values, values[source]])[order]
        self.span += keys.shape[2]
        self.full_nbytes += sum(x.numel() * x.element_size() for x in (keys, values))
        self.tail = Tail()
        self._hold(self._store.pack(keys_of_all, values_of_all, plan.counts))
        return plan

    @property
    def seen(self) -> int | Tensor:
        """How many tokens were read in all, padding included; of a fixed tail an integer tensor on the device."""
        return self.tail.seen(self.span)

    def fix_tail(self, room: int) -> None:
        """From now on, keep later tokens at fixed addresses, with room for so many more."""
        B, H = self.kept.counts.shape
        like = (self.kept.keys, self.kept.values)
        self.tail = FixedTail.following(self.tail, like=like, owners=(B, H), room=room, span=self.span)

    def free_tail(self) -> None:
        """From now on, let the tail grow as it needs to."""
        if isinstance(self.tail, FixedTail):
            self.tail = self.tail.growing()

    def forget_tail(self) -> None:
        """Forget what was read after the entries."""
        self.tail = Tail()

    def select_rows(self, rows: Tensor) -> None:
        """Keep the given batch rows, in that order and repeated as asked, [B'] int64."""
        rows = rows.to(self.kept.counts.device)
        self._hold(self.kept.select_rows(rows))
        self.tail.select_rows(rows)

    def to(self, device: torch.device | str) -> None:
        """Keep everything on another device from now on."""
        if self.entries is not None:
            self._hold(self.entries.to(device))
            self.tail.to(device)

    @property
    def nbytes(self) -> int:
        """Bytes of live storage."""
        return (0 if self.entries is None else self.entries.nbytes) + self.tail.nbytes

    def _hold(self, entries: Entries) -> None:
        self.entries = entries
        self._per_head = sum(entries.lengths) // len(entries.lengths)
