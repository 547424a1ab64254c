"""What is told of captured steps on a GPU, with another backend in the place of CUDA graphs."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CompileConfig

from madakv.hf import cache as cache_module
from tests import tiny

PATH = Path(__file__).parent.parent / "scripts" / "gpu_captured.py"


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("gpu_captured", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


captured = _load()


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


def test_steps_that_attend_otherwise_are_found(how: CompileConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    right = cache_module.captured_step
    monkeypatch.setattr(cache_module, "captured_step", lambda *args, **options: right(*args, **options) * 1.01)
    found = captured.compare(tiny.llava(), [tiny.document()], how)
    assert not found["ok"]
    assert found["relative_rms"] > captured.TOLERANCE


def test_a_step_that_waits_is_found(how: CompileConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = []

    @contextmanager
    def refusing() -> Iterator[None]:
        waiting.append("refused")
        yield
        raise RuntimeError("called a synchronizing operation\nand more")

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(captured, "no_waiting", refusing)
    found = captured.steps_that_wait(tiny.llava(), tiny.document(), how)
    assert waiting
    assert found == {"ok": False, "problem": "called a synchronizing operation"}


def test_memory_that_grows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    held = iter(range(1000, 2000, 10))
    monkeypatch.setattr(captured, "answers", lambda *_args, **_options: None)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: next(held))
    assert not captured.memory(tiny.llava(), [{}], CompileConfig(), 50)["ok"]
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 1000)
    assert captured.memory(tiny.llava(), [{}], CompileConfig(), 50)["ok"]
