"""The runner: complete, resumable, honest."""

from __future__ import annotations

import csv
import json
import random
import struct
import weakref
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import madakv
from madakv import ConfigurationError, InputError, UnsupportedModelError, UnsupportedOptionError, bundled
from madakv.answering import answer
from madakv.evaluation.documents.presentation import ONE_SIZE
from madakv.evaluation.plots import accuracy_over_bytes
from madakv.evaluation.records import Row, open_results
from madakv.evaluation.report import Results, read_results, write_report
from madakv.evaluation.rowfiles import read_rows
from madakv.evaluation.runner import run_samples
from madakv.evaluation.samples import Verdict
from madakv.evaluation.suites import suite
from madakv.evaluation.summary import ratio_to, summarise
from madakv.evaluation.tables import methods_by_dataset
from madakv.evaluation.workers import Shard
from madakv.hf.replay import ReadPrompt
from madakv.markdown import budget_text
from madakv.prompts import model_inputs
from madakv.provenance import provenance

ROW = Row(
    model="m",
    method="A(budget=0.5)",
    label="a",
    budget=0.5,
    dataset="code",
    sample="0",
    document="0",
    group="TN",
    level="500",
    images=3,
    gold="1 2",
    fingerprint="f",
    answer="1 2",
    scores={"exact": 1.0},
    prompt_tokens=300,
    kept_share=0.5,
    kv_bytes=50,
    kv_bytes_full=100,
)

WRONG = {"exact": 0.0}


def evaluate(out: Path, stop_after: int | None = None, total: int = 20, **changes: Any) -> list[Row]:
    model, processor = bundled.load()
    calls = 0

    def progress(done: int, expected: int) -> None:
        nonlocal calls
        assert expected == total
        calls += 1
        if stop_after is not None and calls > stop_after:
            raise KeyboardInterrupt

    settings = dict(
        samples=list(suite("digits")(2, 500, ONE_SIZE)),
        settings={"suite": "digits", "seed": 500},
        model_name="bundled",
        methods=[madakv.Full(), madakv.MadaKV(budget=0.2)],
        out=out,
        max_new_tokens=4,
        progress=progress,
    )
    return run_samples(model, processor, **{**settings, **changes})  # type: ignore[arg-type]


def test_a_killed_run_resumes_and_repeats_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path, stop_after=7)
    path = tmp_path / "rows.jsonl"
    assert len(path.read_text().splitlines()) == 7
    with path.open("a") as file:
        file.write('{"method": "cut off in the mid')
    rows = evaluate(tmp_path)
    on_disk = read_rows(path, Row)
    assert len(on_disk) == 20
    assert len({row.key for row in on_disk}) == 20
    assert sorted(map(repr, rows)) == sorted(map(repr, on_disk))
    fresh = evaluate(tmp_path / "fresh")
    assert untimed(fresh) == untimed(rows)


def untimed(rows: list[Row]) -> set[str]:
    return {repr(replace(row, seconds=0.0)) for row in rows}


def test_rows_tell_what_was_measured(tmp_path: Path) -> None:
    rows = evaluate(tmp_path)
    for row in rows:
        assert row.scores == {"exact": float(row.answer == row.gold)}
        full = row.method.startswith("Full")
        wanted = 1.0 if full else 0.2
        assert wanted - 1 / row.prompt_tokens < row.kept_share <= wanted
        assert row.kv_bytes / row.kv_bytes_full == pytest.approx(row.kept_share, abs=0.002)
    assert {row.dataset for row in rows} == {"code", "show", "owner", "which", "list"}


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
    assert about["settings"] == {"seed": 1}
    assert about.keys() >= {"git", "torch", "transformers", "machine", "started"}


def test_provenance_names_the_commit() -> None:
    git = provenance()["git"]
    assert git is None or len(git.removesuffix("+changes")) == 40


def test_summary_counts_kinds_equally() -> None:
    rows = [
        ROW,
        replace(ROW, sample="1", scores=WRONG, level="1000"),
        replace(ROW, sample="2", dataset="list", kv_bytes=20),
    ]
    (line,) = summarise(rows)
    assert line.datasets == {"code": 0.5, "list": 1.0}
    assert line.groups == {"TN": 0.75}
    assert line.levels == {"500": 1.0, "1000": 0.0}
    assert line.average == 0.75
    assert line.kv_share == pytest.approx(0.4)
    assert "| `a` | 50% | 40.0% | 50.0% | 100.0% | **75.0%** |  | 3 |" in methods_by_dataset([line])


