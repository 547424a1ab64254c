"""Commands and their options; what they do lives elsewhere, and is imported only when it is run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from madakv.cli.errors import one_line_errors

app = typer.Typer(
    help="Evict a multimodal LLM's KV cache while it reads the prompt, per attention head and per modality.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ModelOption = Annotated[
    str | None, typer.Option(help="Hub id, folder, or small-llava; without it, the bundled model.")
]
DeviceOption = Annotated[str | None, typer.Option(help="cuda or cpu; by default a GPU if there is one.")]
DtypeOption = Annotated[str, typer.Option(help="auto (as saved), float32, bfloat16 or float16.")]

OutOption = Annotated[Path, typer.Option(help="Folder of results; goes on where an earlier run stopped.")]
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
        str, typer.Option(help="A name, options behind it: madakv:theta=0.8. See `madakv methods`.")
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
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 32,
    device: DeviceOption = None,
    dtype: DtypeOption = "auto",
) -> None:
    """Measure accuracy under eviction; prints a Markdown table and writes every answer."""
    with one_line_errors():
        from madakv.cli.evaluate import run_eval

        run_eval(
            suite_name=suite,
            model=model,
            methods=methods,
            budgets=budgets,
            samples=samples,
            seed=seed,
            max_new_tokens=max_new_tokens,
            out=out,
            device=device,
            dtype=dtype,
        )


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
