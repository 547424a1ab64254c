"""Results belong to the model that gave them, whatever folder it lies in."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from madakv import bundled
from madakv.assembled import DESCRIPTION
from madakv.cli.evaluate import RunOptions, run_eval
from madakv.evaluation.records import Row
from madakv.evaluation.report import read_results
from madakv.evaluation.rowfiles import read_all
from madakv.fingerprint import of_folder, of_model, of_source
from madakv.loading import source_of
from madakv.published.known import KNOWN
from tests.test_published import SMOLLM2

RESULTS = Path(__file__).parents[1] / "results"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(bundled.model_path(), tmp_path / "model")


def test_a_copy_is_the_same_model(folder: Path) -> None:
    (folder / "README.md").write_text("about it")
    (folder / "training").mkdir()
    (folder / "training" / "log.json").write_text("{}")
    assert of_folder(folder) == of_source(str(bundled.model_path())) == of_folder(bundled.model_path())


def flipped(folder: Path) -> None:
    """One bit in the middle of the weights: size and time stay."""
    path = folder / "model.safetensors"
    before, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def in_file(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text((folder / name).read_text() + " ")


@pytest.mark.parametrize(
    "change",
    [
        flipped,
        *map(in_file, ("config.json", "generation_config.json", "tokenizer.json", "processor_config.json")),
        in_file("chat_template.jinja"),
        lambda folder: (folder / "chat_template.jinja").unlink(),
    ],
)
def test_a_changed_file_is_another_model(folder: Path, change: Callable[[Path], object]) -> None:
    before = of_folder(folder)
    change(folder)
    assert of_folder(folder) != before


def test_a_model_in_memory_is_what_it_holds() -> None:
    def made() -> str:
        return of_model(model, processor)

    model, processor = bundled.load()
    first = made()
    assert made() == first
    with torch.no_grad():
        model.lm_head.weight[3, 3] += 1e-3
        assert made() != first
        model.lm_head.weight.copy_(bundled.load()[0].lm_head.weight)
    assert made() == first
    model.generation_config.repetition_penalty = 1.5
    assert made() != first
    model.generation_config.repetition_penalty = bundled.load()[0].generation_config.repetition_penalty
    processor.chat_template = processor.chat_template + " "
    assert made() != first


def test_a_repaired_folder_is_evaluated_again(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command after the repair gave the broken model's figures, and no word."""
    out = tmp_path / "out"

    def run() -> list[Row]:
        caplog.clear()
        with caplog.at_level(logging.WARNING, "madakv"):
            options = RunOptions(str(folder), "full", "0.2", 16, out, "1/1", False, "cpu", "auto")
            run_eval(options, suite_name="digits", samples=1, seed=0)
        now = of_folder(folder)
        return [row for row in read_all(out, Row) if row.model_fingerprint == now]

    whole = (folder / "model.safetensors").read_bytes()
    weights = load_file(folder / "model.safetensors")
    save_file({name: x * ("layers.1." not in name) for name, x in weights.items()}, folder / "model.safetensors")
    broken = run()
    assert sum(row.scores["exact"] for row in broken) < 3
    assert not caplog.messages
    (folder / "model.safetensors").write_bytes(whole)
    repaired = run()
    assert [row.scores["exact"] for row in repaired] == [1.0] * 5
    (said,) = caplog.messages
    assert said.startswith(f"{out} holds 5 rows of another model under the name {str(folder)!r}")
    assert repaired[0].model_fingerprint in said
    assert broken[0].model_fingerprint in said
    assert "\n" not in said
    assert run() == repaired
    assert read_all(out, Row) == [*broken, *repaired]
    models = {f"{folder} [{row.model_fingerprint}]" for row in (broken[0], repaired[0])}
    assert {row.model for row in read_results([out]).rows} == models
    report = (out / "report.md").read_text()
    assert all(f"## {name}, exact scores" in report for name in models)
    assert all(f"(fingerprint {row.model_fingerprint})" in report for row in (broken[0], repaired[0]))
    capsys.readouterr()


SMALL_SMOLVLM = "64895ea229061011"
"""With the language model that it is put together with, which is not in the checkout."""


@pytest.mark.skipif(not KNOWN["smollm2"].is_here, reason="`madakv models get smollm2` brings its language model")
def test_small_smolvlm_is_the_one_that_was_measured() -> None:
    assert of_source(source_of("small-smolvlm")) == SMALL_SMOLVLM


def test_committed_rows_are_of_the_models_in_this_checkout() -> None:
    """So that `make results` goes on with them. Those of MileBench's sample are of an older small-llava."""
    here = ["bundled", *(name for name, folder in bundled.named().items() if not (folder / DESCRIPTION).is_file())]
    own = {name: of_source(source_of(None if name == "bundled" else name)) for name in here}
    own |= {"smollm2": SMOLLM2, "small-smolvlm": SMALL_SMOLVLM}
    notes = [path for path in RESULTS.rglob("run.json") if path.parent.name != "milebench-sample"]
    assert len(notes) > 12
    for path in notes:
        about = json.loads(path.read_text())
        for run in (about, *about.get("resumed", ())):
            name = run.get("model") or run["settings"]["model"]
            assert run["model_fingerprint"] == own[name.split()[0]], path
    assert {row.model_fingerprint for row in read_all(RESULTS / "digits", Row)} == {own["bundled"]}
