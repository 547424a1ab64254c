"""`madakv inspect`: a page that shows what one or two methods kept of a prompt."""

from __future__ import annotations

import os
import webbrowser
from pathlib import Path
from typing import Any

from madakv.answering import generate
from madakv.api import evict
from madakv.cli.asked import prompt_or_sample, warn_of_unknown_words
from madakv.cli.evaluate import expand
from madakv.cli.generate import quiet_transformers
from madakv.cli.output import plain_console
from madakv.cli.progress import bar
from madakv.errors import ConfigurationError, InputError
from madakv.extras import require
from madakv.loading import load
from madakv.markdown import size_text
from madakv.methods import Full
from madakv.prompts import model_inputs
from madakv.run import Run

_MOST = 2
"""Sides of a report."""


def run_inspect(
    *,
    model: str | None,
    images: list[Path],
    prompt: str | None,
    methods: str,
    budgets: str,
    max_new_tokens: int,
    out: Path,
    opened: bool,
    device: str | None,
    dtype: str,
) -> None:
    """Run the command; see `madakv inspect --help`."""
    require("a report needs", "inspect", "jinja2")
    quiet_transformers()
    chosen = expand(methods, budgets)
    if len(chosen) > _MOST:
        named = ", ".join(f"{method.label} at {method.budget}" for method in chosen)
        raise ConfigurationError(f"a report shows one or two; got {len(chosen)}: {named}")
    _check_writable(out)
    prompt, pictures, _ = prompt_or_sample(prompt, images)
    loaded, processor = load(model, device=device, dtype=dtype)
    inputs = model_inputs(processor, prompt, pictures).to(loaded.device)
    runs: list[Run] = []
    with bar("methods") as report:
        report(0, len(chosen))
        for method in chosen:
            with evict(loaded, method, record=type(method) is not Full) as run:
                generate(loaded, processor, inputs, max_new_tokens=max_new_tokens)
            runs.append(run)
            report(len(runs), len(chosen))
    warn_of_unknown_words(processor, inputs)
    path = runs[0].report(out, processor, beside=runs[1] if len(runs) > 1 else None)
    plain_console().print(f"{path}: {size_text(path.stat().st_size)}", soft_wrap=True)
    if opened:
        webbrowser.open(path.resolve().as_uri())


def _check_writable(out: Path) -> None:
    """Before minutes of work: whether the page can be written.

    Raises:
        InputError: it cannot.
    """
    if out.is_dir():
        raise InputError(f"--out is the name of the page, not of a folder: {out}")
    if not out.parent.is_dir():
        raise InputError(f"no such folder: {out.parent}; make it first, or name another --out")
    target: Any = out if out.exists() else out.parent
    if not os.access(target, os.W_OK):
        raise InputError(f"not allowed to write {out}")
