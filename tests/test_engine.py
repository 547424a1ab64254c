"""An engine that is not transformers keeps what a method decides, and attends to it and to what came since."""

from __future__ import annotations

import torch

from madakv.attention import ragged_attention_reference
from madakv.methods import resolve
from tests.tolerance import assert_same
from tests.toys.plain_engine import PlainEngine

LAYERS, HQ, H, N, D = 3, 4, 2, 30, 8


def states(tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(1, HQ, tokens, D), torch.randn(1, H, tokens, D), torch.randn(1, H, tokens, D)


def test_an_engine_of_ones_own() -> None:
    torch.manual_seed(0)
    modality = torch.tensor([[0] * 8 + [1] * 16 + [0] * 6])
    engine = PlainEngine(LAYERS, scaling=D**-0.5)
    prompt = [states(N) for _ in range(LAYERS)]
    for method in (resolve("madakv", budget=0.4), resolve("snapkv", budget=0.4, lookahead=0)):
        engine = PlainEngine(LAYERS, scaling=D**-0.5)
        plans = engine.read(method, modality, prompt)
        assert sum(int(plan.counts.sum()) for plan in plans) == 12 * H * LAYERS
        for plan, memory, (_, key, _) in zip(plans, engine.memories, prompt, strict=True):
            kept = torch.cat([key[0, h, plan.indices[0][h]] for h in range(H)])
            assert torch.equal(memory.kept.keys, kept)
        for number, memory in enumerate(engine.memories):
            for _ in range(2):
                query, key, value = states(1)
                out = engine.step(number, (query, key, value))
                want = ragged_attention_reference(query, memory.kept, memory.tail, scaling=D**-0.5)
                assert_same(out, want.float(), 1e-5)
            assert memory.tail.length == 2


def test_a_method_that_sees_all_layers_decides_at_the_end() -> None:
    torch.manual_seed(0)
    engine = PlainEngine(LAYERS, scaling=D**-0.5)
    plans = engine.read(resolve("meda", budget=0.4), torch.zeros(1, N, dtype=torch.int64), [states(N)] * LAYERS)
    assert [int(plan.counts.sum()) for plan in plans] == [memory.kept.counts.sum() for memory in engine.memories]
