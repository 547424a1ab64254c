"""`madakv demo`: what a newcomer sees first is true, and says so in its last line."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from madakv.answering import Answer, answer
from madakv.bundled import MODELS_VARIABLE
from madakv.cli import demo
from madakv.cli.app import app
from madakv.kept import Kept
from madakv.loading import load
from madakv.methods import resolve
from madakv.plan import KeepPlan
from madakv.prompts import model_inputs


@pytest.fixture
def only_the_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(MODELS_VARIABLE, str(tmp_path))


def test_without_a_checkout_the_document_that_comes_with_the_package_is_read(only_the_wheel: None) -> None:
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 0, result.output
    last = result.output.strip().splitlines()[-1]
    assert re.fullmatch(
        r"seen: 341 tokens with 12 pictures; both answers right; KV cache 2\.0 MiB -> \d+\.\d KiB \(\d+\.\d%\); "
        r"decode \d+\.\d -> \d+\.\d ms per token; prefill \d+\.\d\dx the full cache's",
        last,
    ), last


def test_a_wrong_answer_is_said_and_fails(only_the_wheel: None, monkeypatch: pytest.MonkeyPatch) -> None:
    right = demo.short_document()
    wrong = replace(right, question=replace(right.question, answer="red 0"))
    monkeypatch.setattr(demo, "short_document", lambda: wrong)
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 2
    assert "; both answers wrong; " in result.stdout
    assert result.stderr.splitlines() == ["error: an answer is not 'red 0'; see the table above"]


def test_the_long_document_is_answered_right_with_a_fifth() -> None:
    document = demo.long_document()
    model, processor = load(document.model)
    inputs = model_inputs(processor, f"{document.text} {document.question.prompt}", list(document.images))
    assert inputs["input_ids"].shape[1] >= 3000
    assert len(document.images) > 100
    for method in (None, resolve("madakv", budget=0.2)):
        got = answer(model, processor, inputs, method, max_new_tokens=16)
        assert got.text == document.question.answer
    assert got.kept is not None
    assert got.kept.kv_bytes <= 0.2 * got.kept.kv_bytes_full


def test_medians_and_ratios_within_rounds() -> None:
    document = demo.short_document()
    modality = torch.zeros(1, 4, dtype=torch.int64)
    kept = Kept("madakv", (0,), (KeepPlan.everything(modality, 2),), modality, 10, 40, 0)
    text = document.question.answer
    rounds = [
        demo.Round(Answer(text, 3, whole, 2 * whole, None), Answer(text, 3, now, now, kept))
        for whole, now in ((1.0, 2.0), (4.0, 5.0), (2.0, 1.0))
    ]
    seen = demo.Seen.of(rounds, document)
    assert seen.prefill == (2.0, 2.0, 1.25)
    assert seen.decode == (4.0, 2.0, 0.625)
    assert seen.right == (True, True)
    other = replace(rounds[1], evicted=replace(rounds[1].evicted, text="red 0"))
    assert "only the answer with the full cache right" in str(demo.Seen.of([rounds[0], other], document))
