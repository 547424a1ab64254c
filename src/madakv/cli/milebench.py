"""`madakv milebench`: the benchmark under eviction, and a look at its data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import typer

from madakv.cli.evaluate import RunOptions, evaluate
from madakv.errors import ConfigurationError
from madakv.evaluation.milebench.catalogue import chosen
from madakv.evaluation.milebench.check import COUNT, check, markdown
from madakv.evaluation.milebench.data import read_annotations
from madakv.evaluation.milebench.scores.rouge import require_rouge
from madakv.evaluation.milebench.suite import milebench_samples
from madakv.evaluation.samples import Sample

T = TypeVar("T")


def required(name: str, value: T | None) -> T:
    """An option that the command needs and its subcommands do not.

    Raises:
        ConfigurationError: it was not given.
    """
    if value is None:
        raise ConfigurationError(f"{name} is missing; see --help")
    return value


def run_milebench(
    options: RunOptions,
    *,
    data: Path,
    datasets: str,
    limit: int | None,
    seed: int,
    combined: bool,
    max_context: int | None,
) -> None:
    """Run the command; see `madakv milebench --help`."""
    wanted = chosen(datasets)
    # Before a model is loaded for minutes.
    found = [read_annotations(data, dataset, combined=combined) for dataset in wanted]
    if any(dataset.metric == "rouge_l" for dataset in wanted):
        require_rouge()

    def samples(processor: Any) -> list[Sample]:
        return milebench_samples(found, processor, limit=limit, seed=seed, combined=combined, max_context=max_context)

    evaluate(
        options,
        samples,
        settings={"suite": "milebench", "combined": combined, "max_context": max_context},
        title="MileBench" + (", combined images" if combined else ""),
    )


def run_check(data: Path) -> None:
    """Run the command; see `madakv milebench check --help`. Exit code 1 if anything is broken or missing."""
    reports = check(data)
    print(markdown(reports), end="")
    if any(problem.kind != COUNT for report in reports for problem in report.problems):
        raise typer.Exit(1)
