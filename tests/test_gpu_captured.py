"""What is told of captured steps on a GPU, with another backend in the place of CUDA graphs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import CompileConfig

from madakv.attention import memory
from tests import tiny
from tests.scripts import load_script

captured = load_script("gpu_captured")


@pytest.fixture
def how() -> Iterator[CompileConfig]:
    torch._dynamo.reset()
    config = CompileConfig(backend="eager", fullgraph=True, mode=None)
    config._compile_all_devices = True  # type: ignore[assignment]
    yield config
    torch._dynamo.reset()


def test_the_same_answers_pass(how: CompileConfig) -> None:
    found = captured.compare(tiny.llava(), [tiny.document()], how)
    assert found["ok"]
    assert found["answers"] == len(captured.BUDGETS)


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_steps_that_attend_otherwise_are_found(
    how: CompileConfig, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    right = memory.captured_step
    monkeypatch.setattr(memory, "captured_step", lambda *args, **options: right(*args, **options) * factor)
    found = captured.compare(tiny.llava(), [tiny.document()], how)
    assert not found["ok"]
    assert not found["relative_rms"] <= captured.TOLERANCE


@pytest.fixture
def debug_modes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    return modes


def test_steps_run_where_waiting_is_an_error(
    how: CompileConfig, debug_modes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right, read = captured.with_step_mask, []

    def noting(*args: Any) -> Any:
        read.append(debug_modes[-1:])
        return right(*args)

    monkeypatch.setattr(captured, "with_step_mask", noting)
    assert captured.steps_that_wait(tiny.llava(), tiny.document(), how) == {"ok": True, "steps": captured.TOKENS}
    assert debug_modes == ["error", "default"]
    assert read.count(["error"]) == captured.TOKENS


def test_a_step_that_waits_is_found(
    how: CompileConfig, debug_modes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = captured.with_step_mask

    def waiting(*args: Any) -> Any:
        if debug_modes[-1:] == ["error"]:
            raise RuntimeError("called a synchronizing operation\nand more")
        return right(*args)

    monkeypatch.setattr(captured, "with_step_mask", waiting)
    found = captured.steps_that_wait(tiny.llava(), tiny.document(), how)
    assert found == {"ok": False, "problem": "called a synchronizing operation"}
    assert debug_modes == ["error", "default"]


@pytest.mark.parametrize(
    ("counts", "ok"),
    [
        ({}, True),
        ({"unique_graphs": 2}, False),
        ({"cudagraph_skips": 1}, False),
        ({"cudagraph_partitions": 1}, False),
        ({"cudagraph_recorded_non_static_inputs": 0}, False),
    ],
)
def test_all_of_a_step_must_be_recorded_once(
    monkeypatch: pytest.MonkeyPatch, counts: dict[str, int], ok: bool
) -> None:
    found = {"unique_graphs": 1, "cudagraph_recorded_non_static_inputs": 10, **counts}
    inductor = {"cudagraph_skips": 0, "cudagraph_partitions": 0, **found}
    monkeypatch.setattr(captured, "counters", {"stats": found, "inductor": inductor})
    assert captured.recorded()["ok"] is ok


@pytest.mark.parametrize("place", [None, 0, 1])
def test_memory_that_grows_is_found(monkeypatch: pytest.MonkeyPatch, place: int | None) -> None:
    step = captured.MOST_PER_PROMPT * 2
    grown = [iter(range(10**9, 10**12, step if place == number else 10)) for number in range(2)]
    monkeypatch.setattr(captured, "answers", lambda *_args, **_options: None)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: next(grown[0]))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10**12 - next(grown[1]), 10**12))
    found = captured.memory(tiny.llava(), [{}], CompileConfig(), 12)
    assert found["ok"] is (place is None)
    assert len(found["taken"]) == 12
