"""The evictor between a pretended engine's steps: the same attention as an engine without pages, chunks or blocks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from madakv.attention.prompt import prompt_attention
from madakv.integrations.vllm.decoding import Span
from madakv.integrations.vllm.evictor import Evictor, LayerHow
from madakv.integrations.vllm.layout import Layout
from madakv.integrations.vllm.requests import Request
from madakv.integrations.vllm.settings import first_kept_block
from madakv.methods.registry import from_text
from tests.integrations.test_vllm_parts import transposed
from tests.toys.plain_engine import PlainEngine

L, H, HQ, D, SIZE, N, NEW = 3, 2, 4, 8, 4, 61, 9
BLOCKS = [9, 3, 17, 1, 12, 4, 18, 6, 2, 15, 5, 14, 8, 16, 7, 11, 13, 10, 19]


def states() -> list[tuple[Tensor, Tensor, Tensor]]:
    """Queries [1, Hq, n, D], keys and values [1, H, n, D] of each layer."""
    return [tuple(torch.randn(1, heads, N + NEW, D) for heads in (HQ, H, H)) for _ in range(L)]  # type: ignore[misc]


class Pretended:
    """An engine with one request."""

    def __init__(self, method: str, budget: float) -> None:
        self.caches = list(torch.full((L, 20, H, SIZE, 2 * D), float("nan")))
        self.layout = Layout.learned(transposed, heads=H, block_size=SIZE, dim=D, dtype=torch.float32)
        how = [LayerHow(0.3)] * L
        self.evictor = Evictor(self.caches, self.layout, how, lambda reading: reading.prompt.modality[:, 0] * 0)
        self.blocks = BLOCKS
        self.request = Request(
            prompt=N,
            first=first_kept_block(budget, N, SIZE),
            method=from_text(method, budget),
            modality=torch.zeros(1, N, dtype=torch.int64),
            blocks=lambda: self.blocks,
            block_size=SIZE,
        )
        self.evictor.requests["a"] = self.request

    def pass_(self, states: list[tuple[Tensor, Tensor, Tensor]], start: int, end: int) -> list[Tensor]:
        """Read tokens; of each layer what the evictor wrote of them, [n, Hq, D], NaN where it wrote nothing."""
        evictor, outs = self.evictor, []
        evictor.begin([Span(self.request, 0, 0, end - start, start)], rows=1)
        slots = torch.tensor([self.blocks[t // SIZE] * SIZE + t % SIZE for t in range(start, end)])
        for layer, layer_states in enumerate(states):
            query, key, value = (x[0, :, start:end].transpose(0, 1) for x in layer_states)
            for token, slot in enumerate(evictor.store(layer, key, value, slots).tolist()):
                if slot >= 0:
                    cells = self.caches[layer][slot // SIZE].view(H, -1)
                    cells[:, self.layout.keys[slot % SIZE]] = key[token]
                    cells[:, self.layout.values[slot % SIZE]] = value[token]
            out = torch.full((end - start, HQ, D), float("nan"))
            evictor.attend(layer, query, key, value, out)
            outs.append(out)
        evictor.step = None
        return outs

    def freed(self) -> None:
        """Others write into what the prompt has left."""
        for cache in self.caches:
            cache[self.blocks[: self.request.first]] = 1e4


def chunks(size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, N, size):
        yield start, min(N, start + size)


def expected(method: str, budget: float, given: list[tuple[Tensor, Tensor, Tensor]]) -> list[list[Tensor]]:
    """Of each new token and layer, [Hq, D]."""
    plain = PlainEngine(L, 0.3)
    plain.read(
        from_text(method, budget), torch.zeros(1, N, dtype=torch.int64), [[x[:, :, :N] for x in own] for own in given]
    )  # type: ignore[arg-type, misc]
    return [
        [plain.step(layer, tuple(x[:, :, t : t + 1] for x in own))[0, :, 0] for layer, own in enumerate(given)]  # type: ignore[arg-type]
        for t in range(N, N + NEW)
    ]


@pytest.mark.parametrize("size", [N, 16, 7])
@pytest.mark.parametrize("method", ["snapkv:window_size=5", "madakv:echo=0", "keydiff"])
def test_steps_over_pages_are_those_of_a_plain_engine(method: str, size: int) -> None:
    given, engine = states(), Pretended(method, 0.2)
    for start, end in chunks(size):
        engine.evictor.finish((), (), pytest.fail)
        assert all(bool(out.isnan().all()) for out in engine.pass_(given, start, end))
    engine.evictor.finish((), (), pytest.fail)
    assert engine.request.first > 5
    engine.freed()
    for number, want in enumerate(expected(method, 0.2, given)):
        got = engine.pass_(given, N + number, N + number + 1)
        for out, own in zip(got, want, strict=True):
            torch.testing.assert_close(out[0], own, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["snapkv:window_size=5", "madakv:context_weight=99:echo=0"])
def test_queries_of_tokens_that_were_found_are_computed_once_more(method: str) -> None:
    given, engine = states(), Pretended(method, 0.2)
    told = []

    def again(name: str, places: Tensor, behind: bool) -> None:
        assert (name, behind) == ("a", False)
        told.extend(places.tolist())
        for layer, own in enumerate(given):
            query, key, value = (x[0, :, places].transpose(0, 1) for x in own)
            out = torch.full((len(places), HQ, D), float("nan"))
            engine.evictor.attend_aside(layer, query, key, value, out)
            for row, place in enumerate(places.tolist()):
                want = attention(*(x[:, :, : place + 1] for x in own))
                torch.testing.assert_close(out[row], want[0, :, -1], rtol=1e-5, atol=1e-6)

    # Another request has read them.
    engine.evictor.requests.clear()
    for layer, (_, key, value) in enumerate(given):
        for token in range(24):
            cells = engine.caches[layer][engine.blocks[token // SIZE]].view(H, -1)
            cells[:, engine.layout.keys[token % SIZE]] = key[0, :, token]
            cells[:, engine.layout.values[token % SIZE]] = value[0, :, token]
    engine.evictor.requests["a"] = engine.request
    engine.pass_(given, 24, 40)
    engine.pass_(given, 40, N)
    engine.evictor.finish((), (), again)
    assert sorted(told) == [place for place in told if place < 24]
    assert bool(told) == method.startswith("madakv")
    engine.freed()
    for number, want in enumerate(expected(method, 0.2, given)):
        for out, own in zip(engine.pass_(given, N + number, N + number + 1), want, strict=True):
            torch.testing.assert_close(out[0], own, rtol=1e-5, atol=1e-6)


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return prompt_attention(query, key, value, scaling=0.3, mask=None, softcap=None, sinks=None)


@pytest.mark.parametrize("again", [N + 4, N, 40])
def test_what_was_preempted_is_read_again_by_the_same_plan(again: int) -> None:
    given, engine = states(), Pretended("madakv:echo=0", 0.2)
    want = expected("madakv:echo=0", 0.2, given)
    engine.pass_(given, 0, N)
    engine.evictor.finish((), (), pytest.fail)
    for t in range(N, N + 4):
        engine.pass_(given, t, t + 1)
    plans = engine.request.plans
    # Its blocks are others' now.
    engine.evictor.finish((), ("a",), pytest.fail)
    for cache in engine.caches:
        cache.fill_(1e4)
    engine.blocks = BLOCKS[::-1]
    got = {}
    for start, end in ((0, again), (again, N + 5)):
        for layer, out in enumerate(engine.pass_(given, start, end)):
            got |= {(start + n, layer): own for n, own in enumerate(out) if start + n >= N}
        engine.evictor.finish((), (), pytest.fail)
    assert engine.request.plans is plans
    engine.freed()
    got |= {(N + 5, layer): out[0] for layer, out in enumerate(engine.pass_(given, N + 5, N + 6))}
    for number in range(6):
        for layer in range(L):
            torch.testing.assert_close(got[N + number, layer], want[number][layer], rtol=1e-5, atol=1e-6)


def test_who_is_over_is_forgotten() -> None:
    given, engine = states(), Pretended("keydiff", 0.2)
    engine.pass_(given, 0, N)
    engine.evictor.finish(("a",), (), pytest.fail)
    assert not engine.evictor.requests
    assert engine.request.table is None
