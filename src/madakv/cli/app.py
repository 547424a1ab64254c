"""Commands and their options; what they do lives elsewhere, and is imported only when it is run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from madakv.cli.bench import bench_app
from madakv.cli.errors import one_line_errors
from madakv.cli.models import models_app
from madakv.cli.serve import serve

_HELP = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    epilog="Example: madakv demo   (a built-in model and document, offline)",
    context_settings=_HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ModelOption = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="A Hub id, a folder, or a name that `madakv models` lists. Without it: a small model that is built in.",
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="cuda or cpu. Without it: a GPU if there is one.")
]
ShardOption = Annotated[
    str, typer.Option(metavar="I/N", help="Answer the I-th of N shares of the samples; the others run elsewhere.")
]
RetryOption = Annotated[bool, typer.Option("--retry-failed", help="Ask again what failed in earlier runs.")]
DtypeOption = Annotated[str, typer.Option(metavar="NAME", help="auto (as saved), float32, bfloat16 or float16.")]

ImageOption = Annotated[
    list[Path] | None, typer.Option(metavar="FILE", help="A picture to ask about; once for each picture.")
]
PromptOption = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="What to ask; <image> stands where a picture belongs. Without it: a built-in document and question.",
    ),
]
AnswerOption = Annotated[int, typer.Option(metavar="N", min=1, help="Most tokens of an answer.")]
DataOption = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="MileBench's data: <DS>/<DS>.json and <DS>/images.")
]
OUT = typer.Option(metavar="FOLDER", help="For the results; a run that was stopped goes on there.")
OutOption = Annotated[Path, OUT]
SuiteOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Which documents: digits; long, or one of its lengths, long-512 to long-4096; real text, which needs no "
        "pictures: text-1k, text-2k, text-4k or text-8k.",
    ),
]
MethodsOption = Annotated[
    str, typer.Option(metavar="NAMES", help="Separated by commas, such as full,madakv,snapkv; see `madakv methods`.")
]
BudgetsOption = Annotated[
    str, typer.Option(metavar="SHARES", help="Shares of the prompt that stay, separated by commas.")
]
SamplesOption = Annotated[
    int, typer.Option(metavar="N", min=1, help="How many documents; each is asked one question of every kind.")
]
FastLinears = Annotated[
    bool, typer.Option("--fast-linears", help="Multiply with bfloat16 weights on a CPU by madakv's own kernel.")
]
SeedOption = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=0,
        help="Number of the first document. Of real text, those from 100000 are for choices, and from 200000 unseen.",
    ),
]


def _version(wanted: bool) -> None:
    if wanted:
        from madakv import __version__

        typer.echo(f"madakv {__version__}")
        raise typer.Exit


@app.callback()
def common(
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Let a vision-language model remember a fifth of its prompt: its KV cache is evicted while it reads."""


@app.command(epilog="Example: madakv demo")
def demo() -> None:
    """See it at work, offline: one long document, read with the full cache and with a fifth of it.

    In a checkout, more than 4,000 tokens with pictures; else the smaller document that comes with the package. The
    last line says what was seen.
    """
    with one_line_errors():
        from madakv.cli.demo import run_demo

        run_demo()


@app.command(
    epilog="Example: madakv generate --model small-llava --image chart.png --prompt 'show <image> ?' --budget 0.2"
)
def generate(
    model: ModelOption = None,
    image: ImageOption = None,
    prompt: PromptOption = None,
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="How to evict; options behind colons, as in madakv:echo=256. See `madakv methods`."
        ),
    ] = "madakv",
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE",
            help="How much of the prompt stays: a share such as 0.2, or so many entries per head, such as 512.",
        ),
    ] = None,
    max_new_tokens: AnswerOption = 64,
    compare: Annotated[
        bool, typer.Option("--compare", help="Answer with the full cache too, and show both side by side.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    device: DeviceOption = None,
    dtype: DtypeOption = "auto",
    fast_linears: FastLinears = False,
) -> None:
    """Answer one prompt with an evicted cache, and tell what was kept."""
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
            fast=fast_linears,
        )


@app.command(
    epilog="Example: madakv inspect --methods madakv,snapkv --budget 0.2 --out report.html   (a built-in document)"
)
def inspect(
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page: one HTML file that needs no other.")],
    model: ModelOption = None,
    image: ImageOption = None,
    prompt: PromptOption = None,
    methods: Annotated[
        str,
        typer.Option(metavar="NAMES", help="One, or two to compare, such as madakv,snapkv; see `madakv methods`."),
    ] = "madakv",
    budget: Annotated[
        str,
        typer.Option(metavar="SHARES", help="How much of the prompt stays; or of one method two, such as 0.2,0.05."),
    ] = "0.2",
    max_new_tokens: AnswerOption = 64,
    opened: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
    device: DeviceOption = None,
    dtype: DtypeOption = "auto",
) -> None:
    """Make a page of what the cache kept of a prompt: which words and patches, and what the answer rested on."""
    with one_line_errors():
        from madakv.cli.inspect import run_inspect

        run_inspect(
            model=model,
            images=image or [],
            prompt=prompt,
            methods=methods,
            budgets=budget,
            max_new_tokens=max_new_tokens,
            out=out,
            opened=opened,
            device=device,
            dtype=dtype,
        )


