"""`madakv plot` as a user meets it, on the bundled model, and what it reads off a prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BatchFeature
from typer.testing import CliRunner

import madakv
from madakv import bundled
from madakv.cli.app import app
from madakv.evaluation.digits import KINDS
from madakv.evaluation.looking import Asked, look
from madakv.methods import from_text
from madakv.scoring import proxy_mask
from tests import tiny


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["plot", *arguments])


def numbers(folder: Path) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    found: dict[str, Any] = json.loads((folder / "data.json").read_text(), parse_constant=refuse)
    return found


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "one.png"
    bundled.sample().images[0].save(path)
    return str(path)


def test_a_suite_is_drawn_with_all_its_numbers(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    result = run("--samples", "2", "--seed", "5", "--method", "snapkv", "--budget", "0.3", "--out", str(out))
    assert result.exit_code == 0, result.output
    drawn = ("concentration", "preference", "layers", "tasks")
    assert {path.name for path in out.iterdir()} == {
        "data.json",
        *(f"{name}.{kind}" for name in drawn for kind in ("png", "svg")),
    }
    assert f"{', '.join(drawn)}: {out}" in result.stdout
    data = numbers(out)
    assert data["prompts"] == 2 * len(KINDS)
    assert data["left_out"] == {}
    assert "budget=0.3" in data["method"]
    assert data["command"].startswith("madakv plot --figure all --suite digits --samples 2 --seed 5 --method snapkv")
    assert {"madakv", "torch", "transformers", "git", "model_fingerprint"} <= set(data)
    assert set(data["tasks"]["tasks"]) == set(KINDS)
    assert data["tasks"]["method"] == "snapkv at 30%"
    assert all(task["documents"] == 2 for task in data["tasks"]["tasks"].values())
    L, H = np.array(data["preference"]["plain"]).shape
    assert data["preference"]["layers"] == list(range(L))
    assert [len(one["heads"]) for one in data["layers"]["demands"]["text"]] == [H] * L
    # What is kept of one modality is no more than there is, and no more than the budget.
    assert all(0 < task["kept"]["mean"] < 1 for task in data["tasks"]["tasks"].values())


def test_one_prompt_has_no_kinds_of_questions(tmp_path: Path, picture: str) -> None:
    result = run("--image", picture, "--prompt", "and <image> ? list", "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert "tasks is not drawn: it compares kinds of questions" in " ".join(result.stderr.split())
    data = numbers(tmp_path / "out")
    assert set(data["left_out"]) == {"tasks"}
    assert data["concentration"]["curves"]["image"]["tokens"] == 16
    assert not (tmp_path / "out" / "tasks.png").exists()
    assert f"--image {picture} --prompt 'and <image> ? list'" in data["command"]


def test_text_alone_is_drawn_as_far_as_it_goes(tmp_path: Path) -> None:
    result = run("--prompt", "? list", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    data = numbers(tmp_path)
    assert list(data["left_out"]) == ["preference", "tasks"]
    assert "the prompt is text alone" in data["left_out"]["preference"]
    assert list(data["concentration"]["curves"]) == ["text"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--figure", "heads"], "unknown figure 'heads'; known: concentration, preference, layers, tasks, all"),
        (["--figure", "layers,,"], "unknown figure ''"),
        (["--figure", "preference", "--prompt", "? list"], "preference compares text with pictures"),
        (["--figure", "tasks", "--prompt", "? list"], "--prompt is one question; give a --suite"),
        (["--prompt", "? list", "--suite", "digits"], "--suite digits is of a suite, and --prompt was given"),
        (["--prompt", "? list", "--samples", "3"], "--samples 3 is of a suite, and --prompt was given"),
        (["--image", "missing.png"], "images were given without --prompt"),
        (["--image", "missing.png", "--prompt", "x"], "no such image file: missing.png"),
        (["--prompt", "a <image>"], "1 <image> marks but 0 images"),
        (["--prompt", " "], "the prompt is empty"),
        (["--suite", "nothing"], "unknown suite 'nothing'"),
        (["--method", "nothing"], "unknown method 'nothing'"),
        (["--method", "full"], "--method full evicts nothing"),
        (["--budget", "0"], "budget must be"),
        (["--model", "/no/such/folder"], "cannot load the model '/no/such/folder'"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = run(*arguments, "--out", str(tmp_path / "out"))
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line and not line.startswith("prompts ")]
    assert len(lines) == 1
    assert message in lines[0]


def test_a_folder_that_cannot_be_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("--model", "/no/such/folder", "--out", str(tmp_path / "file"))
    assert result.exit_code == 2
    assert result.stderr.strip().splitlines() == [
        f"error: --out is the name of a folder, not of a file: {tmp_path / 'file'}"
    ]


def test_what_is_looked_at_is_the_questions_attention() -> None:
    model, inputs = tiny.llava(), tiny.document()
    # Longer at its end, so that it reads otherwise from there.
    tail = torch.randint(5, 97, (1, 6))
    inputs["input_ids"] = torch.cat([inputs["input_ids"], tail], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    seen = look(model, Asked("d", "t", BatchFeature(inputs)), from_text("madakv", budget=0.2))
    assert seen.modality.tolist() == (inputs["input_ids"][0] == tiny.IMAGE_TOKEN).long().tolist()
    modality = torch.from_numpy(seen.modality)[None]
    question = proxy_mask(modality)[0]
    before = model.config.get_text_config()._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            attentions = model(**inputs, output_attentions=True).attentions
    finally:
        model.set_attn_implementation(before)
    for layer, weights in enumerate(attentions):
        # [Hq, N, N] -> KV heads
        wanted = weights[0][:, question].mean(1).unflatten(0, (2, -1)).mean(1)
        assert seen.attention[layer] == pytest.approx(wanted.numpy(), abs=1e-3)
    with madakv.evict(model, "madakv", budget=0.2) as run:
        tiny.greedy(model, inputs, 1)
    assert run.last is not None
    assert seen.kept.tolist() == run.last.counts.sum((0, 1, 2)).tolist()
    assert seen.layers == (0, 1, 2)


@pytest.mark.parametrize("method", ["madakv:lookahead=4", "madakv:draft=4", "random", "tgv_kv"])
def test_attention_is_the_same_whatever_is_kept(method: str) -> None:
    model, asked = tiny.llava(), Asked("d", "t", BatchFeature(tiny.document()))
    seen = look(model, asked, from_text(method, budget=0.2))
    assert (seen.attention == look(model, asked, from_text("snapkv", budget=1.0)).attention).all()
    assert 0.15 < seen.kept.sum() / (3 * 2 * len(seen.modality)) <= 0.2


@pytest.mark.parametrize("method", ["madakv:lookahead=4", "madakv:draft=4"])
def test_what_is_kept_is_what_a_whole_answer_would_keep(method: str) -> None:
    model, inputs = tiny.llava(), tiny.document()
    seen = look(model, Asked("d", "t", BatchFeature(inputs)), from_text(method, budget=0.2))
    with madakv.evict(model, from_text(method, budget=0.2)) as run:
        tiny.greedy(model, inputs, 12)
    assert run.last is not None
    assert seen.kept.tolist() == run.last.counts.sum((0, 1, 2)).tolist()


def test_one_token() -> None:
    inputs = {"input_ids": torch.tensor([[7]]), "attention_mask": torch.ones(1, 1, dtype=torch.long)}
    seen = look(tiny.llama(), Asked("d", "t", BatchFeature(inputs)), from_text("madakv", budget=0.2))
    assert seen.attention.shape == (3, 2, 1)
    assert (seen.attention == 1).all()
