"""Ragged attention against the plain-loop reference."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from torch import Tensor

from madakv.attention import attention_of_newest, prompt_attention, ragged_attention, ragged_attention_reference
from madakv.attention.partial import Partial, merge, merge_scattered, partial_attention
from madakv.attention.tiles import TileSchedule
from madakv.cache import RaggedEntries, Tail
from madakv.plan import KeepPlan
from tests.tolerance import TOLERANCE, assert_same

LENGTHS = {
    "even": [[7, 7], [7, 7]],
    "uneven": [[1, 63], [17, 5]],
    "some empty": [[0, 9], [31, 0]],
    "all empty": [[0, 0], [0, 0]],
    "ten to one": [[300, 30], [120, 65]],
    "ones": [[1, 1], [1, 2]],
}


def make_entries(
    lengths: list[list[int]], D: int, Dv: int | None = None, dtype: torch.dtype = torch.float32
) -> RaggedEntries:
    """Entries gathered from a random prompt by a random plan with the given counts."""
    B, H, N = len(lengths), len(lengths[0]), max(map(max, lengths)) + 3
    keys = torch.randn(B, H, N, D).to(dtype)
    values = torch.randn(B, H, N, Dv or D).to(dtype)
    positions = [torch.randperm(N)[:n].sort().values for row in lengths for n in row]
    return RaggedEntries.gather(keys, values, KeepPlan(torch.cat(positions), torch.tensor(lengths)))


def make_tail(B: int, H: int, n: int, D: int, Dv: int | None = None, dtype: torch.dtype = torch.float32) -> Tail:
    tail = Tail()
    tail.append(torch.randn(B, H, n, D).to(dtype), torch.randn(B, H, n, Dv or D).to(dtype), prompt_length=10)
    return tail


def causal(Q: int, T: int) -> Tensor:
    return (torch.arange(T) <= torch.arange(Q)[:, None] + (T - Q))[None, None]


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize(("G", "D", "Q"), [(1, 64, 1), (7, 60, 1), (4, 16, 5), (2, 128, 3)])
def test_matches_the_reference(name: str, G: int, D: int, Q: int) -> None:
    lengths = LENGTHS[name]
    entries, tail = make_entries(lengths, D), make_tail(2, 2, Q + 4, D)
    query = torch.randn(2, 2 * G, Q, D)
    options = {"scaling": 0.3, "mask": causal(Q, tail.length)}
    want = ragged_attention_reference(query, entries, tail, **options)
    assert_same(ragged_attention(query, entries, tail, **options), want)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ["even", "uneven"])
def test_matches_in_every_dtype(dtype: torch.dtype, name: str) -> None:
    entries, tail = make_entries(LENGTHS[name], 64, dtype=dtype), make_tail(2, 2, 3, 64, dtype=dtype)
    query = torch.randn(2, 4, 1, 64).to(dtype)
    got = ragged_attention(query, entries, tail, scaling=0.125)
    assert got.dtype == dtype
    assert_same(got, ragged_attention_reference(query, entries, tail, scaling=0.125), TOLERANCE[dtype])


def test_entries_of_another_dtype_than_the_query() -> None:
    """Under autocast keys can be stored in fp32 and values, like later queries, in bf16."""
    entries, tail = make_entries(LENGTHS["uneven"], 64), make_tail(2, 2, 3, 64)
    query = torch.randn(2, 4, 1, 64)
    want = ragged_attention_reference(query.bfloat16(), entries, tail, scaling=0.125)
    assert_same(ragged_attention(query.bfloat16(), entries, tail, scaling=0.125), want, TOLERANCE[torch.bfloat16])
    want = ragged_attention_reference(query.double(), entries, tail, scaling=0.125)
    assert_same(ragged_attention(query.double(), entries, tail, scaling=0.125), want)


@pytest.mark.parametrize("name", LENGTHS)
def test_softcap_sinks_and_uneven_head_dims(name: str) -> None:
    entries, tail = make_entries(LENGTHS[name], 24, Dv=40), make_tail(2, 2, 6, 24, Dv=40)
    query, sinks = torch.randn(2, 6, 2, 24), 3 + torch.randn(6)
    options = {"scaling": 0.5, "mask": causal(2, 6), "softcap": 2.0, "sinks": sinks}
    want = ragged_attention_reference(query, entries, tail, **options)
    assert_same(ragged_attention(query, entries, tail, **options), want)
    without = ragged_attention_reference(query, entries, tail, **{**options, "sinks": None})
    assert (want - without).abs().max() > 0.01, "sinks must matter for this test to say anything"


def test_queries_of_any_layout_are_read_right() -> None:
    entries, tail = make_entries(LENGTHS["uneven"], 16), make_tail(2, 2, 3, 16)
    query = torch.randn(2, 2, 16, 5).transpose(2, 3)
    want = ragged_attention_reference(query, entries, tail, scaling=0.2)
    assert_same(ragged_attention(query, entries, tail, scaling=0.2), want)


def test_a_row_whose_tail_is_padding_sees_only_its_prompt() -> None:
    entries, tail = make_entries(LENGTHS["uneven"], 16), make_tail(2, 2, 4, 16)
    query = torch.randn(2, 2, 1, 16)
    mask = torch.tensor([[True] * 4, [False, False, True, True]])[:, None, None]
    want = ragged_attention_reference(query, entries, tail, scaling=1.0, mask=mask)
    assert_same(ragged_attention(query, entries, tail, scaling=1.0, mask=mask), want)
    additive = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
    assert_same(ragged_attention(query, entries, tail, scaling=1.0, mask=additive), want)
    hidden = ragged_attention(query, entries, tail, scaling=1.0, mask=torch.zeros_like(mask))
    prompt_only = ragged_attention_reference(query, entries, tail, scaling=1.0, mask=torch.zeros_like(mask))
    assert_same(hidden, prompt_only)


def test_spare_memory_of_the_tail_is_never_read() -> None:
    entries, tail = make_entries(LENGTHS["uneven"], 16), make_tail(2, 2, 3, 16)
    spare = tail.keys._base
    assert spare is not None
    assert spare.shape[2] > 3
    assert spare[:, :, 3:].isnan().all(), "the fixture poisons fresh memory"
    assert torch.isfinite(ragged_attention(torch.randn(2, 2, 1, 16), entries, tail, scaling=1.0)).all()


def test_tiles_cover_every_entry_once() -> None:
    cases = ([3, 0, 9, 1], [64, 1, 1, 1, 65], [5], [0, 0, 4], [8, 8, 1], [1] * 9, [7, 8, 8, 8], [0, 1, 30, 6, 2, 20])
    for lengths, most in itertools.product(cases, (1, 7, 8)):
        size = min(most, sum(lengths))
        schedule = TileSchedule.of(tuple(lengths), size, like=torch.empty(0))
        tiles, (windows, *_, width) = len(schedule.mask), schedule.window_mask.shape
        read = [*torch.arange(tiles * size).view(-1, size), *schedule.window.view(windows, width)]
        visible = [*(schedule.mask == 0).flatten(1), *(schedule.window_mask == 0).flatten(1)]
        readers = torch.zeros(sum(lengths), len(lengths), dtype=torch.int64)
        for owner, entry, seen in zip(schedule.owner, read, visible, strict=True):
            assert seen.any(), "whoever attends to a tile owns some of it"
            readers[entry[seen], owner] += 1
        head_of = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
        assert torch.equal(readers, torch.nn.functional.one_hot(head_of, len(lengths)))
        assert windows <= 1 + sum(n > 0 for n in lengths)


def test_parts_merge_to_the_whole() -> None:
    query, key, value = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 20, 8), torch.randn(2, 3, 20, 8)
    whole = partial_attention(query, key, value, scaling=0.4)
    cuts = [0, 1, 7, 20]
    parts = [
        partial_attention(query, key[:, :, a:b], value[:, :, a:b], scaling=0.4) for a, b in itertools.pairwise(cuts)
    ]
    nothing = Partial(torch.zeros_like(parts[0].out), torch.full_like(parts[0].lse, float("-inf")))
    merged = functools.reduce(merge, [*parts, nothing])
    assert_same(merged.out, whole.out)
    assert_same(merged.lse, whole.lse)
    assert merge(nothing, nothing).out.abs().max() == 0
    assert merge(nothing, nothing).lse.max() == float("-inf")


def test_scattered_parts_merge_per_owner() -> None:
    parts = [
        partial_attention(torch.randn(1, 1, 2, 8), k := torch.randn(1, 1, 5, 8), k, scaling=1.0) for _ in range(4)
    ]
    owner = torch.tensor([1, 3, 1, 2])
    out = torch.stack([part.out[0, 0] for part in parts])
    lse = torch.stack([part.lse[0, 0] for part in parts])
    got = merge_scattered(out, lse, owner, 4)
    assert_same(got.out[1], merge(parts[0], parts[2]).out[0, 0])
    assert_same(got.out[3], parts[1].out[0, 0])
    assert got.out[0].abs().max() == 0
    assert got.lse[0].tolist() == [float("-inf")] * 2


@pytest.mark.parametrize("chunk", [1 << 24, 64])
@pytest.mark.parametrize("masked", [False, True])
def test_prompt_attention_with_softcap_and_sinks(chunk: int, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("madakv.attention.prompt._SCRATCH_ELEMENTS", chunk)
    query, key, value = torch.randn(2, 4, 9, 16), torch.randn(2, 2, 9, 16), torch.randn(2, 2, 9, 12)
    sinks = torch.randn(4)
    mask = causal(9, 9).expand(2, 1, 9, 9).clone()
    if masked:
        mask[1, :, 3:, 1] = False
    got = prompt_attention(query, key, value, scaling=0.4, mask=mask if masked else None, softcap=3.0, sinks=sinks)
    logits = query.double() @ key.repeat_interleave(2, 1).double().mT * 0.4
    logits = (torch.tanh(logits / 3.0) * 3.0).masked_fill(~mask, float("-inf"))
    logits = torch.cat([logits, sinks.double().view(1, 4, 1, 1).expand(2, 4, 9, 1)], -1)
    assert_same(got, logits.softmax(-1)[..., :-1] @ value.repeat_interleave(2, 1).double())


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("E", [7, 300])
def test_the_newest_tokens_see_what_is_before_them_and_not_hidden(
    softcap: float | None, with_sinks: bool, E: int
) -> None:
    T, sinks = E + 20, torch.linspace(-1, 1, 4) if with_sinks else None
    query, key, value = torch.randn(2, 4, E, 8), torch.randn(2, 2, T, 8), torch.randn(2, 2, T, 5)
    hidden = torch.zeros(2, T, dtype=torch.bool)
    hidden[0, :6] = True
    got = attention_of_newest(query, key, value, scaling=0.4, hidden=hidden, softcap=softcap, sinks=sinks)
    for b, head, e in ((0, 0, 0), (0, 3, E - 1), (1, 1, E // 2), (1, 2, 0)):
        seen = ~hidden[b] & (torch.arange(T) <= T - E + e)
        logits = key[b, head // 2, seen].double() @ query[b, head, e].double() * 0.4
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        weight = logits.exp()
        total = weight.sum() + (0.0 if sinks is None else sinks[head].double().exp())
        wanted = weight @ value[b, head // 2, seen].double() / total
        torch.testing.assert_close(got[b, head, e].double(), wanted, rtol=1e-5, atol=1e-5)
