"""`madakv generate`: one prompt, answered with an evicted cache and, if asked, with the full one beside it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers.utils import logging as transformers_logging

from madakv.answering import Answer, answer
from madakv.cli.asked import prompt_or_sample, warn_of_unknown_words
from madakv.cli.output import json_line, plain_console, visible
from madakv.errors import ConfigurationError
from madakv.kept import Kept
from madakv.linears import fast_linears
from madakv.loading import load
from madakv.markdown import size_text
from madakv.methods import from_text
from madakv.prompts import model_inputs
from madakv.question import Question

_CELL = 40
"""Characters of an answer that a table still shows."""


def run_generate(
    *,
    model: str | None,
    images: list[Path],
    prompt: str | None,
    method: str,
    budget: str | None,
    max_new_tokens: int,
    compare: bool,
    as_json: bool,
    device: str | None,
    dtype: str,
    fast: bool,
) -> None:
    """Run the command; see `madakv generate --help`."""
    quiet_transformers()
    chosen = from_text(method, budget=parse_budget(budget))
    prompt, pictures, question = prompt_or_sample(prompt, images)
    loaded, processor = load(model, device=device, dtype=dtype)
    inputs = model_inputs(processor, prompt, pictures).to(loaded.device)
    full = None
    with fast_linears(loaded) if fast else nullcontext():
        if compare:
            # Whoever runs first would pay for warming up.
            for way in (None, chosen):
                answer(loaded, processor, inputs, way, max_new_tokens=2)
            full = answer(loaded, processor, inputs, None, max_new_tokens=max_new_tokens)
        evicted = answer(loaded, processor, inputs, chosen, max_new_tokens=max_new_tokens)
    if evicted.kept is None:
        raise RuntimeError("generation ended without a prefill")
    # What could not be answered is an error's one line.
    warn_of_unknown_words(processor, inputs)
    if as_json:
        print(json_line(as_object(evicted, evicted.kept, full)))
    else:
        show(plain_console(), evicted, evicted.kept, full, question)


def quiet_transformers() -> None:
    """No progress bars and no warnings from transformers between a user and the answer."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def parse_budget(text: str | None) -> float | int | None:
    """A budget as typed: with a point or at most 1 it is a share, else entries per head.

    Raises:
        ConfigurationError: not a number.
    """
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        raise ConfigurationError(
            f"--budget must be a share of the prompt in (0, 1], such as 0.2, or a whole number; got {text!r}"
        ) from None
    return int(text) if text.strip().isdecimal() and value > 1 else value


def as_object(evicted: Answer, kept: Kept, full: Answer | None) -> dict[str, Any]:
    """The object that `--json` prints."""
    return {
        "answer": evicted.text,
        "answer_full": full.text if full else None,
        "prompt_tokens": kept.prompt_tokens,
        "kept": {name: round(count, 2) for name, count in kept.kept.items()},
        "kept_share": kept.kept_share,
        "kv_bytes": kept.kv_bytes,
        "kv_bytes_full": kept.kv_bytes_full,
        "prefill_s": evicted.prefill_s,
        "decode_ms": evicted.decode_ms,
        "prefill_s_full": full.prefill_s if full else None,
        "decode_ms_full": full.decode_ms if full else None,
        "method": kept.method,
    }


def show(console: Console, evicted: Answer, kept: Kept, full: Answer | None, question: Question | None) -> None:
    """Print the answer for people; side by side with the full cache's if there is one.

    Args:
        console: from `plain_console`.
        evicted: the answer to show.
        kept: what its eviction kept.
        full: the full cache's answer.
        question: the built-in one, if it was asked.
    """
    tokens = ", ".join(f"{count:,} {name}" for name, count in kept.prompt_tokens.items())
    console.print(f"prompt  {sum(kept.prompt_tokens.values()):,} tokens ({tokens})")
    console.print(f"method  {kept.method}")
    if question is not None:
        name = question.prompt.split()[-1]
        console.print(
            Text.assemble(
                "ask     ",
                (question.prompt, "bold"),
                f": the text says which of the 12 pictures {name} owns; which colour and digit does it show?",
            )
        )
        console.print(Text.assemble("expect  ", (question.answer, "bold")))
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("")
    if full:
        table.add_column("full cache", justify="right")
    table.add_column("evicted", justify="right", style="bold")
    if full:
        table.add_column("ratio", justify="right")
    answers = {"full cache": full.text} if full else {}
    answers["evicted"] = evicted.text
    fits = all(len(text) <= _CELL and text.isprintable() for text in answers.values())
    for name, whole, now, ratio in _rows(evicted, kept, full, with_answers=fits):
        table.add_row(name, *([whole] if full else []), now, *([ratio] if full else []))
    console.print(table)
    if not fits:
        for name, text in answers.items():
            # As it is, without line breaks of the console's own.
            console.print(f"\nanswer, {name}:\n{visible(text)}", soft_wrap=True)


def _rows(evicted: Answer, kept: Kept, full: Answer | None, *, with_answers: bool) -> list[tuple[str, str, str, str]]:
    whole_answer, answer = (full.text if full else "", evicted.text) if with_answers else ("below", "below")
    rows = [("answer", whole_answer, answer, _same(evicted, full))]
    rows.append(
        (
            "KV cache",
            size_text(kept.kv_bytes_full),
            size_text(kept.kv_bytes),
            f"{kept.kv_bytes / kept.kv_bytes_full:.1%}",
        )
    )
    for name, count in kept.prompt_tokens.items():
        share = kept.kept[name] / count if count else 0.0
        rows.append((f"{name} kept per head", f"{count:,}", f"{kept.kept[name]:,.1f}", f"{share:.1%}"))
    whole = full.prefill_s if full else None
    rows.append(("prefill", _seconds(whole), _seconds(evicted.prefill_s), _times(whole, evicted.prefill_s)))
    whole = full.decode_ms if full else None
    rows.append(("decode per token", _millis(whole), _millis(evicted.decode_ms), _times(whole, evicted.decode_ms)))
    return rows


def _same(evicted: Answer, full: Answer | None) -> str:
    return "" if full is None else "same" if full.text == evicted.text else "differs"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3f} s"


def _millis(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} ms"


def _times(whole: float | None, now: float | None) -> str:
    return "" if not whole or not now else f"{whole / now:.2f}x as fast"
