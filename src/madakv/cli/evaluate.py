"""`madakv eval`, `madakv distance` and `madakv report`: methods at budgets, resumable, with a report at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from madakv.cli.generate import parse_budget, quiet_transformers
from madakv.cli.output import plain_console, visible
from madakv.cli.progress import bar
from madakv.evaluation.distances import distance_table, run_distances
from madakv.evaluation.documents.presentation import presentation_for
from madakv.evaluation.report import read_results, write_report
from madakv.evaluation.runner import run_samples
from madakv.evaluation.samples import Sample
from madakv.evaluation.suites import suite, suite_settings
from madakv.evaluation.summary import require_numpy
from madakv.evaluation.workers import Shard, Worker
from madakv.fingerprint import of_source
from madakv.linears import fast_linears
from madakv.loading import load, source_of
from madakv.methods import Method, from_text


@dataclass(frozen=True)
class RunOptions:
    """What `madakv eval` and `madakv milebench` have in common; see their help."""

    model: str | None
    methods: str
    budgets: str
    max_new_tokens: int
    out: Path
    shard: str
    retry_failed: bool
    device: str | None
    dtype: str
    fast: bool = False


def run_eval(options: RunOptions, *, suite_name: str, samples: int, seed: int) -> None:
    """Run the command; see `madakv eval --help`."""
    maker = suite(suite_name)
    evaluate(
        options,
        lambda processor: list(maker(samples, seed, presentation_for(processor))),
        settings={"suite": suite_name, "seed": seed} | suite_settings(suite_name),
        title=f"{suite_name}, {samples} documents",
    )


def evaluate(
    options: RunOptions,
    samples: Callable[[Any], Sequence[Sample]],
    *,
    settings: dict[str, Any],
    title: str,
) -> None:
    """Answer samples with methods, in as many processes as torchrun has started, and report once.

    Exit code 1 if not one answer could be made.

    Args:
        options: of the command.
        samples: makes them for a processor.
        settings: what must agree for rows of one folder to be comparable.
        title: of the report.
    """
    quiet_transformers()
    require_numpy()
    worker = Worker.of_environment()
    shard = Shard.parse(options.shard).split(worker.rank, worker.count)
    chosen = expand(options.methods, options.budgets)
    with worker.together():
        model, processor = load(options.model, device=worker.device(options.device), dtype=options.dtype)
        fast = fast_linears(model) if options.fast else nullcontext()
        with fast, bar("answers", shown=worker.leads) as report:
            rows = run_samples(
                model,
                processor,
                samples=samples(processor),
                settings=settings | ({"fast_linears": True} if options.fast else {}),
                model_name=_named(options.model, options.dtype),
                methods=chosen,
                out=options.out,
                max_new_tokens=options.max_new_tokens,
                progress=report,
                fingerprint=of_source(source_of(options.model)),
                shard=shard,
                retry_failed=options.retry_failed,
            )
    if worker.leads:
        run_report([options.out], options.out, title)
        if rows and all(row.error for row in rows):
            raise typer.Exit(1)


def run_report(folders: Sequence[Path], out: Path, title: str) -> None:
    """Write the report of one folder of rows or several, and print its first table."""
    table, notes = write_report(read_results(folders), out, title)
    print(table, end="")
    for note in notes:
        plain_console(stderr=True).print(visible(note), soft_wrap=True)


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
    with bar("prompts") as report:
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
            fingerprint=of_source(source_of(model)),
        )
    table = distance_table(rows)
    (out / "table.md").write_text(table)
    print(table, end="")


def _named(model: str | None, dtype: str) -> str:
    return (model or "bundled") + ("" if dtype == "auto" else f" ({dtype})")


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
