"""Storage: what is kept, what it weighs, and that growing does not copy it."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from madakv.cache import RaggedEntries, Tail
from madakv.plan import KeepPlan
from tests.test_attention import LENGTHS, make_entries


def test_gather_keeps_exactly_the_planned_entries_in_order() -> None:
    keys, values = torch.randn(2, 2, 12, 4), torch.randn(2, 2, 12, 6)
    keep = torch.rand(2, 2, 12) < 0.4
    plan = KeepPlan.from_mask(keep)
    entries = RaggedEntries.gather(keys, values, plan)
    for b in range(2):
        for h in range(2):
            start, count = int(entries.starts[b, h]), int(entries.counts[b, h])
            wanted = keep[b, h].nonzero()[:, 0]
            assert plan.indices[b][h].tolist() == wanted.tolist()
            assert torch.equal(entries.keys[start : start + count], keys[b, h, wanted])
            assert torch.equal(entries.values[start : start + count], values[b, h, wanted])


def test_entries_own_only_what_they_keep() -> None:
    for lengths in LENGTHS.values():
        entries = make_entries(lengths, 16)
        kept = sum(map(sum, lengths))
        assert entries.nbytes == kept * 2 * 16 * 4
        assert entries.keys._base is None, "a view would keep the full prompt alive"


def test_rows_can_be_reordered_and_repeated() -> None:
    entries = make_entries(LENGTHS["uneven"], 8)
    rows = torch.tensor([1, 0, 1])
    moved = entries.select_rows(rows)
    assert moved.counts.tolist() == [[17, 5], [1, 63], [17, 5]]
    for new, old in enumerate(rows.tolist()):
        for h in range(2):
            a, b, n = int(moved.starts[new, h]), int(entries.starts[old, h]), int(entries.counts[old, h])
            assert torch.equal(moved.keys[a : a + n], entries.keys[b : b + n])
            assert torch.equal(moved.values[a : a + n], entries.values[b : b + n])


def test_append_copies_nothing_but_the_new_entry_at_most_steps() -> None:
    tail = Tail()
    written, moves, buffer = [], 0, None
    for _ in range(400):
        new = torch.randn(1, 2, 1, 4)
        tail.append(new, -new, prompt_length=640)
        written.append(new)
        moves += buffer is not None and tail.keys.data_ptr() != buffer
        buffer = tail.keys.data_ptr()
    everything = torch.cat(written, 2)
    assert torch.equal(tail.keys, everything)
    assert torch.equal(tail.values, -everything)
    assert moves <= 10
    used = everything.numel() * 4 * 2
    prompt = 640 * 2 * 4 * 4 * 2
    assert tail.nbytes - used <= 0.1 * (used + prompt)


def test_tail_takes_many_tokens_at_once_and_follows_rows() -> None:
    tail = Tail()
    first, second = torch.randn(2, 1, 30, 4), torch.randn(2, 1, 2, 4)
    tail.append(first, first, 0)
    tail.append(second, second, 0)
    tail.select_rows(torch.tensor([1, 1, 0]))
    assert tail.length == 32
    assert torch.equal(tail.keys, torch.cat([first, second], 2)[[1, 1, 0]])
    tail.append(second[:1].expand(3, -1, -1, -1), second[:1].expand(3, -1, -1, -1), 0)
    assert torch.equal(tail.values[2, :, :32], torch.cat([first, second], 2)[0])


class CopiesOfEntries(TorchDispatchMode):
    """Notes at each copy of chosen entries whether the old keys are still in memory."""

    def __init__(self, old_keys: Tensor) -> None:
        super().__init__()
        self.old_keys = weakref.ref(old_keys)
        self.alive: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.index_select.default and args[0].dim() == 2:
            self.alive.append(self.old_keys() is not None)
        return func(*args, **(kwargs or {}))


def wide_and_few() -> tuple[KeepPlan, KeepPlan]:
    wide = KeepPlan.from_mask(torch.rand(2, 2, 9) < 0.7)
    return wide, wide.subset(torch.rand(len(wide.positions)) < 0.5)


def test_narrowing_frees_the_old_keys_before_values_are_copied() -> None:
    keys, values = torch.randn(2, 2, 9, 4), torch.randn(2, 2, 9, 4)
    wide, few = wide_and_few()
    got, want = RaggedEntries.gather(keys, values, wide), RaggedEntries.gather(keys, values, few)
    with CopiesOfEntries(got.keys) as seen:
        got.narrow(wide, few)
    assert seen.alive == [True, False]
    assert torch.equal(got.keys, want.keys)
    assert torch.equal(got.values, want.values)
    assert torch.equal(got.counts, want.counts)
    assert got.lengths == want.lengths


def test_what_is_made_of_entries_is_made_once_and_anew_after_they_change() -> None:
    calls = []

    def total(entries: RaggedEntries) -> int:
        calls.append(entries)
        return sum(entries.lengths)

    wide, few = wide_and_few()
    entries = RaggedEntries.gather(torch.randn(2, 2, 9, 4), torch.randn(2, 2, 9, 4), wide)
    assert entries.once(total) == entries.once(total) == len(wide.positions)
    assert len(calls) == 1
    assert entries.once(lambda own: own.even) is False
    moved = entries.select_rows(torch.tensor([0]))
    assert moved.once(total) == int(wide.counts[0].sum())
    entries.narrow(wide, few)
    assert entries.once(total) == len(few.positions)
    assert len(calls) == 3
