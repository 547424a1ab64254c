"""`madakv demo`: a long document with pictures, read with the full cache and with a fifth of it, in turn."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import Any

from PIL import Image
from rich.console import Console
from rich.table import Table

from madakv import bundled
from madakv.answering import Answer, answer
from madakv.cli.generate import quiet_transformers
from madakv.cli.output import plain_console, visible
from madakv.errors import CheckFailedError
from madakv.kept import Kept
from madakv.loading import load
from madakv.markdown import size_text
from madakv.methods import Method, resolve
from madakv.prompts import model_inputs
from madakv.question import Question

_LONG, _TOKENS = "small-llava", 4096
"""The model that reads long documents, where the repository's models are; and how long."""
_BUDGET = 0.2
_ECHO = 64
"""Less than the default reads again: the demo asks one question of a model of which attention is most of the work."""
_ROUNDS, _LEAST, _SECONDS = 7, 3, 8.0
"""Most rounds, fewest, and the time after which no more are begun."""


@dataclass(frozen=True)
class Document:
    """What is read, by which model, and what is asked: `task` is the question for people."""

    model: str | None
    text: str
    images: tuple[Image.Image, ...]
    question: Question
    task: str


@dataclass(frozen=True)
class Round:
    """One answer with each cache, one right after the other."""

    full: Answer
    evicted: Answer


@dataclass(frozen=True)
class Seen:
    """What the rounds showed; `prefill` and `decode` are (full, evicted, ratio): medians, ratios within rounds."""

    kept: Kept
    images: int
    right: tuple[bool, bool]
    prefill: tuple[float, float, float]
    decode: tuple[float, float, float]

    @classmethod
    def of(cls, rounds: list[Round], document: Document) -> Seen:
        """Of rounds that all read this document."""
        kept = rounds[-1].evicted.kept
        if kept is None:
            raise RuntimeError("generation ended without a prefill")
        wanted = document.question.answer
        return cls(
            kept=kept,
            images=len(document.images),
            right=(all(r.full.text == wanted for r in rounds), all(r.evicted.text == wanted for r in rounds)),
            prefill=_medians([(r.full.prefill_s, r.evicted.prefill_s) for r in rounds]),
            decode=_medians([(r.full.decode_ms or 0.0, r.evicted.decode_ms or 0.0) for r in rounds]),
        )

    def __str__(self) -> str:
        (_, _, longer), (whole, now, _) = self.prefill, self.decode
        share = self.kept.kv_bytes / self.kept.kv_bytes_full
        return (
            f"seen: {sum(self.kept.prompt_tokens.values()):,} tokens with {self.images} pictures; {self._answers()}; "
            f"KV cache {size_text(self.kept.kv_bytes_full)} -> {size_text(self.kept.kv_bytes)} ({share:.1%}); "
            f"decode {whole:.1f} -> {now:.1f} ms per token; prefill {longer:.2f}x the full cache's"
        )

    def _answers(self) -> str:
        full, evicted = self.right
        if full and evicted:
            return "both answers right"
        if not full and not evicted:
            return "both answers wrong"
        return f"only the answer with the {'full' if full else 'evicted'} cache right"


def run_demo() -> None:
    """Run the command; see `madakv demo --help`.

    Raises:
        CheckFailedError: an answer is wrong.
    """
    quiet_transformers()
    console, method = plain_console(), resolve("madakv", budget=_BUDGET, echo=_ECHO)
    document = long_document() if _LONG in bundled.named() else short_document()
    model, processor = load(document.model)
    inputs = model_inputs(processor, f"{document.text} {document.question.prompt}", list(document.images))
    inputs = inputs.to(model.device)
    name = document.model or "the built-in one"
    console.print(f"model     {name}, {model.num_parameters() / 1e6:.1f} M parameters")
    console.print(f"document  {inputs['input_ids'].shape[1]:,} tokens with {len(document.images)} pictures")
    console.print(f"method    {method.label}, a fifth of the cache")
    console.print(f"ask       {document.task}", soft_wrap=True)
    console.print(f"expect    {document.question.answer}")
    rounds = in_turn(model, processor, inputs, method)
    seen = Seen.of(rounds, document)
    show(console, rounds[-1], seen)
    console.print(f"\n{seen}", soft_wrap=True)
    if not all(seen.right):
        raise CheckFailedError(f"an answer is not {document.question.answer!r}; see the table above")


def long_document() -> Document:
    """One of the evaluation's, for the model of the repository that reads these."""
    from madakv.evaluation.documents import make_document

    made = make_document(0, tokens=_TOKENS)
    question = next(asked for asked in made.questions if asked.kind == "plan")
    task = "which digit or shape do the pictures of the plan's steps show, in the order of the steps?"
    return Document(_LONG, made.text, made.images, question, task)


def short_document() -> Document:
    """The one that comes with the package, as does the model that reads it."""
    sample = bundled.sample()
    task = f"which colour and digit does the picture {sample.demo.prompt.split()[-1]} show?"
    return Document(None, sample.text, sample.images, sample.demo, task)


def in_turn(model: Any, processor: Any, inputs: Any, method: Method) -> list[Round]:
    """Answers with each cache in turn, so that both meet the machine as it is; each begins every other round."""
    for way in (None, method):
        # Whoever runs first would pay for warming up.
        answer(model, processor, inputs, way, max_new_tokens=2)
    start, rounds = time.perf_counter(), list[Round]()
    while len(rounds) < _LEAST or (len(rounds) < _ROUNDS and time.perf_counter() - start < _SECONDS):
        order = (None, method) if len(rounds) % 2 else (method, None)
        found = {way: answer(model, processor, inputs, way, max_new_tokens=16) for way in order}
        rounds.append(Round(found[None], found[method]))
    return rounds


def show(console: Console, last: Round, seen: Seen) -> None:
    """Print the two caches side by side."""
    kept = seen.kept
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("")
    for name in ("full cache", "a fifth", "ratio"):
        table.add_column(name, justify="right")
    share = f"{kept.kv_bytes / kept.kv_bytes_full:.1%}"
    table.add_row("answer", visible(last.full.text), visible(last.evicted.text), "")
    table.add_row("KV cache", size_text(kept.kv_bytes_full), size_text(kept.kv_bytes), share)
    for name, count in kept.prompt_tokens.items():
        now = kept.kept[name]
        table.add_row(f"{name}, per head", f"{count:,}", f"{now:,.1f}", f"{now / count:.1%}" if count else "")
    for name, (whole, now, ratio), unit in (("prefill", seen.prefill, "s"), ("decode a token", seen.decode, "ms")):
        table.add_row(name, f"{whole:.2f} {unit}", f"{now:.2f} {unit}", f"{ratio:.2f}x")
    console.print(table)


def _medians(pairs: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Medians of the full cache's, of the evicted one's and of their ratios; ratios of what was not timed are 0."""
    full, evicted = (median(side) for side in zip(*pairs, strict=True))
    return full, evicted, median(now / whole if whole else 0.0 for whole, now in pairs)