@app.command(
    name="eval", epilog="Example: madakv eval --methods full,madakv,random --budgets 0.2 --samples 10 --out results"
)
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
    fast_linears: FastLinears = False,
) -> None:
    """Count right answers of methods at budgets, on documents made here.

    Needs no data. Every answer is written to --out as it comes, and a report with tables and pictures at the end.
    """
    with one_line_errors():
        from madakv.cli.evaluate import RunOptions, run_eval

        options = RunOptions(
            model, methods, budgets, max_new_tokens, out, shard, retry_failed, device, dtype, fast_linears
        )
        run_eval(options, suite_name=suite, samples=samples, seed=seed)


milebench_app = typer.Typer(
    invoke_without_command=True,
    no_args_is_help=True,
    epilog="Example: madakv milebench --data MileBench --datasets TN,IEdit --limit 20 --budgets 0.2 --out results",
)
app.add_typer(milebench_app, name="milebench")


@milebench_app.callback()
def milebench(
    context: typer.Context,
    data: DataOption = None,
    out: Annotated[Path | None, OUT] = None,
    model: ModelOption = None,
    methods: MethodsOption = "full,madakv",
    budgets: BudgetsOption = "0.2",
    datasets: Annotated[
        str, typer.Option(metavar="NAMES", help="Separated by commas, such as TN,IEdit; or all.")
    ] = "all",
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="So many samples of each dataset. Without it: all.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Draws the samples that --limit leaves.")] = 0,
    combined: Annotated[
        bool, typer.Option("--combined", help="Show all pictures of a sample as one, for models that take one.")
    ] = False,
    max_context: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Cut prompts to N tokens from the left, as the benchmark itself does."),
    ] = None,
    max_new_tokens: AnswerOption = 512,
    shard: ShardOption = "1/1",
    retry_failed: RetryOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = "auto",
) -> None:
    """Run MileBench, the paper's benchmark, with any model, methods and budgets.

    You need its data: docs/milebench.md tells where it is.
    """
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


@milebench_app.command(name="check", epilog="Example: madakv milebench check --data MileBench")
def milebench_check(data: DataOption = None) -> None:
    """Look through the data, without a model: what is there, and what is missing or broken.

    Exit code 1 if anything is missing or broken.
    """
    with one_line_errors():
        from madakv.cli.milebench import required, run_check

        run_check(required("--data", data))


@app.command(epilog="Example: madakv report results/first results/second --out report")
def report(
    results: Annotated[list[Path], typer.Argument(help="Folders that `eval` or `milebench` have written.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="For report.md, report.csv and pictures.")],
    title: Annotated[str, typer.Option(metavar="TEXT", help="Its first line.")] = "Results",
) -> None:
    """Make one report of several runs: of other models, or of shares from other machines."""
    with one_line_errors():
        from madakv.cli.evaluate import run_report

        run_report(results, out, title)


@app.command(epilog="Example: madakv distance --methods madakv,snapkv --budgets 0.2 --samples 3 --out results")
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
    """Measure, layer by layer, how far attention is from the full cache's.

    Beside each method stands an oracle: the best that could be done with the same bytes.
    """
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


@app.command(epilog="Example: madakv plot --model small-llava --suite long-512 --samples 8 --out figures")
def plot(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="For the pictures, and data.json with their numbers.")],
    figure: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="concentration, preference, layers, tasks, separated by commas; or all that the prompts allow.",
        ),
    ] = "all",
    model: ModelOption = None,
    suite: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which documents to ask about, see `madakv eval`. Or --prompt.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="How many documents of the suite. Without it: 8.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Number of the first document. Without it: 0.")
    ] = None,
    image: ImageOption = None,
    prompt: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="What to ask; <image> stands where a picture belongs. Or --suite."),
    ] = None,
    method: Annotated[
        str, typer.Option(metavar="NAME", help="Whose kept entries `tasks` counts. See `madakv methods`.")
    ] = "madakv",
    budget: Annotated[
        str, typer.Option(metavar="SHARE", help="How much it keeps: a share, or so many entries per head.")
    ] = "0.2",
    device: DeviceOption = None,
    dtype: DtypeOption = "auto",
) -> None:
    """Draw what attention does in a model, as the paper does: PNG and SVG, and their numbers.

    concentration: how few tokens of a modality hold its attention. preference: which heads look at pictures, and
    which at text. layers: how many entries each layer needs. tasks: what is kept for which kind of question.
    """
    with one_line_errors():
        from madakv.cli.plot import run_plot

        run_plot(
            out=out,
            figure=figure,
            model=model,
            suite_name=suite,
            samples=samples,
            seed=seed,
            images=image or [],
            prompt=prompt,
            method=method,
            budget=budget,
            device=device,
            dtype=dtype,
        )


app.add_typer(bench_app, name="bench")
app.add_typer(models_app, name="models")
app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Example: madakv serve smollm2 --budget 0.2 --dtype float32 --port 8000",
)(serve)


@app.command(epilog="Example: madakv generate --method snapkv:window=16")
def methods() -> None:
    """List the eviction methods, each with its options and what they are by default."""
    with one_line_errors():
        from madakv.methods import list_methods, resolve

        for name in list_methods():
            typer.echo(f"{name:18} {resolve(name)!r}")
