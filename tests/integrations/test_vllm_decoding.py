"""Evicted requests that answer together, join and leave: each attends to its own pages and tail."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from madakv.attention import paged_attention, ragged_attention_reference
from madakv.cache import RaggedEntries, Tail
from madakv.integrations.vllm.decoding import Decoding, Span
from madakv.integrations.vllm.pages import Memory, PageTable
from madakv.integrations.vllm.requests import Request
from madakv.methods import resolve
from madakv.plan import KeepPlan
from tests.integrations.test_vllm_parts import memory_of
from tests.tolerance import assert_same

L, H, HQ, D, SIZE = 3, 2, 4, 8, 16


class Answering:
    """A request that was read, in blocks that it keeps and takes as it goes on; and what it holds, beside the pages.

    Args:
        memory: that its pages lie in.
        blocks: all that it will ever have, in order.
        prompt: its length.
        counts: [L, H], kept entries.
    """

    def __init__(self, memory: Memory, blocks: list[int], prompt: int, counts: list[list[int]]) -> None:
        self.blocks, self.prompt = blocks, prompt
        self.start, self.held = prompt, blocks[: prompt // SIZE + 1]
        plans = [KeepPlan.from_mask(torch.arange(prompt) < torch.tensor(own)[None, :, None]) for own in counts]
        table = PageTable(memory, plans, torch.tensor(blocks[: prompt // SIZE]))
        self.entries, self.tails = [], [Tail() for _ in range(L)]
        for layer, own in enumerate(counts):
            kept = RaggedEntries.pack(*torch.randn(2, sum(own), D), torch.tensor([own]))
            table.write(layer, kept.keys, kept.values)
            self.entries.append(kept)
        self.request = Request(
            prompt=prompt,
            first=0,
            method=resolve("snapkv"),
            modality=torch.zeros(1, prompt, dtype=torch.int64),
            blocks=lambda: self.held,
            block_size=SIZE,
            table=table,
        )

    def span(self, row: int, begin: int, tokens: int) -> Span:
        """Its next tokens; the engine has given it blocks for them."""
        made = Span(self.request, row, begin, tokens, self.start)
        self.start += tokens
        self.held = self.blocks[: (self.start - 1) // SIZE + 1]
        return made


def pair() -> tuple[Memory, Answering, Answering]:
    memory = memory_of(layers=L, blocks=40, heads=H, size=SIZE, dim=D)[0]
    blocks = (torch.randperm(39) + 1).tolist()
    a = Answering(memory, blocks[:20], 45, [[30, 0], [1, 9], [6, 8]])
    # Ends with a block.
    return memory, a, Answering(memory, blocks[20:], 32, [[17, 1], [0, 0], [3, 24]])


def step(memory: Memory, last: Decoding | None, who: Sequence[tuple[Answering, int]], others: int = 0) -> Decoding:
    """New tokens of some, behind those of requests that are none of ours, each held against plain loops."""
    spans, begin = [], others
    for row, (one, tokens) in enumerate(who):
        spans.append(one.span(row + others, begin, tokens))
        begin += tokens
    decoding = Decoding.of(memory, spans, last)
    assert decoding is not None
    assert decoding.tokens.tolist() == list(range(others, begin))
    for layer in range(L):
        query, key, value = (torch.randn(begin, heads, D) for heads in (HQ, H, H))
        decoding.store(layer, key, value)
        out = paged_attention(query[others:], memory.rows, decoding.layers[layer], scaling=0.3)
        at = others
        for one, tokens in who:
            for _ in range(tokens):
                one.tails[layer].append(*(x[at][None, :, None] for x in (key, value)), 0)
                want = ragged_attention_reference(
                    query[at][None, :, None], one.entries[layer], one.tails[layer], scaling=0.3
                )
                assert_same(out[at - others], want[0, :, 0], 1e-5)
                at += 1
    return decoding


def test_they_join_and_leave() -> None:
    memory, a, b = pair()
    last = None
    together: list[list[tuple[Answering, int]]] = [[(a, 1)]] * 5 + [[(b, 1), (a, 1)]] * 7 + [[(a, 1), (b, 1)]] * 2
    for who in [*together, *[[(b, 1)]] * 3]:
        last = step(memory, last, who, others=len(who) % 2)
    assert Decoding.of(memory, [], last) is None


def test_several_tokens_see_those_before_them() -> None:
    memory, a, b = pair()
    last = step(memory, None, [(a, 6), (b, 1)])
    for tokens in (3, 1, 1):
        last = step(memory, last, [(a, 1), (b, tokens)])


def test_tables_last_until_they_are_too_small() -> None:
    memory, a, b = pair()
    last, made = None, []
    for _ in range(75):
        now = step(memory, last, [(a, 1), (b, 1)])
        made += [] if now is last else [now]
        last = now
    assert 2 <= len(made) <= 4


def test_whoever_was_packed_again_has_new_tables() -> None:
    memory, a, b = pair()
    last = step(memory, None, [(a, 1), (b, 1)])
    table = a.request.table
    assert table is not None
    a.request.table = again = PageTable(
        memory, [KeepPlan.from_mask(torch.ones(1, H, 1, dtype=torch.bool))] * L, torch.tensor(a.blocks[:1])
    )
    for layer in range(L):
        a.entries[layer] = RaggedEntries.pack(*torch.randn(2, H, D), torch.ones(1, H, dtype=torch.int64))
        again.write(layer, a.entries[layer].keys, a.entries[layer].values)
    assert step(memory, last, [(a, 1), (b, 1)]) is not last
