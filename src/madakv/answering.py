"""Answer one prompt and time it, with eviction or without: what the command line and evaluations run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from madakv.api import evict
from madakv.errors import InputError, MadaKVError
from madakv.fitting import check_inputs, differing_sizes
from madakv.kept import Kept
from madakv.methods import Method


@dataclass(frozen=True)
class Answer:
    """One generated answer.

    Attributes:
        text: decoded, special tokens dropped.
        tokens: how many tokens were generated, the end token included.
        prefill_s: seconds from the call to the first token.
        decode_ms: milliseconds per token after the first; None if there was only one.
        kept: what eviction kept; None for the unmodified model.
    """

    text: str
    tokens: int
    prefill_s: float
    decode_ms: float | None
    kept: Kept | None


def answer(model: Any, processor: Any, inputs: Any, method: Method | None, *, max_new_tokens: int) -> Answer:
    """Generate greedily for one prompt.

    Args:
        model: a transformers model.
        processor: its processor or tokenizer.
        inputs: from `model_inputs`, batch size 1.
        method: how to evict; None runs the unmodified model.
        max_new_tokens: at least 1.

    Raises:
        InputError: the model cannot read what the processor made of the prompt, such as pictures of another size.
    """
    check_inputs(model, inputs)
    if method is None:
        return _generate(model, processor, inputs, max_new_tokens)
    with evict(model, method) as run:
        generated = _generate(model, processor, inputs, max_new_tokens)
    return Answer(generated.text, generated.tokens, generated.prefill_s, generated.decode_ms, run.last)


class _Clock:
    """A streamer that notes when each token arrives."""

    def __init__(self) -> None:
        self.ticks: list[float] = []

    def put(self, value: Tensor) -> None:
        if value.is_cuda:
            torch.cuda.synchronize()
        self.ticks.append(time.perf_counter())

    def end(self) -> None:
        pass


def _generate(model: Any, processor: Any, inputs: Any, max_new_tokens: int) -> Answer:
    clock = _Clock()
    start = time.perf_counter()
    try:
        out = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, streamer=clock)
    except MadaKVError:
        raise
    except (ValueError, RuntimeError) as error:
        # A model refuses pictures of another size with ValueError, or else shapes do not fit somewhere within.
        differing = differing_sizes(model, processor)
        if isinstance(error, RuntimeError) and not differing:
            raise
        raise InputError(
            f"{type(model).__name__} cannot read what {type(processor).__name__} made of this prompt "
            f"({differing or error}): take both from one model"
        ) from error
    # The streamer is handed the prompt first.
    ticks = clock.ticks[1:]
    later = len(ticks) - 1
    new = out[0, inputs["input_ids"].shape[1] :]
    tokenizer = getattr(processor, "tokenizer", processor)
    return Answer(
        text=tokenizer.decode(new, skip_special_tokens=True).strip(),
        tokens=len(new),
        prefill_s=ticks[0] - start,
        decode_ms=(ticks[-1] - ticks[0]) / later * 1000 if later else None,
        kept=None,
    )
