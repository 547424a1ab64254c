"""`madakv eval` and `madakv distance`: methods at budgets on a suite, resumable, with tables at the end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from madakv.cli.generate import parse_budget, quiet_transformers
from madakv.errors import MissingExtraError
from madakv.evaluation.distances import distance_table, run_distances
from madakv.evaluation.plots import accuracy_over_bytes
from madakv.evaluation.runner import Progress as Report
from madakv.evaluation.runner import run_suite
from madakv.evaluation.suites import suite
from madakv.evaluation.summary import markdown, summarise
from madakv.loading import load
from madakv.methods import Method, from_text


def run_eval(
    *,
    suite_name: str,
    model: str | None,
    methods: str,
    budgets: str,
    samples: int,
    seed: int,
    max_new_tokens: int,
    out: Path,
    device: str | None,
    dtype: str,
) -> None:
    """Run the command; see `madakv eval --help`."""
    quiet_transformers()
    suite(suite_name)
    chosen = expand(methods, budgets)
    loaded, processor = load(model, device=device, dtype=dtype)
    with _bar("answers") as report:
        rows = run_suite(
            loaded,
            processor,
            suite_name=suite_name,
            model_name=_named(model, dtype),
            methods=chosen,
            samples=samples,
            seed=seed,
            out=out,
            max_new_tokens=max_new_tokens,
            progress=report,
        )
    lines = summarise(rows)
    (out / "summary.json").write_text(json.dumps([asdict(line) for line in lines], indent=1) + "\n")
    _show(markdown(lines), out)
    try:
        accuracy_over_bytes(lines, f"{_named(model, dtype)}, {suite_name}, {samples} documents", out / "accuracy.png")
    except MissingExtraError as error:
        Console(stderr=True).print(f"no picture: {error}", highlight=False)


def run_distance(
    *,
    suite_name: str,
    model: str | None,
    methods: str,
    budgets: str,
    samples: int,
    seed: int,
    out: Path,
    device: str | None,
    dtype: str,
) -> None:
    """Run the command; see `madakv distance --help`."""
    quiet_transformers()
    suite(suite_name)
    chosen = expand(methods, budgets)
    loaded, processor = load(model, device=device, dtype=dtype)
    with _bar("prompts") as report:
        rows = run_distances(
            loaded,
            processor,
            suite_name=suite_name,
            model_name=_named(model, dtype),
            methods=chosen,
            samples=samples,
            seed=seed,
            out=out,
            progress=report,
        )
    _show(distance_table(rows), out)


def _named(model: str | None, dtype: str) -> str:
    return (model or "bundled") + ("" if dtype == "auto" else f" ({dtype})")


def _show(table: str, out: Path) -> None:
    (out / "table.md").write_text(table)
    print(table, end="")


@contextmanager
def _bar(what: str) -> Iterator[Report]:
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def expand(methods: str, budgets: str) -> list[Method]:
    """Every method at every budget; a method that takes only one budget appears once.

    Args:
        methods: see `madakv.methods.from_text`, separated by commas.
        budgets: see `parse_budget`, separated by commas.
    """
    expanded = []
    for name in methods.split(","):
        if name.strip() == "full":
            expanded.append(from_text(name))
            continue
        expanded += [from_text(name, budget=parse_budget(budget)) for budget in budgets.split(",")]
    return list(dict.fromkeys(expanded))