def many(label: str, right: Callable[[int, str], bool]) -> list[Row]:
    return [
        replace(
            ROW,
            method=label,
            label=label,
            sample=str(n),
            document=str(n),
            dataset=kind,
            scores={"exact": float(right(n, kind))},
        )
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
    low, high = (ratio_to(other, full, "exact") or (0, (0, 0)))[1]
    assert 0.7 < low < 0.85
    assert 1.18 < high < 1.4


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = random.Random(1)
    covered = 0
    for _ in range(60):
        full = many("full", lambda n, kind: True)
        own = many("own", lambda n, kind: rng.random() < 0.8)
        low, high = (ratio_to(own, full, "exact") or (0, (0, 0)))[1]
        covered += low <= 0.8 <= high
    assert covered >= 52


def test_ratios_where_little_is_known() -> None:
    """A full cache that is never right has no ratio; samples of one method alone count for neither."""
    wrong = many("full", lambda n, kind: False)
    (_, line) = summarise([*wrong, *many("own", lambda n, kind: True)])
    assert line.of_full is None
    named = dict(label="full", method="full")
    full = [replace(ROW, **named, sample=str(n), document=str(n), dataset=k) for n in range(2) for k in "ab"]
    full[-1] = replace(full[-1], scores=WRONG)
    own = [replace(row, label="own", method="own", scores={"exact": 1.0}) for row in full[:-1]]
    ratio = ratio_to(own, full, "exact")
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
    a, b = list(suite("digits")(2, 9, ONE_SIZE)), list(suite("digits")(2, 9, ONE_SIZE))
    assert [(s.id, s.dataset, s.prompt, s.gold) for s in a] == [(s.id, s.dataset, s.prompt, s.gold) for s in b]
    assert len({(s.id, s.dataset) for s in a}) == 10
    with pytest.raises(ConfigurationError, match="unknown suite 'x'; known: digits, long"):
        suite("x")


def test_a_failed_sample_is_recorded_and_can_be_retried(tmp_path: Path) -> None:
    """One picture is broken, one method runs out of memory: all else is answered."""
    samples = list(suite("digits")(1, 500, ONE_SIZE))[:3]

    def broken() -> list[Image.Image]:
        raise InputError("the image file is broken: x.png")

    def exhausted(self: object, view: object) -> object:
        raise torch.OutOfMemoryError("no memory left")

    def evaluate_three(**changes: Any) -> list[Row]:
        return evaluate(tmp_path, samples=samples, **changes)

    whole = samples[1]
    samples[1] = replace(whole, pictures=broken)
    greedy = type("Greedy", (madakv.MadaKV,), {"worth": exhausted, "name": "greedy"})
    rows = evaluate_three(methods=[madakv.Full(), greedy(budget=0.5)], total=6)
    errors = {(row.label, row.dataset): row.error for row in rows}
    assert errors["full", whole.dataset] == "InputError: the image file is broken: x.png"
    assert [errors["full", sample.dataset] for sample in (samples[0], samples[2])] == [None, None]
    assert all(
        e and "memory" in e for (label, dataset), e in errors.items() if label != "full" and dataset != whole.dataset
    )
    assert {row.scores["exact"] for row in rows if row.error} == {0.0}
    samples[1] = whole
    assert [row.error is None for row in evaluate_three(methods=[madakv.Full()], total=3)] == [True, False, True]
    again = evaluate_three(methods=[madakv.Full()], total=3, retry_failed=True)
    assert [row.error for row in again] == [None] * 3
    assert len(read_rows(tmp_path / "rows.jsonl", Row)) == 7
    (line, _) = summarise(read_results([tmp_path]).rows)
    assert (line.label, line.failed, line.answers) == ("full", 0, 3)


def test_what_no_sample_can_do_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise UnsupportedModelError("not this one")

    monkeypatch.setattr(ReadPrompt, "of", refuse)
    with pytest.raises(UnsupportedOptionError, match="draft"):
        evaluate(tmp_path, methods=[madakv.MadaKV(budget=0.5, draft=2)], total=10)


def test_shards_share_the_samples_and_the_folder(tmp_path: Path) -> None:
    shards = [Shard.parse("1/2"), Shard.parse("2/2").split(0, 2), Shard.parse("2/2").split(1, 2)]
    found = [evaluate(tmp_path, shard=shard, total=total) for shard, total in zip(shards, (10, 6, 4), strict=True)]
    assert [len(rows) for rows in found] == [10, 6, 4]
    assert sorted(path.name for path in tmp_path.glob("rows*")) == [
        "rows-1-of-2.jsonl.gz",
        "rows-2-of-4.jsonl.gz",
        "rows-4-of-4.jsonl.gz",
    ]
    together = read_results([tmp_path]).rows
    assert len({row.key for row in together}) == len(together) == 20
    assert untimed(together) == untimed(evaluate(tmp_path / "alone"))
    written = {path: path.read_bytes() for path in tmp_path.glob("rows*")}
    assert untimed(evaluate(tmp_path)) == untimed(together)
    assert all(path.read_bytes() == content for path, content in written.items())


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "1/0"])
def test_impossible_shards_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="i/n"):
        Shard.parse(text)


