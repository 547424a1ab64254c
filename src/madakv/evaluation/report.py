"""One report for every suite and benchmark, from rows alone: Markdown, CSV and pictures."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from madakv.errors import ConfigurationError, MissingExtraError
from madakv.evaluation.losses import LossLine, losses, losses_table
from madakv.evaluation.milebench.catalogue import CATEGORIES
from madakv.evaluation.paper import AVERAGE, PAPER_SCORER, TABLE_1_BUDGET
from madakv.evaluation.plots import accuracy_over_bytes
from madakv.evaluation.records import UNRECORDED, Row, difference, latest, read_runs
from madakv.evaluation.rowfiles import read_all
from madakv.evaluation.summary import Line, summarise
from madakv.evaluation.tables import (
    ablation,
    average_over_budgets,
    beside_the_paper,
    by_column,
    methods_by_dataset,
)

NOTE = (
    "Scores in percent; a dataset's score is the mean over its samples, the average is the mean over datasets, and a "
    "failed sample scores 0. KV bytes are those of live storage after the prefill over a full cache's. `of full` is "
    "the average over the full cache's on the samples that both have answered, with its 95 % interval by paired "
    "bootstrap. The first token of every answer comes out of the whole prompt, before anything is missing: answers "
    "of one letter hardly tell methods apart."
)
LOSS_NOTE = (
    "Mean over texts of the mean next-token loss on what follows the prompt, in nats; lower is better. `of full` is "
    "the plain ratio to the full cache's. The first of the tokens is told by the whole prompt."
)
_REASONS = 5
LETTERS = "Categories are " + ", ".join(f"{letter} {name}" for letter, name in CATEGORIES.items()) + "."


@dataclass(frozen=True)
class Results:
    """Rows that may be compared.

    Attributes:
        rows: one per model, method and sample.
        settings: that all of their runs agree in.
        made_by: the commits and versions that made them.
    """

    rows: list[Row]
    settings: dict[str, Any]
    made_by: list[str]


def read_results(folders: Sequence[Path]) -> Results:
    """The rows of one run or several.

    Raises:
        ConfigurationError: a folder without rows, or with rows of something else; runs that differ in their settings.
    """
    rows: list[Row] = []
    settings: dict[str, Any] | None = None
    made_by: dict[str, None] = {}
    for folder in folders:
        try:
            found, runs = read_all(folder, Row), list(read_runs(folder).values())
        except OSError as error:
            raise ConfigurationError(f"cannot read the results in {folder}: {error}") from error
        if not found:
            raise ConfigurationError(f"no results in {folder}: it holds no rows*.jsonl or rows*.jsonl.gz")
        for run in runs:
            settings = run["settings"] if settings is None else settings
            if differing := difference(run["settings"], settings):
                raise ConfigurationError(
                    f"{folder} was run with other settings ({differing}) than {folders[0]}: make a report of each"
                )
            for one in (run, *run.get("resumed", ())):
                made_by[_provenance(one)] = None
        rows += found
    return Results(_told_apart(latest(rows)), settings or {}, list(made_by))


def _told_apart(rows: Sequence[Row]) -> list[Row]:
    """Models of one name, as a folder before and after it was repaired, each named by its fingerprint too."""
    known: dict[str, set[str]] = {}
    for row in rows:
        known.setdefault(row.model, set()).add(row.model_fingerprint)
    return [
        replace(row, model=f"{row.model} [{row.model_fingerprint or UNRECORDED}]")
        if len(known[row.model]) > 1
        else row
        for row in rows
    ]


def _provenance(run: Mapping[str, Any]) -> str:
    git = run["git"] or "no checkout"
    fingerprint = f" (fingerprint {run['model_fingerprint']})" if "model_fingerprint" in run else ""
    return (
        f"{run.get('model', '')}{fingerprint}: madakv {run['madakv']} ({git}), torch {run['torch']}, transformers "
        f"{run['transformers']}, {run['machine']}"
    )


def write_report(results: Results, out: Path, title: str) -> tuple[str, list[str]]:
    """Write `report.md`, `report.csv`, `summary.json` and one picture per model and scorer into a folder.

    Next-token losses, where there are some, are in tables and a `losses.json` of their own.

    Args:
        results: from one run or several, see `read_results`.
        out: the folder; made if missing.
        title: what was measured.

    Returns:
        The tables of methods and datasets, and notes on what could not be written or answered.
    """
    out.mkdir(parents=True, exist_ok=True)
    lines = summarise(results.rows, counts_from=results.settings.get("counts_from", 0.0))
    lost = losses(results.rows)
    _write_json(lines, out / "summary.json")
    (out / "losses.json").unlink(missing_ok=True)
    if lost:
        _write_json(lost, out / "losses.json")
    for old in out.glob("accuracy*.png"):
        old.unlink()
    _write_csv(lines, lost, out / "report.csv")
    notes: list[str] = []
    pictures = {}
    many_models = len({line.model for line in lines}) > 1
    for (model, scorer), own in _by_model(lines).items():
        name = "accuracy" + (f"-{_plain(model)}" if many_models else "")
        name += f"-{scorer}" if len(scorers(lines)) > 1 else ""
        if all(line.average is None for line in own):
            continue
        try:
            accuracy_over_bytes(own, f"{title}: {_heading(model, scorer)}", out / f"{name}.png")
            pictures[model, scorer] = f"{name}.png"
        except MissingExtraError as error:
            notes = [f"no picture: {error}"]
    notes += _failures(results.rows, most=1)
    (out / "report.md").write_text(markdown(lines, lost, title, pictures, results), encoding="utf-8")
    tables = {_heading(*key): methods_by_dataset(own) for key, own in _by_model(lines).items()}
    tables |= {_loss_heading(model): losses_table(own) for model, own in _losses_by_model(lost).items()}
    if len(tables) == 1:
        return next(iter(tables.values())), notes
    return "\n".join(f"{heading}\n\n{table}" for heading, table in tables.items()), notes


def scorers(lines: Iterable[Line]) -> list[str]:
    """In the order of first appearance."""
    return list(dict.fromkeys(line.scorer for line in lines))


def markdown(
    lines: Sequence[Line],
    lost: Sequence[LossLine],
    title: str,
    pictures: Mapping[tuple[str, str], str],
    results: Results,
) -> str:
    """The whole report.

    Args:
        lines: of all models and scorers.
        lost: next-token losses of all models.
        title: what was measured.
        pictures: file names of the pictures, by model and scorer.
        results: what the lines were made of.
    """
    settings = ", ".join(f"{name} {value}" for name, value in results.settings.items())
    parts = [f"# {title}", NOTE, f"Settings: {settings}.", "\n".join(f"- {made}" for made in results.made_by)]
    if failed := _failures(results.rows, most=_REASONS):
        # As code, for a reason may hold anything.
        parts += ["## Failures", "\n".join(f"    {line}" for line in failed)]
    for (model, scorer), own in _by_model(lines).items():
        parts.append(f"## {_heading(model, scorer)}")
        parts += ["### Methods and datasets", methods_by_dataset(own)]
        beside = beside_the_paper(own) if scorer == PAPER_SCORER else ""
        if beside:
            parts += [f"### Beside the paper's Table 1, budget {TABLE_1_BUDGET:.0%}", beside]
        parts += ["### Average over budgets", average_over_budgets(own)]
        if (model, scorer) in pictures:
            parts.append(f"![average over KV bytes]({pictures[model, scorer]})")
        ablated = ablation(own)
        if ablated:
            parts += ["### MPA and HCC", ablated]
        parts += ["### Categories", by_column(own, [line.categories for line in own])]
        if any(line.groups != line.categories for line in own):
            parts += [LETTERS, "### Groups", by_column(own, [line.groups for line in own])]
        if any(len(line.levels) > 1 for line in own):
            parts += ["### Levels", by_column(own, [line.levels for line in own])]
    for model, lost_here in _losses_by_model(lost).items():
        parts += [f"## {_loss_heading(model)}", LOSS_NOTE, losses_table(lost_here)]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _failures(rows: Sequence[Row], most: int) -> list[str]:
    """For each model with failed answers how many these are, and up to so many reasons, the most frequent first."""
    told = []
    for model in dict.fromkeys(row.model for row in rows):
        own = [row.error for row in rows if row.model == model]
        reasons = Counter(error for error in own if error is not None)
        for reason, count in reasons.most_common(most):
            told.append(f"{model}: {reasons.total():,} of {len(own):,} answers failed, {count:,} by {reason}")
    return told


def _heading(model: str, scorer: str) -> str:
    return f"{model}, {scorer} scores"


def _loss_heading(model: str) -> str:
    return f"{model}, next-token loss"


def _losses_by_model(lost: Sequence[LossLine]) -> dict[str, list[LossLine]]:
    return {
        model: [line for line in lost if line.model == model] for model in dict.fromkeys(one.model for one in lost)
    }


def _write_json(lines: Sequence[Line] | Sequence[LossLine], path: Path) -> None:
    path.write_text(json.dumps([asdict(line) for line in lines], indent=1) + "\n", encoding="utf-8")


def _by_model(lines: Sequence[Line]) -> dict[tuple[str, str], list[Line]]:
    found: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        found.setdefault((line.model, line.scorer), []).append(line)
    return found


def _plain(name: str) -> str:
    """A name that can stand in a file's."""
    return "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in name).strip("-.")


def _write_csv(lines: Sequence[Line], lost: Sequence[LossLine], path: Path) -> None:
    """One line per cell of every table."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        more = ["of_full", "low", "high", "answers", "failed"]
        writer.writerow(["model", "scorer", "method", "budget", "kv_share", "column", "name", "score", *more])
        for line in lines:
            about = [line.model, line.scorer, line.label, line.budget, _decimal(line.kv_share)]
            columns = (
                ("dataset", line.datasets),
                ("group", line.groups),
                ("category", line.categories),
                ("level", line.levels),
            )
            for column, values in columns:
                for name, value in values.items():
                    writer.writerow([*about, column, name, f"{value:.6f}"])
            writer.writerow([*about, AVERAGE, "", _decimal(line.average), *_ratio(line), line.answers, line.failed])
        for one in lost:
            about = [one.model, "", one.label, one.budget, _decimal(one.kv_share)]
            writer.writerow([*about, "loss", "", _decimal(one.loss), *_ratio(one), one.texts, one.failed])


def _ratio(line: Line | LossLine) -> list[str]:
    return ["", "", ""] if line.interval is None else [_decimal(x) for x in (line.of_full, *line.interval)]


def _decimal(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"
