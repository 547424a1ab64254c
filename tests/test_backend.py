"""The decode kernel inside whole models: the same tokens and logits as PyTorch's operations give."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import madakv
from madakv import ConfigurationError, backend
from madakv.attention.decode import decode_attention
from tests.families.zoo import FAMILIES, left_padded
from tests.tolerance import assert_same

pytest.importorskip("triton", reason="the kernel needs the package triton")


@pytest.fixture(autouse=True)
def _chosen_anew() -> Iterator[None]:
    backend.chosen.cache_clear()
    yield
    backend.chosen.cache_clear()


def decoded(monkeypatch: pytest.MonkeyPatch, name: str, model: Any, inputs: Any, **options: Any) -> Any:
    monkeypatch.setenv(backend.VARIABLE, name)
    backend.chosen.cache_clear()
    with madakv.evict(model, budget=0.4, safeguard=0.2, **options):
        return model.generate(
            **inputs, max_new_tokens=5, do_sample=False, return_dict_in_generate=True, output_logits=True
        )


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma2", "gpt_oss"])
@pytest.mark.parametrize(
    "options", [{}, pytest.param({"lookahead": 2}, marks=pytest.mark.slow)], ids=["", "lookahead"]
)
def test_models_answer_the_same(family: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups, padded rows, softcaps and sinks; the kernel takes over when what is looked ahead has been read."""
    made = FAMILIES[family]
    model, inputs = made.model(), left_padded([made.prompt(seed) for seed in (0, 1)])
    want = decoded(monkeypatch, "torch", model, inputs, **options)
    calls = []
    kernel = decode_attention

    def counted(*args: Any, **kwargs: Any) -> Any:
        out = kernel(*args, **kwargs)
        calls.append(out is not None)
        return out

    monkeypatch.setattr("madakv.attention.step.decode_attention", counted)
    got = decoded(monkeypatch, "triton", model, inputs, **options)
    assert all(calls)
    assert len(calls) == len(made.full_layers) * (4 - options.get("lookahead", 0))
    assert torch.equal(got.sequences, want.sequences)
    assert_same(torch.stack(got.logits), torch.stack(want.logits), 1e-4)


def test_several_new_tokens_go_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    made = FAMILIES["llava"]
    model, inputs = made.model(), made.prompt(0)
    monkeypatch.setenv(backend.VARIABLE, "triton")
    more = torch.tensor([[5, 6, 7]])
    with madakv.evict(model, budget=0.4, safeguard=0.2):
        cache = model(**inputs, use_cache=True).past_key_values
        turn = model(input_ids=more, past_key_values=cache).logits[:, -1]
        cache = model(**inputs, use_cache=True).past_key_values
        for token in more[0]:
            step = model(input_ids=token.view(1, 1), past_key_values=cache).logits[:, -1]
    assert_same(step, turn, 1e-4)


def test_what_is_asked_for_and_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backend.VARIABLE, "cuda")
    with pytest.raises(ConfigurationError, match="one of auto, torch, native, triton, flash, varlen; got 'cuda'"):
        backend.chosen("cpu")
    monkeypatch.setenv(backend.VARIABLE, "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigurationError, match="needs a GPU; tensors are on .cpu."):
        backend.chosen("cpu")
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="the package triton is missing"):
        backend.chosen("cuda")


def test_the_choice_is_logged_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv(backend.VARIABLE, raising=False)
    with caplog.at_level(logging.INFO, logger="madakv"):
        assert [backend.chosen("cpu") for _ in range(3)] == ["native"] * 3
        assert backend.chosen("cuda") == "triton"
    assert caplog.messages == ["decode attention on cpu: native", "decode attention on cuda: triton"]