def test_a_folder_holds_several_models(tmp_path: Path) -> None:
    """The same answers under two names, as `--model` was given twice."""
    evaluate(tmp_path)
    evaluate(tmp_path, model_name="other")
    table, notes = write_report(read_results([tmp_path]), tmp_path, "two models")
    assert not notes
    assert table.count("| `full` |") == 2
    assert {path.name for path in tmp_path.glob("*.png")} == {"accuracy-bundled.png", "accuracy-other.png"}
    with pytest.raises(ConfigurationError, match="no results in"):
        read_results([tmp_path / "elsewhere"])


def test_every_cell_of_a_report_follows_from_the_rows(tmp_path: Path) -> None:
    rng = random.Random(3)
    rows = [
        replace(
            ROW,
            model=model,
            method=f"{label}({budget})",
            label=label,
            budget=1.0 if label == "full" else budget,
            dataset=dataset,
            group=group,
            sample=str(n),
            document=f"{dataset} {n}",
            level=("few", "many")[n % 2],
            scores={"official": rng.random(), "strict": rng.random()},
        )
        for model in ("one", "two")
        for label, budget in (("full", 1.0), ("snapkv", 0.2), ("snapkv", 0.05), ("mpa", 0.2), ("madakv-paper", 0.2))
        for dataset, group in (("TN", "N-1"), ("IEdit", "S-3"), ("STD", "S-3"))
        for n in range(5 if dataset == "TN" else 8)
    ]
    write_report(Results(rows, {"suite": "s"}, ["m: madakv"]), tmp_path, "a title")
    with (tmp_path / "report.csv").open() as file:
        cells = list(csv.DictReader(file))
    assert len(cells) == 2 * 2 * 5 * (3 + 2 + 2 + 2 + 1)

    def of(cell: dict[str, str]) -> list[Row]:
        asked = (cell["model"], cell["method"], float(cell["budget"]))
        return [row for row in rows if (row.model, row.label, float(row.budget)) == asked]

    for cell in cells:
        per_dataset: dict[str, list[float]] = {}
        for row in of(cell):
            if cell["column"] == "average" or getattr(row, cell["column"]) == cell["name"]:
                per_dataset.setdefault(row.dataset, []).append(row.scores[cell["scorer"]])
        by_hand = sum(sum(scores) / len(scores) for scores in per_dataset.values()) / len(per_dataset)
        assert float(cell["score"]) == pytest.approx(by_hand, abs=1e-6)
    report = (tmp_path / "report.md").read_text()
    for (model, scorer, method, budget), own in groupby(
        cells, key=lambda cell: (cell["model"], cell["scorer"], cell["method"], float(cell["budget"]))
    ):
        section = report.split(f"## {model}, {scorer} scores\n")[1].split("\n## ")[0]
        scores = [f"{float(cell['score']):.1%}" for cell in own if cell["column"] in ("dataset", "average")]
        row = f"| `{method}` | {budget:.0%} | 50.0% | {' | '.join(scores[:-1])} | **{scores[-1]}** |"
        assert row in section
    assert "| `snapkv`, paper (LLaVA-v1.5-7B) | 3.27% | 6.03% | 14.82% | 26.43% |" in report
    assert "| `mpa` | yes | no | 20% |" in report
    assert "| `mpa`, paper | yes | no | 20% | 6.58% | 5.72% |  |  |" in report
    assert len(list(tmp_path.glob("accuracy-*-official.png"))) == 2


def test_intervals_of_datasets_that_share_no_document() -> None:
    """Documents are drawn within their dataset: where each is always right or always wrong nothing varies."""
    full = [replace(ROW, sample=str(n), document=f"{d} {n}", dataset=d) for d in ("a", "b", "c") for n in range(3)]
    own = [replace(row, scores={"exact": float(row.dataset != "c")}) for row in full]
    ratio = ratio_to(own, full, "exact")
    assert ratio is not None
    assert ratio == (pytest.approx(2 / 3), (pytest.approx(2 / 3), pytest.approx(2 / 3)))


