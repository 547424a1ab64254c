"""One contender's answer in progress: token after token on a cache that has read the prompt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from madakv.bench.contenders import Contender, Read
from madakv.bench.prompt import Prompt
from madakv.bench.subject import Subject
from madakv.bench.timing import seconds
from madakv.hf.capture import with_step_mask


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
            subject = self._compiled()
            return seconds(lambda: self._steps(subject, tokens), self._subject.device)

    @torch.no_grad()
    def first(self) -> Tensor:
        """Read one token; returns the output, [B, X]."""
        with self._contender.inside(self._subject):
            # A copy: what a CUDA graph returns, its next replay overwrites.
            return self._step(self._compiled()).clone()

    def _compiled(self) -> Subject:
        """The subject with its steps compiled as `generate` does it, if the contender's are."""
        model, how = self._subject.model, self._contender.compiled
        if how is None:
            return self._subject
        if not hasattr(model, "generation_config"):
            # A model without a head has none, but transformers looks for its compile settings there.
            model.generation_config = None
        call = model.get_compiled_call(how)
        return replace(self._subject, model=lambda **inputs: call(**with_step_mask(model, inputs)))

    def _steps(self, subject: Subject, tokens: int) -> None:
        for _ in range(tokens):
            self._step(subject)

    def _step(self, subject: Subject) -> Tensor:
        self.tokens += 1
        inputs: dict[str, Any] = dict(self._prompt.step)
        if self._mask is not None:
            inputs["attention_mask"] = self._mask[:, : self._prompt.width + self.tokens]
        output, _ = subject.output(**inputs, past_key_values=self.read.cache)
        return output
