"""`madakv milebench` from the command line: killed, resumed, shared by processes, and reported."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean

import pytest
from safetensors.torch import load_file, save_file

from madakv import bundled
from madakv.evaluation.milebench import DATASETS, make_sample, read
from madakv.evaluation.milebench.data import read_annotations
from madakv.evaluation.milebench.scores import score
from madakv.evaluation.milebench.suite import milebench_samples
from madakv.evaluation.records import Row
from madakv.evaluation.report import read_results
from madakv.evaluation.rowfiles import read_all
from madakv.methods import from_text
from tests.milebench_documents import write_documents

ASKED = ("TextNeedleInAHaystack", "ALFRED", "MMCoQA", "ActionLocalization")
LABELS = "TN,ALFRED,MMCoQA,AL"
QUESTIONS = 5
METHODS = ["full", "madakv", "snapkv", "streaming_llm"]
BUDGETS = ["0.5", "0.2", "0.1"]
MODELS = ["bundled", "small-llava"]
PER_DATASET = 2


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("documents")
    write_documents(root, ASKED)
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("milebench")
    make_sample(root, per_dataset=PER_DATASET)
    return root


def command(data: Path, out: Path, model: str, **options: str) -> list[str]:
    named = {
        "datasets": LABELS,
        "methods": ",".join(METHODS),
        "budgets": ",".join(BUDGETS),
        "max-new-tokens": "8",
        **({} if model == "bundled" else {"model": model}),
        **options,
    }
    return ["milebench", "--data", str(data), "--out", str(out)] + [
        part for name, value in named.items() for part in (f"--{name}", value)
    ]


def started(arguments: list[str], launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *launcher, "madakv", *arguments], capture_output=True, text=True)


def run(arguments: list[str], launcher: tuple[str, ...] = ()) -> str:
    done = started(arguments, launcher)
    assert done.returncode == 0, done.stderr
    return done.stdout


def killed(arguments: list[str], out: Path, after: int) -> None:
    """Start a run and kill it as soon as there are `after` more rows."""
    before = len(read_all(out, Row))
    with subprocess.Popen(
        [sys.executable, "-m", "madakv", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while len(read_all(out, Row)) < before + after:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)


def keys(rows: list[Row]) -> list[tuple[str, ...]]:
    return sorted(row.key for row in rows)


@pytest.mark.slow
def test_killed_twice_and_every_cell_follows_from_the_rows(documents: Path, tmp_path: Path) -> None:
    killed(command(documents, tmp_path, "bundled"), tmp_path, 30)
    killed(command(documents, tmp_path, "bundled"), tmp_path, 30)
    for model in MODELS:
        run(command(documents, tmp_path, model))
    rows = read_all(tmp_path, Row)
    lines = (1 + (len(METHODS) - 1) * len(BUDGETS)) * len(MODELS)
    assert len(rows) == len(set(keys(rows))) == lines * len(LABELS.split(",")) * QUESTIONS
    assert not [row.error for row in rows if row.error]
    own = [row for row in rows if row.model == "bundled"]
    for scorer in ("official", "strict"):
        assert 0.05 * len(own) < sum(row.scores[scorer] for row in own) < 0.95 * len(own)
    assert any(row.scores["official"] != row.scores["strict"] for row in own)
    assert len({tuple(row.scores.values()) for row in own if row.label == "full"}) > 2
    named = {dataset.label: dataset for dataset in DATASETS.values()}
    for row in rows:
        dataset = named[row.dataset]
        (question,) = [question for question in read(documents, dataset) if question.id == row.sample]
        found = score(dataset.metric, row.answer, question.gold, question.choices)
        assert row.scores == {"official": found.official, "strict": found.strict}
        assert (row.gold, row.group, row.images) == (question.gold, dataset.group, len(question.images))
    with (tmp_path / "report.csv").open() as file:
        cells = [cell for cell in csv.DictReader(file) if cell["column"] == "dataset"]
    assert len(cells) == lines * 2 * len(LABELS.split(","))
    for cell in cells:
        asked = [cell["model"], cell["method"], float(cell["budget"]), cell["name"]]
        own = [row for row in rows if [row.model, row.label, float(row.budget), row.dataset] == asked]
        assert len(own) == QUESTIONS
        assert float(cell["score"]) == pytest.approx(mean(row.scores[cell["scorer"]] for row in own), abs=1e-6)
    assert (tmp_path / "report.md").read_text().count("### Methods and datasets") == len(MODELS) * 2


@pytest.mark.slow
def test_two_processes_answer_what_one_does(documents: Path, tmp_path: Path) -> None:
    options = {"datasets": "ALFRED,MMCoQA", "methods": "full,madakv", "budgets": "0.2"}
    launcher = (
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        str(29500 + os.getpid() % 500),
        "-m",
    )
    table = run(command(documents, tmp_path / "two", "bundled", **options), launcher)
    assert table == run(command(documents, tmp_path / "one", "bundled", **options))
    written = {path.name for path in (tmp_path / "two").glob("rows*")}
    assert written == {"rows-1-of-2.jsonl.gz", "rows-2-of-2.jsonl.gz"}
    one, two = (
        {row.key: (row.answer, row.scores, row.kv_bytes) for row in read_all(tmp_path / name, Row)}
        for name in ("one", "two")
    )
    assert one == two
    assert len(one) == 2 * 2 * QUESTIONS
    assert len({answer for answer, _, _ in one.values()}) > 4


def test_broken_data_is_recorded_as_failed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    make_sample(data, per_dataset=3)
    folder = data / "IEdit"
    content = json.loads((folder / "IEdit.json").read_text())
    first, second, third = content["data"]
    (folder / "images" / first["task_instance"]["images_path"][0]).write_text("no picture")
    del second["response"]
    (folder / "IEdit.json").write_text(json.dumps(content))
    run(command(data, tmp_path / "out", "bundled", datasets="IEdit", methods="full"))
    errors = {row.sample: row.error for row in read_all(tmp_path / "out", Row)}
    assert errors[str(third["sample_id"])] is None
    assert "not an image" in str(errors[str(first["sample_id"])])
    assert "no response" in str(errors[str(second["sample_id"])])
    assert "| failed |" in (tmp_path / "out" / "report.md").read_text()
    second["response"] = "repaired"
    (folder / "IEdit.json").write_text(json.dumps(content))
    again = command(data, tmp_path / "out", "bundled", datasets="IEdit", methods="full")
    run([*again, "--retry-failed"])
    errors = {row.sample: row.error for row in read_results([tmp_path / "out"]).rows}
    assert [bool(error) for error in errors.values()].count(True) == 1
    assert len(errors) == 3


def test_limits_are_drawn_by_the_seed_and_grow_by_adding(tmp_path: Path) -> None:
    data = tmp_path / "data"
    make_sample(data, per_dataset=6)
    tokenizer = bundled.load()[1]
    datasets = [read_annotations(data, DATASETS[name]) for name in ("TextNeedleInAHaystack", "GPR1200")]

    def ids(limit: int | None, seed: int) -> list[tuple[str, str]]:
        return [(s.dataset, s.id) for s in milebench_samples(datasets, tokenizer, limit=limit, seed=seed)]

    whole = ids(None, 0)
    assert len(whole) == 2 * 6
    for seed in range(4):
        drawn = [set(ids(limit, seed)) for limit in (1, 2, 3, 5)]
        assert [len(found) for found in drawn] == [2, 4, 6, 10]
        assert drawn[0] < drawn[1] < drawn[2] < drawn[3] < set(whole)
    assert ids(3, 1) == ids(3, 1)
    assert len({tuple(ids(1, seed)) for seed in range(8)}) > 2


def test_the_method_of_a_row_can_be_made_again(data: Path, tmp_path: Path) -> None:
    run(command(data, tmp_path, "bundled", datasets="TN", methods="madakv:safeguard=0.8", budgets="0.2", limit="1"))
    (row,) = read_all(tmp_path, Row)
    assert row.method == repr(from_text("madakv:safeguard=0.8", budget=0.2))


def test_where_every_answer_fails_the_reason_is_told(data: Path, tmp_path: Path) -> None:
    """Weights that are not numbers: what is wrong is one line on the screen, and in the report."""
    folder = shutil.copytree(bundled.model_path(), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights[next(name for name in weights if "language_model" in name and "q_proj" in name)][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors")
    options = {"datasets": "TN,IEdit", "methods": "madakv,snapkv", "budgets": "0.2"}
    done = started(command(data, tmp_path / "out", str(folder), **options))
    assert done.returncode == 1
    failed = 2 * 2 * PER_DATASET
    told = f"{folder}: {failed} of {failed} answers failed, {failed} by InputError: "
    assert told in done.stderr
    assert "NaN" in done.stderr
    assert f"    {told}" in (tmp_path / "out" / "report.md").read_text()