def test_answers_to_other_data_are_refused(tmp_path: Path) -> None:
    """The same ids, another question: as after a look at the sample data in the folder of the real run."""
    samples = list(suite("digits")(1, 500, ONE_SIZE))[:2]
    evaluate(tmp_path, samples=samples, methods=[madakv.Full()], total=2)
    samples[1] = replace(samples[1], gold="something else")
    with pytest.raises(ConfigurationError, match=f"other data: sample {samples[1].id} of {samples[1].dataset}"):
        evaluate(tmp_path, samples=samples, methods=[madakv.MadaKV()], total=2)


def test_a_second_run_does_not_write_the_same_rows(tmp_path: Path) -> None:
    with (
        open_results(tmp_path, {"seed": 1}, Row) as (_, append),
        pytest.raises(ConfigurationError, match="another run is writing"),
        open_results(tmp_path, {"seed": 1}, Row),
    ):
        pass
    with open_results(tmp_path, {"seed": 1}, Row) as (_, append):
        append(ROW)


def test_reports_of_different_settings_are_refused(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        with open_results(tmp_path / name, {"seed": seed}, Row) as (_, append):
            append(replace(ROW, sample=name))
    both = read_results([tmp_path / "a", tmp_path / "b"])
    assert len(both.rows) == 2
    assert both.settings == {"seed": 1}
    assert len(both.made_by) == 1
    with pytest.raises(ConfigurationError, match="other settings \\(seed=2\\)"):
        read_results([tmp_path / "a", tmp_path / "c"])


def test_what_failed_is_in_no_ratio() -> None:
    """A full cache that runs out of memory must not make others look better than it."""
    full = many("full", lambda n, kind: True)
    failed = {"error": "OutOfMemoryError: no memory left", "scores": WRONG}
    half = [replace(row, **failed) if int(row.sample) < 100 else row for row in full]
    (line, other) = summarise([*half, *many("own", lambda n, kind: n % 2 == 0)])
    assert (line.failed, line.answers) == (200, 400)
    assert line.average == 0.5
    assert other.of_full == 0.5
    assert other.paired == 200
    table = methods_by_dataset([line, other])
    assert "on 200 | 400 | 0 |" in table
    assert "not about the same samples" not in table
    (fewer,) = summarise(many("own", lambda n, kind: True)[:10])
    assert "not about the same samples" in methods_by_dataset([line, fewer])


def test_odd_text_and_odd_errors_do_not_end_a_run(tmp_path: Path) -> None:
    samples = list(suite("digits")(1, 500, ONE_SIZE))[:3]

    def corrupt() -> list[Image.Image]:
        raise struct.error("unpack requires a buffer of 2 bytes")

    def confused(answer: str) -> Verdict:
        raise KeyError(answer)

    samples[0] = replace(samples[0], gold="caf\ud83d")
    samples[1] = replace(samples[1], pictures=corrupt)
    samples[2] = replace(samples[2], judge=confused)
    rows = evaluate(tmp_path, samples=samples, methods=[madakv.Full()], total=3)
    assert [bool(row.error) for row in rows] == [False, True, False]
    assert rows[2].answer
    assert str(rows[2].fault).startswith("KeyError")
    assert read_results([tmp_path]).rows == rows


def test_a_prompt_is_gone_before_the_next_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[ReadPrompt]] = []
    seen = []
    read = ReadPrompt.of

    def watched(*arguments: Any) -> ReadPrompt:
        seen.append(sum(ref() is not None for ref in alive))
        prompt = read(*arguments)
        alive.append(weakref.ref(prompt))
        return prompt

    monkeypatch.setattr(ReadPrompt, "of", watched)
    evaluate(tmp_path)
    assert seen == [0] * 10


def test_penalties_count_as_in_generate(tmp_path: Path) -> None:
    model, processor = bundled.load()
    (sample,) = list(suite("digits")(1, 500, ONE_SIZE))[:1]
    before = model.generation_config.repetition_penalty
    model.generation_config.repetition_penalty = 30.0
    try:
        (row,) = run_samples(
            model,
            processor,
            samples=[sample],
            settings={},
            model_name="bundled",
            methods=[madakv.Full()],
            out=tmp_path,
            max_new_tokens=6,
            progress=lambda done, total: None,
        )
        inputs = model_inputs(processor, sample.prompt, sample.pictures())
        plain = answer(model, processor, inputs, None, max_new_tokens=6)
    finally:
        model.generation_config.repetition_penalty = before
    assert row.answer == plain.text != sample.gold


@pytest.mark.parametrize(
    ("budget", "text"), [(0.2, "20%"), (0.125, "12.5%"), (0.12, "12%"), (0.005, "0.5%"), (64, "64")]
)
def test_budgets_are_told_apart(budget: float | int, text: str) -> None:
    assert budget_text(budget) == text
