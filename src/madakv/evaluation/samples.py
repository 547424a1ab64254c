"""What is asked of a model: one sample for all suites and benchmarks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from madakv.prompts import model_inputs, text_inputs


@dataclass(frozen=True)
class Verdict:
    """What an answer is worth.

    Attributes:
        scores: from a scorer's name to a score in [0, 1].
        fault: why a scorer could not work on this answer; None if all did.
    """

    scores: Mapping[str, float]
    fault: str | None = None


Judge = Callable[[str], Verdict]


@dataclass(frozen=True)
class Sample:
    """One question.

    Attributes:
        id: unique within its dataset.
        dataset: tables have one column per dataset.
        group: the category that the dataset belongs to.
        level: by how many images, or how many tokens.
        document: samples of one document are drawn together when intervals are computed.
        prompt: text with `<image>` marks.
        pictures: opens the images, in the order of the marks; called once, and may fail.
        images: how many there are.
        gold: the right answer.
        scorers: names of the scores that `judge` gives.
        judge: scores an answer.
        follow_up: asked on the same cache after the prompt has been answered; `judge` then hears its answer.
        following: text that follows the prompt. Then nothing is asked: both are read as they are, without a chat
            template, and what counts is the loss on the first `LOSS_TOKENS` tokens that follow.
        most_tokens: of an answer, where the task says so; None takes the run's.
    """

    id: str
    dataset: str
    group: str
    level: str
    document: str
    prompt: str
    pictures: Callable[[], Sequence[Image.Image]]
    images: int
    gold: str
    scorers: tuple[str, ...]
    judge: Judge
    follow_up: str | None = None
    following: str | None = None
    most_tokens: int | None = None

    @property
    def fingerprint(self) -> str:
        """Tells samples of one id apart that ask something else, as those of another data set do."""
        asked = "\0".join((self.prompt, self.follow_up or "", self.gold, str(self.images)))
        if self.following is not None:
            asked += f"\0{self.following}"
        return hashlib.sha256(asked.encode("utf-8", "surrogatepass")).hexdigest()[:16]


LOSS_TOKENS = 256
"""How many tokens after a prompt the next-token loss is the mean of."""

EXACT = "exact"
"""The scorer of the suites: the whole answer is right, or it is not."""


def equal_to(gold: str, *, in_any_order: bool = False) -> Judge:
    """Judges by `EXACT`, word by word or as a list, with commas or without, whose order does not matter."""

    def words(answer: str) -> list[str]:
        return sorted(answer.replace(",", " ").split()) if in_any_order else answer.split()

    return lambda answer: Verdict({EXACT: float(words(answer) == words(gold))})


def inputs_of(processor: Any, sample: Sample) -> tuple[Any, list[int]]:
    """A sample's prompt as a model reads it.

    Args:
        processor: the model's processor, or a tokenizer for text-only models.
        sample: whose pictures are opened, which may fail.

    Returns:
        A `BatchFeature` of tensors, batch size 1; and the ids of the text that follows, if the sample is of one.
    """
    if sample.following is None:
        return model_inputs(processor, sample.prompt, sample.pictures()), []
    return text_inputs(processor, sample.prompt, sample.following, LOSS_TOKENS)
