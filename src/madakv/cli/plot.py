"""`madakv plot`: the paper's analysis of any model, as pictures with their numbers beside them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from pathlib import Path

from madakv.cli.asked import check_prompted
from madakv.cli.generate import parse_budget, quiet_transformers
from madakv.cli.output import plain_console, visible
from madakv.cli.progress import bar
from madakv.errors import ConfigurationError, InputError
from madakv.evaluation.documents.presentation import presentation_for
from madakv.evaluation.looking import Asked, asked_by, look
from madakv.evaluation.suites import suite
from madakv.fingerprint import of_source
from madakv.inspection.analysis import Analysis, Concentration, Layers, Preference, Tasks, as_numbers
from madakv.inspection.figures import draw, require_matplotlib
from madakv.loading import load, source_of
from madakv.markdown import budget_text
from madakv.methods import from_text
from madakv.pictures import open_images
from madakv.prompts import model_inputs
from madakv.provenance import provenance, write_whole

FIGURES: dict[str, Callable[[Analysis], Concentration | Preference | Layers | Tasks]] = {
    "concentration": Analysis.concentration,
    "preference": Analysis.preference,
    "layers": Analysis.layers,
    "tasks": Analysis.tasks,
}

_SAMPLES = 8


def run_plot(
    *,
    out: Path,
    figure: str,
    model: str | None,
    suite_name: str | None,
    samples: int | None,
    seed: int | None,
    images: list[Path],
    prompt: str | None,
    method: str,
    budget: str,
    device: str | None,
    dtype: str,
) -> None:
    """Run the command; see `madakv plot --help`."""
    require_matplotlib()
    names = _figures(figure)
    _check_question(suite_name, samples, seed, images, prompt, figure)
    suite_name = suite_name or "digits"
    maker = suite(suite_name)
    if method.strip() == "full":
        raise ConfigurationError(
            "--method full evicts nothing, and leaves nothing to compare; name one that evicts, such as madakv"
        )
    chosen = from_text(method, budget=parse_budget(budget))
    pictures = open_images(images)
    if out.exists() and not out.is_dir():
        raise InputError(f"--out is the name of a folder, not of a file: {out}")
    out.mkdir(parents=True, exist_ok=True)
    quiet_transformers()
    loaded, processor = load(model, device=device, dtype=dtype)
    asked: Iterable[Asked]
    if prompt is None:
        drawn = maker(samples or _SAMPLES, seed or 0, presentation_for(processor))
        # What is asked second meets a cache that the first question has had evicted.
        todo = [sample for sample in drawn if sample.follow_up is None]
        asked, total = asked_by(todo, processor), len(todo)
        source = f"{suite_name}, {samples or _SAMPLES} {'document' if samples == 1 else 'documents'}"
    else:
        asked, total = [Asked("prompt", "prompt", model_inputs(processor, prompt, pictures))], 1
        source = "one prompt"
    analysis = Analysis(f"{chosen.label} at {budget_text(chosen.budget)}")
    with bar("prompts") as report:
        report(0, total)
        for one in asked:
            analysis.add(look(loaded, one, chosen))
            report(analysis.prompts, total)
    found, left_out = _found(analysis, names, leave_out=figure.strip() == "all", is_suite=prompt is None)
    name = visible(model or "the built-in model")
    for what, numbers in found.items():
        draw(numbers, f"{name}: {source}", out / what)
    told = {
        "command": _command(model, suite_name, samples, seed, images, prompt, method, budget, figure, dtype),
        "model": model or "bundled",
        "model_fingerprint": of_source(source_of(model)),
        "prompts": analysis.prompts,
        "method": repr(chosen),
        "left_out": left_out,
    }
    write_whole(out / "data.json", provenance(**told) | {what: as_numbers(one) for what, one in found.items()})
    for what, why in left_out.items():
        plain_console(stderr=True).print(visible(f"{what} is not drawn: {why}"), soft_wrap=True)
    print(visible(f"{', '.join(found)}: {out}"))


def _figures(text: str) -> list[str]:
    """Names of figures as typed."""
    names = list(FIGURES) if text.strip() == "all" else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in FIGURES:
            raise ConfigurationError(f"unknown figure {name!r}; known: {', '.join(FIGURES)}, all")
    return list(dict.fromkeys(names))


def _check_question(
    suite_name: str | None,
    samples: int | None,
    seed: int | None,
    images: list[Path],
    prompt: str | None,
    figure: str,
) -> None:
    """Refuse options that go with the other kind of prompts."""
    check_prompted(prompt, images)
    if prompt is None:
        return
    given = {"--suite": suite_name, "--samples": samples, "--seed": seed}
    for name, value in given.items():
        if value is not None:
            raise ConfigurationError(f"{name} {value} is of a suite, and --prompt was given; choose one")
    if "tasks" in _figures(figure) and figure.strip() != "all":
        raise ConfigurationError("tasks compares kinds of questions, and --prompt is one question; give a --suite")


def _found(
    analysis: Analysis, names: list[str], *, leave_out: bool, is_suite: bool
) -> tuple[dict[str, Concentration | Preference | Layers | Tasks], dict[str, str]]:
    """What is drawn, and why the rest is not; what was asked for by name is drawn or refused."""
    found, left_out = {}, {}
    for name in names:
        if name == "tasks" and not is_suite:
            left_out[name] = "it compares kinds of questions, and there is one question"
            continue
        try:
            found[name] = FIGURES[name](analysis)
        except InputError as error:
            if not leave_out:
                raise
            left_out[name] = str(error)
    return found, left_out


def _command(
    model: str | None,
    suite_name: str,
    samples: int | None,
    seed: int | None,
    images: list[Path],
    prompt: str | None,
    method: str,
    budget: str,
    figure: str,
    dtype: str,
) -> str:
    """The command that draws the same."""
    words = ["madakv", "plot", "--figure", figure, *(["--model", model] if model else [])]
    if prompt is None:
        words += ["--suite", suite_name, "--samples", str(samples or _SAMPLES), "--seed", str(seed or 0)]
    else:
        words += [word for path in images for word in ("--image", str(path))] + ["--prompt", prompt]
    words += ["--method", method, "--budget", budget, "--dtype", dtype]
    return shlex.join(words)
