"""Compiled decoding in the benchmark: who takes part where, and that what is timed is what `generate` runs."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from madakv import MadaKV
from madakv.bench import contenders as listed
from madakv.bench import machine
from madakv.bench.contenders import Contender, Evicted, Stock, baseline, contenders
from madakv.bench.decode import measure_decode
from madakv.bench.roofline import Rates
from madakv.bench.settings import Settings
from madakv.bench.shapes import SHAPES
from madakv.bench.subject import random_subject
from madakv.cache import FixedTail
from tests.test_bench import TINY
from tests.test_compile import Graphs, compiling

METHODS = (MadaKV(budget=1.0, safeguard=0.2), MadaKV(budget=0.2, safeguard=0.2))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(SHAPES, "tiny", TINY)
    monkeypatch.setitem(machine.READ_BYTES, "cpu", 1 << 20)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_compiled_contenders_take_part_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = random_subject("tiny", 2, dtype=torch.float32, device=torch.device("cpu"))
    config = subject.model.config
    plain, missing = contenders(config, METHODS, timed=subject)
    assert contenders(config, METHODS)[1] == missing
    why = {
        "": None,
        "float32": "it takes bf16 and fp16, not torch.float32",
        "alone": "the package flash-attn is missing",
    }
    for case, reason in why.items():
        monkeypatch.setattr(listed, "is_flash_attn_2_available", lambda case=case: case != "alone")
        dtype = torch.float32 if case == "float32" else torch.bfloat16
        gpu: Any = SimpleNamespace(device=torch.device("cuda"), dtype=dtype)
        found, lines = contenders(config, METHODS, timed=gpu)
        names = [one.label for one in found]
        assert names[: len(plain)] == [one.label for one in plain]
        assert names[len(plain) :] == [
            "StaticCache, compiled",
            *["DynamicCache, FlashAttention 2"] * (reason is None),
            "madakv:safeguard=0.2 100%, compiled",
            "madakv:safeguard=0.2 20%, compiled",
        ]
        assert lines[len(missing) :] == [f"DynamicCache, FlashAttention 2 is not measured: {reason}"] * (
            reason is not None
        )
        assert [one.label for one in found if one.compiled] == [name for name in names if "compiled" in name]


@pytest.mark.parametrize("fill", ["prefill", "synthetic"])
def test_what_is_timed_is_compiled_once_and_right(fill: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = Graphs()
    compiled = compiling(graphs)
    chosen = [baseline(), listed._static(compiled), *(Evicted(method, compiled=compiled) for method in METHODS)]
    monkeypatch.setattr("madakv.bench.decode.contenders", lambda *_, **__: (chosen, []))
    subject = random_subject("tiny", 2, dtype=torch.float32, device=torch.device("cpu"))
    settings = Settings(
        context=60, batch=2, methods=METHODS, tokens=2, repeats=3, fill=fill, shortest=0.5, rivals=True
    )
    rows = measure_decode(subject, settings, Rates(1e9, 1e9), {})
    assert [row.refused for row in rows] == [None] * 4
    assert all(row.figures["ms"] > 0 for row in rows)
    # Of the first caches, and of all evicted ones; these run one step as it is, each.
    steps = 1 + chosen[1].settling + 2 * 3
    assert (graphs.compiled, graphs.runs) == (2, 3 * steps - 2)


def test_an_evicted_cache_has_just_the_room_that_it_needs() -> None:
    subject = random_subject("tiny", 2, dtype=torch.float32, device=torch.device("cpu"))
    prompt = subject.prompt(40, 1, 1.0)
    contender = Evicted(METHODS[1], compiled=compiling("eager"))
    with contender.inside(subject) as run:
        read = contender.read(subject, prompt, 5, run)
    tails = [layer.memory.tail for layer in read.cache.ragged_layers]
    assert [isinstance(tail, FixedTail) and tail.length for tail in tails] == [5, 5]


def test_another_attention_is_used_and_given_back() -> None:
    subject = random_subject("tiny", 2, dtype=torch.float32, device=torch.device("cpu"))
    contender: Contender = Stock(
        "eager", lambda config, _: DynamicCache(config=config), exact=True, attention="eager"
    )
    before = subject.model.config._attn_implementation
    with contender.inside(subject):
        assert subject.model.config._attn_implementation == "eager" != before
    assert subject.model.config._attn_implementation == before
