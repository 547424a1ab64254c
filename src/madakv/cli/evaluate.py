"""`madakv eval`: accuracy of methods at budgets on a suite, resumable, with a table at the end."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from madakv.cli.generate import parse_budget, quiet_transformers
from madakv.errors import MissingExtraError
from madakv.evaluation.plots import accuracy_over_bytes
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
    name = model or "bundled"
    console = Console(stderr=True)
    columns = (TextColumn("answers"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("answers", total=None)
        rows = run_suite(
            loaded,
            processor,
            suite_name=suite_name,
            model_name=name + ("" if dtype == "auto" else f" ({dtype})"),
            methods=chosen,
            samples=samples,
            seed=seed,
            out=out,
            max_new_tokens=max_new_tokens,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    lines = summarise(rows)
    table = markdown(lines)
    (out / "table.md").write_text(table)
    print(table, end="")
    try:
        accuracy_over_bytes(lines, f"{name}, {suite_name}, {samples} documents", out / "accuracy.png")
    except MissingExtraError as error:
        console.print(f"no picture: {error}", highlight=False)


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
