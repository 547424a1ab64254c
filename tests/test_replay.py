"""Evicting a recorded prefill is the same as reading the prompt under each method."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

import madakv
from madakv import UnsupportedModelError, bundled
from madakv.answering import answer
from madakv.evaluation.documents.presentation import ONE_SIZE
from madakv.evaluation.records import Row
from madakv.evaluation.runner import run_samples
from madakv.evaluation.samples import Sample
from madakv.evaluation.suites import suite
from madakv.hf.record import finish
from madakv.hf.replay import ReadPrompt, continue_greedily, read_more
from madakv.methods import Method, from_text
from madakv.prompts import model_inputs
from tests import tiny


def live_tensors() -> int:
    gc.collect()
    return sum(type(thing) is torch.Tensor for thing in gc.get_objects())


METHODS = [
    *("full", "madakv", "madakv:safeguard=0.2", "snapkv", "lookm", "meda", "prefixkv"),
    *("madakv:lookahead=2", "h2o:lookahead=3", "lookm:lookahead=1"),
    *("madakv:echo=16", "snapkv:echo=64:context=8", "madakv:echo=64:lookahead=3"),
    *("kvzip", "kvzip:echo=16:budgets=uniform", "kvzip:chunk_size=20", "keydiff", "expected_attention", "tgv_kv"),
    *("madakv:draft=4", "snapkv:draft=1:window_size=4", "lookm:draft=12", "meda:draft=3"),
    "madakv:echo=24:draft=4:safeguard=0.2",
]


@pytest.mark.parametrize("method", METHODS)
def test_replay_is_generation(method: str) -> None:
    torch.manual_seed(3)
    model, inputs = tiny.llava(), tiny.document()
    prompt = ReadPrompt.of(model, inputs)
    chosen = from_text(method)
    with madakv.evict(model, chosen) as run:
        wanted = tiny.greedy(model, inputs)
        kept = run.last
    with madakv.evict(model, chosen) as run:
        cache = prompt.evicted(model, run)
        ids = continue_greedily(model, cache, prompt.logits, seen=prompt.ids, end=set(), max_new_tokens=16)
        finish(cache, run)
    assert ids == wanted[0].tolist()
    assert kept is not None
    assert run.last is not None
    assert all(torch.equal(a.positions, b.positions) for a, b in zip(kept.plans, run.last.plans, strict=True))
    assert run.last.kv_bytes == kept.kv_bytes < kept.kv_bytes_full or method == "full"


def test_a_prompt_can_be_replayed_again_and_again() -> None:
    torch.manual_seed(4)
    model, inputs = tiny.llava(), tiny.document()
    prompt = ReadPrompt.of(model, inputs)
    answers = []
    for method in ("madakv", "lookm", "madakv"):
        with madakv.evict(model, method, budget=0.1) as run:
            cache = prompt.evicted(model, run)
            answers.append(
                continue_greedily(model, cache, prompt.logits, seen=prompt.ids, end=set(), max_new_tokens=8)
            )
    assert answers[0] == answers[2]


def test_a_second_question_is_read_into_the_evicted_cache() -> None:
    torch.manual_seed(5)
    model, inputs = tiny.llava(), tiny.document()
    more = [9, 10, 11]
    prompt = ReadPrompt.of(model, inputs)
    with madakv.evict(model, "snapkv", budget=0.3, window_size=4) as run:
        cache = prompt.evicted(model, run)
        first = continue_greedily(model, cache, prompt.logits, seen=prompt.ids, end=set(), max_new_tokens=3)
        replayed = read_more(model, cache, [first[-1], *more])
    with madakv.evict(model, "snapkv", budget=0.3, window_size=4):
        out = model(**inputs, use_cache=True)
        stepped = out.past_key_values
        for token in [*first, *more]:
            out = model(input_ids=torch.tensor([[token]]), past_key_values=stepped)
    torch.testing.assert_close(replayed, out.logits[:, -1], rtol=1e-4, atol=1e-4)


def test_models_with_other_layers_are_refused() -> None:
    config = Gemma3TextConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        vocab_size=60,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=8,
    )
    model = Gemma3ForCausalLM(config).eval()
    counts = []
    for _ in range(3):
        with pytest.raises(UnsupportedModelError, match="full attention"):
            ReadPrompt.of(model, {"input_ids": torch.randint(5, 60, (1, 12))})
        counts.append(live_tensors())
    assert counts[2] <= counts[0], "what was read of it is gone"


def run(out: Path, methods: list[Method]) -> list[Row]:
    model, processor = bundled.load()
    return run_samples(
        model,
        processor,
        samples=list(suite("digits")(1, 3, ONE_SIZE)),
        settings={"suite": "digits", "seed": 3},
        model_name="bundled",
        methods=methods,
        out=out,
        max_new_tokens=20,
        progress=lambda done, total: None,
    )


def test_models_that_cannot_be_replayed_read_for_each_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = [from_text("madakv"), from_text("h2o:lookahead=1")]
    replayed = run(tmp_path / "replayed", methods)

    def refuse(*_: object) -> None:
        raise UnsupportedModelError("not this one")

    monkeypatch.setattr(ReadPrompt, "of", refuse)
    read = run(tmp_path / "read", methods)
    assert [replace(row, seconds=0.0) for row in read] == [replace(row, seconds=0.0) for row in replayed]


def test_the_runner_answers_as_generate_does(tmp_path: Path) -> None:
    model, processor = bundled.load()
    methods = [from_text(text) for text in ("full", "madakv", "snapkv:lookahead=2")]
    rows = run(tmp_path, methods)
    samples: dict[str, Sample] = {sample.dataset: sample for sample in suite("digits")(1, 3, ONE_SIZE)}
    assert len(rows) == len(methods) * len(samples)
    for row in rows:
        sample = samples[row.dataset]
        inputs = model_inputs(processor, sample.prompt, sample.pictures())
        method = next(method for method in methods if repr(method) == row.method)
        plain = answer(model, processor, inputs, method, max_new_tokens=20)
        assert plain.text == row.answer
        assert plain.kept is not None
        assert plain.kept.kv_bytes == row.kv_bytes


@pytest.mark.parametrize("method", METHODS)
def test_nothing_of_a_prompt_outlives_it(method: str) -> None:
    """Not even in a circle: an evaluation of a thousand prompts would hold them all."""
    model, inputs = tiny.llava(), tiny.document()

    def answered() -> None:
        prompt = ReadPrompt.of(model, inputs)
        with madakv.evict(model, from_text(method)) as run:
            cache = prompt.evicted(model, run)
            continue_greedily(model, cache, prompt.logits, seen=prompt.ids, end=set(), max_new_tokens=4)
            finish(cache, run)

    answered()
    before = live_tensors()
    for _ in range(2):
        answered()
    assert live_tensors() <= before
