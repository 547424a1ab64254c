"""What is asked of a passage: a task before its passage is drawn."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from madakv.evaluation.samples import Judge
from madakv.evaluation.texts.passage import Passage, about_tokens

BEFORE = "Read this text.\n\n"
AFTER = "\n\nThe text ends here. "


@dataclass(frozen=True)
class Asked:
    """One question about a passage.

    Attributes:
        prompt: text and question.
        gold: the right answer.
        judge: tells whether an answer is right, whole.
        follow_up: asked second; then `gold` answers it.
    """

    prompt: str
    gold: str
    judge: Judge
    follow_up: str | None = None


Drawn = Callable[[int], Passage]
"""From a length in tokens, about, to a passage of it."""


@dataclass(frozen=True)
class Needles:
    """Lines to put into a passage, and the question about them; see `Asked` for the rest."""

    lines: tuple[str, ...]
    question: str
    gold: str
    judge: Judge
    follow_up: str | None = None

    def within(self, rng: random.Random, tokens: int, drawn: Drawn) -> Asked:
        """The question behind a passage that holds the lines, all of `tokens`, about."""
        around = about_tokens(" ".join((BEFORE, *self.lines, AFTER, self.question)))
        text = drawn(tokens - around).holding(rng, self.lines)
        return Asked(asked_of(text, self.question), self.gold, self.judge, self.follow_up)


def asked_of(text: str, question: str) -> str:
    """The prompt: a text, and then the question."""
    return f"{BEFORE}{text}{AFTER}{question}"
