"""One report for every suite and benchmark, from rows alone: Markdown, CSV and pictures."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from madakv.errors import ConfigurationError, MissingExtraError
from madakv.evaluation.paper import AVERAGE, HALVES, TABLE_1, TABLE_1_BUDGET, TABLE_3
from madakv.evaluation.plots import accuracy_over_bytes
from madakv.evaluation.records import Row, latest, read_all
from madakv.evaluation.summary import Line, as_percent, budget_text, markdown_table, summarise

NOTE = (
    "Scores in percent; a dataset's score is the mean over its samples, the average is the mean over datasets, and a "
    "failed sample scores 0. KV bytes are those of live storage after the prefill over a full cache's. `of full` is "
    "the average over the full cache's on the same samples, with its 95 % interval by paired bootstrap."
)


def read_rows_of(folders: Sequence[Path]) -> list[Row]:
    """The rows of one run or several, one per model, method and sample.

    Raises:
        ConfigurationError: a folder without rows, or with rows of something else.
    """
    rows: list[Row] = []
    for folder in folders:
        try:
            found = read_all(folder, Row)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigurationError(f"cannot read the results in {folder}: {error}") from error
        if not found:
            raise ConfigurationError(f"no results in {folder}: it holds no rows*.jsonl with whole lines")
        rows += found
    return latest(rows)


def write_report(rows: Sequence[Row], out: Path, title: str) -> tuple[str, list[str]]:
    """Write `report.md`, `report.csv`, `summary.json` and one picture per model and scorer into a folder.

    Args:
        rows: from one run or several, see `read_rows_of`.
        out: the folder; made if missing.
        title: what was measured.

    Returns:
        The tables of methods and datasets, and notes on what could not be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    lines = summarise(rows)
    (out / "summary.json").write_text(json.dumps([asdict(line) for line in lines], indent=1) + "\n")
    _write_csv(lines, out / "report.csv")
    notes: list[str] = []
    pictures = {}
    many_models = len({line.model for line in lines}) > 1
    for (model, scorer), own in _by_model(lines).items():
        name = "accuracy" + (f"-{_plain(model)}" if many_models else "")
        name += f"-{scorer}" if len(scorers(lines)) > 1 else ""
        try:
            accuracy_over_bytes(own, f"{model}, {title}", out / f"{name}.png")
            pictures[model, scorer] = f"{name}.png"
        except MissingExtraError as error:
            notes = [f"no picture: {error}"]
    (out / "report.md").write_text(markdown(lines, title, pictures))
    tables = {_heading(*key): methods_by_dataset(own) for key, own in _by_model(lines).items()}
    if len(tables) == 1:
        return next(iter(tables.values())), notes
    return "\n".join(f"{heading}\n\n{table}" for heading, table in tables.items()), notes


def scorers(lines: Iterable[Line]) -> list[str]:
    """In the order of first appearance."""
    return list(dict.fromkeys(line.scorer for line in lines))


def markdown(lines: Sequence[Line], title: str, pictures: Mapping[tuple[str, str], str]) -> str:
    """The whole report.

    Args:
        lines: of all models and scorers.
        title: what was measured.
        pictures: file names of the pictures, by model and scorer.
    """
    parts = [f"# {title}", NOTE]
    for (model, scorer), own in _by_model(lines).items():
        parts.append(f"## {_heading(model, scorer)}")
        parts += ["### Methods and datasets", methods_by_dataset(own)]
        beside = beside_the_paper(own)
        if beside:
            parts += [f"### Beside the paper's Table 1, budget {TABLE_1_BUDGET:.0%}", beside]
        parts += ["### Average over budgets", average_over_budgets(own)]
        if (model, scorer) in pictures:
            parts.append(f"![average over KV bytes]({pictures[model, scorer]})")
        ablated = ablation(own)
        if ablated:
            parts += ["### MPA and HCC", ablated]
        parts += ["### Categories", _by_column(own, [line.categories for line in own])]
        if any(line.groups != line.categories for line in own):
            parts += ["### Groups", _by_column(own, [line.groups for line in own])]
        if any(len(line.levels) > 1 for line in own):
            parts += ["### Levels", _by_column(own, [line.levels for line in own])]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def methods_by_dataset(lines: Sequence[Line]) -> str:
    """A line per method and budget, a column per dataset; lines of one model and scorer."""
    columns = list(dict.fromkeys(name for line in lines for name in line.datasets))
    failures = any(line.failed for line in lines)
    head = ["method", "budget", "KV bytes", *columns, AVERAGE, "of full (95 %)", "answers"]
    body = [
        [
            f"`{line.label}`",
            budget_text(line.budget),
            f"{line.kv_share:.1%}",
            *as_percent(line.datasets, columns),
            f"**{line.average:.1%}**",
            _ratio(line),
            f"{line.answers:,}",
            *([f"{line.failed:,}"] if failures else []),
        ]
        for line in lines
    ]
    return markdown_table([*head, *(["failed"] if failures else [])], body)


