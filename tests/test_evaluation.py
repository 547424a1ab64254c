"""The runner: complete, resumable, honest."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import madakv
from madakv import ConfigurationError, bundled
from madakv.evaluation.plots import accuracy_over_bytes
from madakv.evaluation.records import Row, open_results, provenance, read_rows
from madakv.evaluation.runner import run_suite
from madakv.evaluation.suites import suite
from madakv.evaluation.summary import markdown, ratio_to, summarise

ROW = Row("A(budget=0.5)", "a", 0.5, "0-code", "code", "1 2", "1 2", True, 300, 0.5, 50, 100)


def evaluate(out: Path, stop_after: int | None = None, **changes: Any) -> list[Row]:
    model, processor = bundled.load()
    calls = 0

    def progress(done: int, total: int) -> None:
        nonlocal calls
        assert total == 2 * 2 * 5
        calls += 1
        if stop_after is not None and calls > stop_after:
            raise KeyboardInterrupt

    settings = dict(
        suite_name="digits",
        model_name="bundled",
        methods=[madakv.Full(), madakv.MadaKV(budget=0.2)],
        samples=2,
        seed=500,
        out=out,
        max_new_tokens=4,
        progress=progress,
    )
    return run_suite(model, processor, **{**settings, **changes})  # type: ignore[arg-type]


def test_a_killed_run_resumes_and_repeats_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path, stop_after=7)
    path = tmp_path / "rows.jsonl"
    assert len(path.read_text().splitlines()) == 7
    with path.open("a") as file:
        file.write('{"method": "cut off in the mid')
    rows = evaluate(tmp_path)
    on_disk, _ = read_rows(path, Row)
    assert len(on_disk) == 20
    assert len({(row.method, row.sample) for row in on_disk}) == 20
    assert sorted(map(repr, rows)) == sorted(map(repr, on_disk))
    fresh = evaluate(tmp_path / "fresh")
    assert sorted(map(repr, fresh)) == sorted(map(repr, rows))


def test_rows_tell_what_was_measured(tmp_path: Path) -> None:
    rows = evaluate(tmp_path)
    for row in rows:
        assert row.correct == (row.answer == row.gold)
        full = row.method.startswith("Full")
        assert row.kept_share == pytest.approx(1.0 if full else 0.2, abs=0.002)
        assert row.kv_bytes / row.kv_bytes_full == pytest.approx(row.kept_share, abs=0.002)
    assert {row.kind for row in rows} == {"code", "show", "owner", "which", "list"}


def test_a_resumed_run_says_so(tmp_path: Path) -> None:
    for _ in range(2):
        with open_results(tmp_path, {"seed": 1}, Row) as (_, append):
            pass
    assert "resumed" not in json.loads((tmp_path / "run.json").read_text())
    with open_results(tmp_path, {"seed": 1}, Row) as (_, append):
        append(ROW)
        append(replace(ROW, sample="1"))
    (resumed,) = json.loads((tmp_path / "run.json").read_text())["resumed"]
    assert resumed["rows_before"] == 0
    assert resumed.keys() >= {"git", "torch", "machine"}


def test_results_of_other_settings_are_not_mixed(tmp_path: Path) -> None:
    with open_results(tmp_path, {"seed": 1}, Row) as (_, append):
        append(ROW)
    with (
        pytest.raises(ConfigurationError, match="other settings \\(seed=1\\)"),
        open_results(tmp_path, {"seed": 2}, Row),
    ):
        pass
    with open_results(tmp_path, {"seed": 1}, Row) as (rows, _):
        assert rows == [ROW]
    about = json.loads((tmp_path / "run.json").read_text())
    assert about["seed"] == 1
    assert about.keys() >= {"git", "torch", "transformers", "machine", "started"}


def test_provenance_names_the_commit() -> None:
    git = provenance()["git"]
    assert git is None or len(git.removesuffix("+changes")) == 40


def test_summary_counts_kinds_equally() -> None:
    rows = [ROW, replace(ROW, sample="1", correct=False), replace(ROW, sample="2", kind="list", kv_bytes=20)]
    (line,) = summarise(rows)
    assert line.accuracy == {"code": 0.5, "list": 1.0}
    assert line.average == 0.75
    assert line.kv_share == pytest.approx(0.4)
    assert "| `a` | 50% | 40.0% | 50.0% | 100.0% | **75.0%** |  | 3 |" in markdown([line])


def many(label: str, right: Callable[[int, str], bool]) -> list[Row]:
    return [
        replace(ROW, method=label, label=label, sample=f"{n}-{kind}", kind=kind, correct=right(n, kind))
        for n in range(200)
        for kind in ("code", "list")
    ]


def test_intervals_are_paired() -> None:
    """Two methods that are wrong on the same documents differ by nothing, however uncertain each of them is."""
    half = many("half", lambda n, _: n % 2 == 0)
    full = many("full", lambda n, _: n % 2 == 0)
    lines = {line.label: line for line in summarise([*full, *half])}
    assert lines["half"].of_full == 1.0
    assert lines["half"].interval == (1.0, 1.0)
    other = many("half", lambda n, _: n % 2 == 1)
    low, high = (ratio_to(other, full) or (0, (0, 0)))[1]
    assert 0.7 < low < 0.85
    assert 1.18 < high < 1.4


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = random.Random(1)
    covered = 0
    for _ in range(60):
        full = many("full", lambda n, kind: True)
        own = many("own", lambda n, kind: rng.random() < 0.8)
        low, high = (ratio_to(own, full) or (0, (0, 0)))[1]
        covered += low <= 0.8 <= high
    assert covered >= 52


def test_ratios_where_little_is_known() -> None:
    """A full cache that is never right has no ratio; samples of one method alone count for neither."""
    wrong = many("full", lambda n, kind: False)
    (_, line) = summarise([*wrong, *many("own", lambda n, kind: True)])
    assert line.of_full is None
    full = [replace(ROW, label="full", method="full", sample=f"{n}-{k}", kind=k) for n in range(2) for k in "ab"]
    full[-1] = replace(full[-1], correct=False)
    own = [replace(row, label="own", method="own", correct=True) for row in full[:-1]]
    ratio = ratio_to(own, full)
    assert ratio is not None
    assert ratio[0] == 1.0
    assert ratio[1] == (1.0, 1.0)


def test_without_a_full_cache_there_is_no_ratio() -> None:
    (line,) = summarise(many("own", lambda n, kind: True))
    assert line.of_full is None
    assert line.interval is None


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    rows = [*many("full", lambda n, _: True), *many("own", lambda n, _: n < 90)]
    accuracy_over_bytes(summarise(rows), "a title", tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size[0] > 800
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 20


def test_the_suite_is_the_same_every_time() -> None:
    a, b = list(suite("digits")(2, 9, False)), list(suite("digits")(2, 9, False))
    assert [(s.id, s.prompt, s.gold) for s in a] == [(s.id, s.prompt, s.gold) for s in b]
    assert len({s.id for s in a}) == 10
    with pytest.raises(ConfigurationError, match="unknown suite 'x'; known: digits, long"):
        suite("x")
