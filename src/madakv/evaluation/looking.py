"""Read prompts, and note for the analysis what attention did and what a method kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from madakv.api import evict
from madakv.evaluation.samples import Sample, inputs_of
from madakv.fitting import check_inputs
from madakv.inspection.analysis import Seen
from madakv.methods import Method


@dataclass(frozen=True, eq=False)
class Asked:
    """One prompt to read.

    Attributes:
        document, task: see `Seen`.
        inputs: from `madakv.prompts.model_inputs`.
    """

    document: str
    task: str
    inputs: Any


def asked_by(samples: Sequence[Sample], processor: Any) -> Iterator[Asked]:
    """The prompts of a suite's samples, made one at a time."""
    for sample in samples:
        inputs, _ = inputs_of(processor, sample)
        yield Asked(sample.document, sample.dataset, inputs)


def look(model: Any, asked: Asked, method: Method) -> Seen:
    """Read one prompt.

    Args:
        model: as for `madakv.evict`.
        asked: batch size 1.
        method: decides what is kept, and is not "full"; the attention is the same whatever it is.

    Raises:
        InputError: the prompt has token ids that the model does not know.
    """
    inputs = asked.inputs.to(model.device)
    check_inputs(model, inputs)
    with evict(model, method, record=True) as run:
        # As long as it takes for the prompt to be evicted.
        model.generate(**inputs, max_new_tokens=max(1, method.draft, method.lookahead + 1), do_sample=False)
    kept, recording = run.last, run.recording
    if kept is None or recording is None:
        raise RuntimeError("generation ended without a prefill")
    return Seen(
        document=asked.document,
        task=asked.task,
        layers=kept.layers,
        attention=torch.stack([layer[0].float().cpu() for layer in recording.attention]).numpy(),
        modality=kept.modality[0].numpy(),
        kept=kept.counts.sum((0, 1, 2)).double().numpy(),
    )
