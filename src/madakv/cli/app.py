"""Commands and their options; what they do lives elsewhere, and is imported only when it is run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from madakv.cli.bench import bench_app
from madakv.cli.errors import one_line_errors

app = typer.Typer(
    help="Evict a multimodal LLM's KV cache while it reads the prompt, per attention head and per modality.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ModelOption = Annotated[
    str | None, typer.Option(help="Hub id, folder, small-llava or small-qwen2.5-vl; without it, the bundled model.")
]
DeviceOption = Annotated[str | None, typer.Option(help="cuda or cpu; by default a GPU if there is one.")]
ShardOption = Annotated[str, typer.Option(help="i/n: answer the i-th of n shares; the others run elsewhere.")]
RetryOption = Annotated[bool, typer.Option("--retry-failed", help="Do failed samples of earlier runs again.")]
DtypeOption = Annotated[str, typer.Option(help="auto (as saved), float32, bfloat16 or float16.")]

AnswerOption = Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")]
DataOption = Annotated[Path | None, typer.Option(help="MileBench's folder: <DS>/<DS>.json and <DS>/images.")]
OUT = typer.Option(help="Folder of results; goes on where an earlier run stopped.")
OutOption = Annotated[Path, OUT]
SuiteOption = Annotated[str, typer.Option(help="Which documents and questions.")]
MethodsOption = Annotated[str, typer.Option(help="As for generate, separated by commas.")]
BudgetsOption = Annotated[str, typer.Option(help="Budgets, separated by commas.")]
SamplesOption = Annotated[int, typer.Option(min=1, help="Documents; each has one question of every kind.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Of the first document.")]


def _version(wanted: bool) -> None:
    if wanted:
        from madakv import __version__

        typer.echo(f"madakv {__version__}")
        raise typer.Exit


@app.callback()
def common(
    _version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Evict a multimodal LLM's KV cache while it reads the prompt, per attention head and per modality."""


@app.command()
def generate(
    model: ModelOption = None,
    image: Annotated[list[Path] | None, typer.Option(help="A picture; repeat for more.")] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="Text, <image> marks an image's place. Without it, a built-in document of many images."),
    ] = None,
    method: Annotated[
        str, typer.Option(help="A name, options behind it: madakv:echo=256. See `madakv methods`.")
    ] = "madakv",
    budget: Annotated[
        str | None,
        typer.Option(help="Share of the prompt that stays, such as 0.2; or entries per head, such as 512."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to generate.")] = 64,
    compare: Annotated[bool, typer.Option("--compare", help="Run the full cache too, side by side.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    device: DeviceOption = None,
    dtype: DtypeOption = "auto",
) -> None:
    """Answer a prompt with an evicted cache."""
    with one_line_errors():
        from madakv.cli.generate import run_generate

        run_generate(
            model=model,
            images=image or [],
            prompt=prompt,
            method=method,
            budget=budget,
            max_new_tokens=max_new_tokens,
            compare=compare,
            as_json=as_json,
            device=device,
            dtype=dtype,
        )


@app.command(name="eval")
def evaluate(
    out: OutOption,
    suite: SuiteOption = "digits",
    model: ModelOption = None,
    methods: MethodsOption = "full,madakv",
    budgets: BudgetsOption = "0.5,0.2,0.1,0.05",
    samples: SamplesOption = 200,
    seed: SeedOption = 0,
    max_new_tokens: AnswerOption = 32,
    shard: ShardOption = "1/1",
    retry_failed: RetryOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = "auto",
) -> None:
    """Measure accuracy under eviction on documents made here; writes every answer, and a report."""
    with one_line_errors():
        from madakv.cli.evaluate import RunOptions, run_eval

        options = RunOptions(model, methods, budgets, max_new_tokens, out, shard, retry_failed, device, dtype)
        run_eval(options, suite_name=suite, samples=samples, seed=seed)


milebench_app = typer.Typer(invoke_without_command=True, no_args_is_help=True)
app.add_typer(milebench_app, name="milebench")


@milebench_app.callback()
def milebench(
    context: typer.Context,
    data: DataOption = None,
    out: Annotated[Path | None, OUT] = None,
    model: ModelOption = None,
    methods: MethodsOption = "full,madakv",
    budgets: BudgetsOption = "0.2",
    datasets: Annotated[str, typer.Option(help="Names such as TN,IEdit, or all.")] = "all",
    limit: Annotated[int | None, typer.Option(min=1, help="Samples per dataset; without it, all.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws the samples that --limit leaves.")] = 0,
    combined: Annotated[bool, typer.Option("--combined", help="All pictures of a sample as one.")] = False,
    max_context: Annotated[
        int | None, typer.Option(min=1, help="Cut the context from the left to this many tokens, as the original.")
    ] = None,
    max_new_tokens: AnswerOption = 512,
    shard: ShardOption = "1/1",
    retry_failed: RetryOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = "auto",
) -> None:
    """Run MileBench under eviction: the paper's tables, on any model, method and budget."""
    if context.invoked_subcommand is not None:
        return
    with one_line_errors():
        from madakv.cli.evaluate import RunOptions
        from madakv.cli.milebench import required, run_milebench

        options = RunOptions(
            model, methods, budgets, max_new_tokens, required("--out", out), shard, retry_failed, device, dtype
        )
        run_milebench(
            options,
            data=required("--data", data),
            datasets=datasets,
            limit=limit,
            seed=seed,
            combined=combined,
            max_context=max_context,
        )


@milebench_app.command(name="check")
def milebench_check(data: DataOption = None) -> None:
    """Tell what is there of the data, what is missing and what is broken (exit code 1 then); loads no model."""
    with one_line_errors():
        from madakv.cli.milebench import required, run_check

        run_check(required("--data", data))


@app.command()
def report(
    results: Annotated[list[Path], typer.Argument(help="Folders that hold rows of `eval` or `milebench`.")],
    out: Annotated[Path, typer.Option(help="Folder for report.md, report.csv and pictures.")],
    title: Annotated[str, typer.Option(help="What was measured.")] = "Results",
) -> None:
    """Make the report of one run, or of several together: other models, shards from other machines."""
    with one_line_errors():
        from madakv.cli.evaluate import run_report

        run_report(results, out, title)


@app.command()
def distance(
    out: OutOption,
    suite: SuiteOption = "digits",
    model: ModelOption = None,
    methods: MethodsOption = "madakv",
    budgets: BudgetsOption = "0.2",
    samples: SamplesOption = 10,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    dtype: DtypeOption = "auto",
) -> None:
    """Measure how far attention outputs are from the full cache's, and what an oracle would do with the bytes."""
    with one_line_errors():
        from madakv.cli.evaluate import run_distance

        run_distance(
            suite_name=suite,
            model=model,
            methods=methods,
            budgets=budgets,
            samples=samples,
            seed=seed,
            out=out,
            device=device,
            dtype=dtype,
        )


app.add_typer(bench_app, name="bench")


@app.command()
def methods() -> None:
    """List the eviction methods and their options."""
    with one_line_errors():
        from madakv.methods import list_methods, resolve

        for name in list_methods():
            typer.echo(f"{name:14} {resolve(name)!r}")


def main() -> None:
    """Entry point of the `madakv` command."""
    app()
