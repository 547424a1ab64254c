"""`madakv milebench`: the benchmark under eviction, and a look at its data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from madakv.cli.evaluate import RunOptions, evaluate
from madakv.errors import ConfigurationError
from madakv.evaluation.milebench.catalogue import chosen
from madakv.evaluation.milebench.check import check, markdown
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

    def samples(processor: Any) -> list[Sample]:
        return milebench_samples(
            data, wanted, processor, limit=limit, seed=seed, combined=combined, max_context=max_context
        )

    evaluate(
        options,
        samples,
        settings={"suite": "milebench", "combined": combined, "max_context": max_context},
        title="MileBench" + (", combined images" if combined else ""),
    )


def run_check(data: Path) -> None:
    """Run the command; see `madakv milebench check --help`."""
    print(markdown(check(data)), end="")
