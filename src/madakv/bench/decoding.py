"""One contender's answer in progress: token after token on a cache that has read the prompt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from madakv.bench.contenders import Contender, Read
from madakv.bench.prompt import Prompt
from madakv.bench.subject import Subject
from madakv.bench.timing import seconds


class Decoding:
    """Reads the same token again and again, as `generate` reads new ones.

    Args:
        subject: the model.
        prompt: what the cache has read.
        contender: whose cache it is.
        read: the cache.
        room: most tokens that will be read.

    Attributes:
        tokens: read so far, per row.
    """

    def __init__(self, subject: Subject, prompt: Prompt, contender: Contender, read: Read, room: int) -> None:
        self.read = read
        self.tokens = 0
        self._subject = subject
        self._prompt = prompt
        self._contender = contender
        self._mask = prompt.mask(room)

    @torch.no_grad()
    def run(self, tokens: int) -> float:
        """Read so many tokens; returns the seconds. Entering `madakv.evict` is not timed."""
        with self._contender.inside(self._subject):
            return seconds(lambda: self._steps(tokens), self._subject.device)

    @torch.no_grad()
    def first(self) -> Tensor:
        """Read one token; returns the output, [B, X]."""
        with self._contender.inside(self._subject):
            return self._step()

    def _steps(self, tokens: int) -> None:
        for _ in range(tokens):
            self._step()

    def _step(self) -> Tensor:
        self.tokens += 1
        inputs: dict[str, Any] = dict(self._prompt.step)
        if self._mask is not None:
            inputs["attention_mask"] = self._mask[:, : self._prompt.width + self.tokens]
        output, _ = self._subject.output(**inputs, past_key_values=self.read.cache)
        return output
