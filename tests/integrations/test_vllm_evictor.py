"""The evictor between a pretended engine's steps: the same attention as an engine without pages, chunks or blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from madakv.attention.prompt import prompt_attention
from madakv.integrations.vllm.decoding import Span
from madakv.integrations.vllm.evictor import Evictor, LayerHow
from madakv.integrations.vllm.layout import Layout, Write
from madakv.integrations.vllm.requests import Request
from madakv.integrations.vllm.settings import first_kept_block
from madakv.methods.registry import from_text
from tests.integrations.test_vllm_parts import beside, caches_of, transposed
from tests.toys.elsewhere import ELSEWHERE, Elsewhere, Moved
from tests.toys.plain_engine import PlainEngine

L, H, HQ, D, SIZE, N, NEW = 3, 2, 4, 8, 4, 61, 9
BLOCKS = [9, 3, 17, 1, 12, 4, 18, 6, 2, 15, 5, 14, 8, 16, 7, 11, 13, 10, 19]


def states() -> list[tuple[Tensor, Tensor, Tensor]]:
    """Queries [1, Hq, n, D], keys and values [1, H, n, D] of each layer."""
    return [tuple(torch.randn(1, heads, N + NEW, D) for heads in (HQ, H, H)) for _ in range(L)]  # type: ignore[misc]


@dataclass
class Where:
    """A device, how a tensor comes to it, and who has waited for it."""

    device: torch.device
    put: Callable[[Tensor], Tensor] = lambda own: own
    waits: list[str] = field(default_factory=list)

    def told(self) -> list[str]:
        """Since this was last asked."""
        waits = list(self.waits)
        self.waits.clear()
        return waits


HERE = Where(torch.device("cpu"))


class Pretended:
    """An engine with one request, here or elsewhere."""

    def __init__(
        self,
        method: str,
        budget: float,
        order: str = "LBHNC",
        write: Write = transposed,
        where: Where = HERE,
        echoed: int = 0,
    ) -> None:
        self.where = where
        self.caches = [where.put(cache) for cache in caches_of(order, layers=L, blocks=20, heads=H, size=SIZE, dim=D)]
        self.layout = Layout.learned(write, self.caches[0])
        how = [LayerHow(0.3)] * L
        self.evictor = Evictor(self.caches, self.layout, how, lambda reading: reading.prompt.modality[:, 0] + echoed)
        self.blocks = BLOCKS
        self.request = Request(
            prompt=N,
            first=first_kept_block(budget, N, SIZE),
            method=from_text(method, budget),
            modality=torch.zeros(1, N, dtype=torch.int64),
            blocks=lambda: self.blocks,
            block_size=SIZE,
            device=where.device,
        )
        self.evictor.requests["a"] = self.request

    def pass_(self, states: list[tuple[Tensor, Tensor, Tensor]], start: int, end: int) -> list[Tensor]:
        """Read tokens; of each layer what the evictor wrote of them, [n, Hq, D], NaN where it wrote nothing."""
        evictor, where, outs = self.evictor, self.where, []
        slots = where.put(torch.tensor([self.blocks[t // SIZE] * SIZE + t % SIZE for t in range(start, end)]))
        lengths = where.put(torch.tensor([7, end], dtype=torch.int32))
        where.told()
        evictor.begin([Span(self.request, 1, 0, end - start, start)], rows=2)
        assert evictor.step is not None
        lengths = evictor.step.engine_lengths(lengths)
        self.waited = where.told()
        assert lengths.tolist() == [7, end - start if start >= N else end]
        for layer, layer_states in enumerate(states):
            query, key, value = (where.put(x[0, :, start:end].transpose(0, 1)) for x in layer_states)
            where.told()
            stored = evictor.store(layer, key, value, slots)
            self.waited += where.told()
            own = stored.cpu() >= 0
            self.write(layer, stored.cpu()[own], key[own], value[own])
            out = where.put(torch.full((end - start, HQ, D), float("nan")))
            where.told()
            evictor.attend(layer, query, key, value, out)
            self.waited += where.told()
            outs.append(out.cpu())
        evictor.step = None
        return outs

    def write(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """The engine's own, [n, H, D] into so many slots."""
        cache = self.caches[layer]
        blocks = cache.as_strided((len(cache), cache[0].numel()), (cache.stride(0), 1), cache.storage_offset())
        for places, given in ((self.layout.keys, key), (self.layout.values, value)):
            at = self.where.put((slots // SIZE)[None, :, None]), places[:, slots % SIZE]
            blocks[at] = given.transpose(0, 1)

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


@pytest.mark.parametrize(("order", "write"), [("LBHNC", transposed), ("LBNHC", beside)])
@pytest.mark.parametrize("size", [N, 16, 7])
@pytest.mark.parametrize("method", ["snapkv:window_size=5", "madakv:echo=0", "keydiff"])
def test_steps_over_pages_are_those_of_a_plain_engine(method: str, size: int, order: str, write: Write) -> None:
    steps_are_those_of_a_plain_engine(method, size, order, write, HERE)


def steps_are_those_of_a_plain_engine(method: str, size: int, order: str, write: Write, where: Where) -> None:
    given, engine = states(), Pretended(method, 0.2, order, write, where)
    for start, end in chunks(size):
        engine.evictor.finish((), (), pytest.fail)
        assert all(bool(out.isnan().all()) for out in engine.pass_(given, start, end))
        assert end == N or not engine.waited
    engine.evictor.finish((), (), pytest.fail)
    assert engine.request.first > 5
    engine.freed()
    for number, want in enumerate(expected(method, 0.2, given)):
        got = engine.pass_(given, N + number, N + number + 1)
        assert not engine.waited
        for out, own in zip(got, want, strict=True):
            torch.testing.assert_close(out[0], own, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["snapkv:window_size=5", "madakv:context_weight=99:echo=0"])
def test_queries_of_tokens_that_were_found_are_computed_once_more(method: str) -> None:
    found_queries_are_computed_once_more(method, HERE)


def found_queries_are_computed_once_more(method: str, where: Where) -> None:
    given, engine = states(), Pretended(method, 0.2, where=where)
    told = []

    def again(name: str, places: Tensor, behind: bool) -> None:
        assert (name, behind) == ("a", False)
        told.extend(places.tolist())
        for layer, own in enumerate(given):
            query, key, value = (where.put(x[0, :, places].transpose(0, 1)) for x in own)
            written = where.put(torch.full((len(places), HQ, D), float("nan")))
            engine.evictor.attend_aside(layer, query, key, value, written)
            out = written.cpu()
            for row, place in enumerate(places.tolist()):
                want = attention(*(x[:, :, : place + 1] for x in own))
                torch.testing.assert_close(out[row], want[0, :, -1], rtol=1e-5, atol=1e-6)

    # Another request has read them.
    engine.evictor.requests.clear()
    slots = (torch.tensor(engine.blocks[:6])[:, None] * SIZE + torch.arange(SIZE)).flatten()
    for layer, (_, key, value) in enumerate(given):
        engine.write(layer, slots, *(where.put(x[0, :, :24].transpose(0, 1)) for x in (key, value)))
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
    preempted_are_read_again_by_the_same_plan(again, HERE)


def preempted_are_read_again_by_the_same_plan(again: int, where: Where) -> None:
    given, engine = states(), Pretended("madakv:echo=0", 0.2, where=where)
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


def plans_behind_an_echo(given: list[tuple[Tensor, Tensor, Tensor]], where: Where) -> list[list[int]]:
    """What is kept of a prompt, 16 tokens of which are read behind it as its last ones are."""
    engine = Pretended("madakv", 0.2, where=where, echoed=16)

    def again(name: str, places: Tensor, behind: bool) -> None:
        assert (name, behind, len(places)) == ("a", True, 16)
        for layer, own in enumerate(given):
            query, key, value = (where.put(x[0, :, places + NEW].transpose(0, 1)) for x in own)
            engine.evictor.attend_aside(layer, query, key, value, where.put(torch.empty(16, HQ, D)))

    engine.pass_(given, 0, N)
    engine.evictor.finish((), (), again)
    assert engine.request.plans is not None
    return [plan.positions.tolist() for plan in engine.request.plans]


def test_a_device_is_told_and_not_asked() -> None:
    """The same on a device of its own: nothing mixes, and no step waits but those in which prompts end."""
    given = states()
    want = plans_behind_an_echo(given, HERE)
    with torch.no_grad(), Elsewhere() as device:
        where = Where(ELSEWHERE, Moved, device.waits)
        assert plans_behind_an_echo(given, where) == want
        steps_are_those_of_a_plain_engine("madakv:echo=0", 16, "LBNHC", beside, where)
        found_queries_are_computed_once_more("madakv:context_weight=99:echo=0", where)
        preempted_are_read_again_by_the_same_plan(N + 4, where)


def test_who_is_over_is_forgotten() -> None:
    given, engine = states(), Pretended("keydiff", 0.2)
    engine.pass_(given, 0, N)
    engine.evictor.finish(("a",), (), pytest.fail)
    assert not engine.evictor.requests
    assert engine.request.table is None