def average_over_budgets(lines: Sequence[Line]) -> str:
    """A line per method, a column per budget; the full cache's average stands in every column."""
    budgets = list(dict.fromkeys(line.budget for line in lines if line.label != "full"))
    whole = [line.average for line in lines if line.label == "full"]
    body = []
    for label in dict.fromkeys(line.label for line in lines):
        found = {line.budget: line.average for line in lines if line.label == label}
        values = [whole[0] if label == "full" else found.get(budget) for budget in budgets]
        body.append([f"`{label}`", *("" if value is None else f"{value:.1%}" for value in values)])
    return markdown_table(["method", *(budget_text(budget) for budget in budgets)], body)


def beside_the_paper(lines: Sequence[Line]) -> str:
    """Our figures over the paper's, for the methods and datasets that both have; empty if there are none."""
    at = {line.label: line for line in lines if line.label == "full" or line.budget == TABLE_1_BUDGET}
    columns = [name for name in TABLE_1["full"] if any(name in line.datasets for line in lines)]
    labels = [label for label in TABLE_1 if label in at] if columns else []
    body = []
    for label in labels:
        here = at[label]
        body.append([f"`{label}`, here", *as_percent(here.datasets, columns), f"{here.average:.1%}"])
        theirs = [f"{TABLE_1[label][name]:.2f}%" for name in [*columns, AVERAGE]]
        body.append([f"`{label}`, paper (LLaVA-v1.5-7B)", *theirs])
    return markdown_table(["method", *columns, AVERAGE], body) if body else ""


def ablation(lines: Sequence[Line]) -> str:
    """MPA and HCC alone and together, at every budget, and what the paper has; empty without `mpa` or `hcc`."""
    own = [line for line in lines if line.label in HALVES]
    if not {"mpa", "hcc"} & {line.label for line in own}:
        return ""
    columns = list(dict.fromkeys(name for line in own for name in line.datasets))
    body = [
        [
            f"`{line.label}`",
            *HALVES[line.label],
            budget_text(line.budget),
            *as_percent(line.datasets, columns),
            f"**{line.average:.1%}**",
        ]
        for line in sorted(own, key=lambda line: (-line.budget, list(HALVES).index(line.label)))
    ]
    paper = next(iter(TABLE_3.values()))
    if set(paper) & set(columns):
        for label, figures in TABLE_3.items():
            cells = [f"{figures[name]:.2f}%" if name in figures else "" for name in columns]
            body.append([f"`{label}`, paper", *HALVES[label], budget_text(TABLE_1_BUDGET), *cells, ""])
    return markdown_table(["method", "MPA", "HCC", "budget", *columns, AVERAGE], body)


def _by_column(lines: Sequence[Line], values: Sequence[Mapping[str, float]]) -> str:
    columns = list(dict.fromkeys(name for own in values for name in own))
    body = [
        [f"`{line.label}`", budget_text(line.budget), *as_percent(own, columns)]
        for line, own in zip(lines, values, strict=True)
    ]
    return markdown_table(["method", "budget", *columns], body)


def _heading(model: str, scorer: str) -> str:
    return f"{model}, {scorer} scores"


def _ratio(line: Line) -> str:
    if line.of_full is None or line.interval is None:
        return ""
    low, high = line.interval
    return f"{line.of_full:.1%} ({low:.1%} to {high:.1%})"


def _by_model(lines: Sequence[Line]) -> dict[tuple[str, str], list[Line]]:
    found: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        found.setdefault((line.model, line.scorer), []).append(line)
    return found


def _plain(name: str) -> str:
    """A name that can stand in a file's."""
    return "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in name).strip("-.")


def _write_csv(lines: Sequence[Line], path: Path) -> None:
    """One line per cell of every table."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "scorer", "method", "budget", "kv_share", "column", "name", "score"])
        for line in lines:
            about = [line.model, line.scorer, line.label, line.budget, f"{line.kv_share:.6f}"]
            columns = (
                ("dataset", line.datasets),
                ("group", line.groups),
                ("category", line.categories),
                ("level", line.levels),
            )
            for column, values in columns:
                for name, value in values.items():
                    writer.writerow([*about, column, name, f"{value:.6f}"])
            writer.writerow([*about, AVERAGE, "", f"{line.average:.6f}"])
