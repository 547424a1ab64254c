"""`madakv bench`: what decoding, reading, memory and the attention op cost here, and how far from the floor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from madakv.cli.errors import one_line_errors

if TYPE_CHECKING:
    from madakv.bench.session import Command

bench_app = typer.Typer(
    help="Measure speed and memory beside transformers' caches, and how near they are to what the machine can do. "
    "docs/performance.md explains the columns.",
    epilog="Example: madakv bench decode --model small-llava --context 2000 --budgets 0.2",
    no_args_is_help=True,
)

Shapes = Annotated[
    str | None,
    typer.Option(
        "--shape",
        metavar="NAMES",
        help="Real dimensions with random weights: llava-1.5-7b or qwen2.5-vl-7b, or several, separated by commas.",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL", help="A real model instead of a shape: a folder, or a name that `madakv models` lists."
    ),
]
Layers = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Only so many layers of a shape, without embedding and head."),
]
Context = Annotated[str, typer.Option(metavar="N,N", help="Tokens of the prompt, separated by commas.")]
Batch = Annotated[str, typer.Option(metavar="N,N", help="Rows, separated by commas; shorter rows are padded.")]
Budgets = Annotated[str, typer.Option(metavar="SHARES", help="Budgets, separated by commas.")]
Methods = Annotated[str, typer.Option(metavar="NAMES", help="Separated by commas; see `madakv methods`.")]
Device = Annotated[str, typer.Option(metavar="NAME", help="cpu or cuda.")]
Dtype = Annotated[str, typer.Option(metavar="NAME", help="bf16, fp16 or fp32.")]
Tokens = Annotated[int, typer.Option(metavar="N", min=1, help="New tokens; for decode, in each round.")]
Repeats = Annotated[int, typer.Option(metavar="N", min=1, help="Rounds, in which all take turns.")]
FillOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="How the cache is filled: prefill, synthetic (random keys, quickly), or auto: by the time it takes.",
    ),
]
Shortest = Annotated[
    float,
    typer.Option(metavar="SHARE", min=0.01, max=1.0, help="Shortest row of a batch, as a share of the longest."),
]
Rivals = Annotated[bool, typer.Option("--rivals/--no-rivals", help="Measure transformers' other caches as well.")]
FastLinears = Annotated[
    bool, typer.Option("--fast-linears", help="Measure all a second time, with products of `madakv.fast_linears`.")
]
Seed = Annotated[int, typer.Option(metavar="N", min=0, help="Of weights and prompts.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Out = Annotated[Path | None, typer.Option(metavar="FOLDER", help="For <command>.json, written as it goes.")]


@bench_app.command(epilog="Example: madakv bench decode --shape llava-1.5-7b --layers 2 --context 3300")
def decode(
    shape: Shapes = None,
    model: Model = None,
    layers: Layers = None,
    context: Context = "3300",
    batch: Batch = "1",
    budgets: Budgets = "1.0,0.2,0.05",
    methods: Methods = "madakv",
    device: Device = "cpu",
    dtype: Dtype = "bf16",
    tokens: Tokens = 16,
    repeats: Repeats = 5,
    fill: FillOption = "auto",
    shortest: Shortest = 0.5,
    rivals: Rivals = True,
    fast_linears: FastLinears = False,
    seed: Seed = 0,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """Time per new token, with the full cache and with evicted ones."""
    _run("decode", **locals())


@bench_app.command(
    epilog="Example: madakv bench prefill --shape llava-1.5-7b --layers 1 --context 2048 --budgets 0.2"
)
def prefill(
    shape: Shapes = None,
    model: Model = None,
    layers: Layers = None,
    context: Context = "1024,2048,4096",
    batch: Batch = "1",
    budgets: Budgets = "1.0,0.2",
    methods: Methods = "madakv",
    device: Device = "cpu",
    dtype: Dtype = "bf16",
    repeats: Repeats = 5,
    fill: FillOption = "auto",
    shortest: Shortest = 0.5,
    seed: Seed = 0,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """Time to read a prompt, and how much of it eviction takes."""
    _run("prefill", **locals())


@bench_app.command(epilog="Example: madakv bench memory --shape llava-1.5-7b --layers 2 --context 512 --batch 1")
def memory(
    shape: Shapes = None,
    model: Model = None,
    layers: Layers = None,
    context: Context = "3300",
    batch: Batch = "1,8",
    budgets: Budgets = "1.0,0.2,0.05",
    methods: Methods = "madakv",
    device: Device = "cpu",
    dtype: Dtype = "bf16",
    tokens: Tokens = 16,
    shortest: Shortest = 0.5,
    rivals: Rivals = True,
    seed: Seed = 0,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """Bytes of the cache after the prompt and later, and the most while the prompt is read."""
    _run("memory", **locals())


@bench_app.command(epilog="Example: madakv bench kernel --shape llava-1.5-7b --context 20000 --budgets 0.2")
def kernel(
    shape: Shapes = "llava-1.5-7b,llava-next-mistral-7b,qwen2.5-vl-7b,qwen2.5-vl-3b",
    context: Context = "3300",
    batch: Batch = "1",
    budgets: Budgets = "1.0,0.2,0.05",
    device: Device = "cpu",
    dtype: Dtype = "bf16",
    repeats: Repeats = 5,
    seed: Seed = 0,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """Time of one token's attention alone, over heads of even and uneven lengths of the same bytes."""
    _run("kernel", **locals())


def _run(
    command: Command,
    *,
    shape: str | None,
    context: str,
    batch: str,
    budgets: str,
    device: str,
    dtype: str,
    seed: int,
    as_json: bool,
    out: Path | None,
    model: str | None = None,
    layers: int | None = None,
    methods: str = "",
    tokens: int = 1,
    repeats: int = 1,
    fill: str = "prefill",
    shortest: float = 1.0,
    rivals: bool = True,
    fast_linears: bool = False,
) -> None:
    with one_line_errors():
        from rich.text import Text

        from madakv.bench.session import Options, fill_of, numbers, refused, run_bench
        from madakv.bench.table import show
        from madakv.cli.evaluate import expand
        from madakv.cli.generate import parse_budget, quiet_transformers
        from madakv.cli.output import plain_console, visible
        from madakv.errors import CheckFailedError

        quiet_transformers()
        stderr = plain_console(stderr=True)
        options = Options(
            shapes=tuple(shape.split(",")) if shape else (),
            model=model,
            layers=layers,
            contexts=numbers("--context", context),
            batches=numbers("--batch", batch),
            methods=tuple(expand(methods, budgets)) if methods else (),
            budgets=tuple(parse_budget(budget) or 1.0 for budget in budgets.split(",")),
            device=device,
            dtype=dtype,
            tokens=tokens,
            repeats=repeats,
            fill=fill_of(fill),
            shortest=shortest,
            rivals=rivals,
            fast_linears=fast_linears,
            seed=seed,
            out=out,
        )
        with stderr.status("") as status:
            # A string would be read as markup: a status makes text of it on its own.
            results = run_bench(command, options, lambda doing: status.update(Text(visible(doing))))
        if as_json:
            print(json.dumps(results.content))
        else:
            show(plain_console(), command, results)
        wrong = refused(results.rows)
        for row in wrong:
            stderr.print(visible(f"{row.contender}: {row.refused}"), soft_wrap=True)
        if wrong:
            raise CheckFailedError(f"{len(wrong)} of {len(results.rows)} rows are refused: wrong results")
