"""The model that is measured: a published shape with random weights, or a real one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from madakv.bench.prompt import Prompt, document_prompt, random_prompt, row_lengths
from madakv.bench.roofline import Cost
from madakv.bench.shapes import Shape, cost_of, random_model, shape
from madakv.errors import ConfigurationError
from madakv.loading import load


@dataclass(frozen=True, eq=False)
class Subject:
    """A model, and what is known of it.

    Attributes:
        name: of the shape, or the folder.
        model: in eval mode.
        processor: of a real model; None for a shape.
        shape: None for a real model.
        cost: what its steps cost.
        layers: how many of the model's layers are there, such as "2 of 32".
    """

    name: str
    model: Any
    processor: Any
    shape: Shape | None
    cost: Cost
    layers: str

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return torch.device(self.model.device)

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and cache."""
        dtype: torch.dtype = self.model.get_decoder().dtype
        return dtype

    def prompt(self, context: int, batch: int, shortest: float) -> Prompt:
        """Something to read; see `row_lengths`. A real model's rows are equally long."""
        if self.shape is None:
            return document_prompt(self.model, self.processor, context, batch)
        lengths = row_lengths(context, batch, shortest)
        return random_prompt(
            self.shape.hidden, self.shape.image_tokens, lengths, dtype=self.dtype, device=self.device
        )

    def output(self, *, use_cache: bool = True, **inputs: Any) -> tuple[Tensor, Any]:
        """One forward pass: the last token's logits or, without a head, hidden state, [B, X]; and any cache."""
        if self.cost.head:
            out = self.model(**inputs, use_cache=use_cache, logits_to_keep=1)
            return out.logits[:, -1], out.past_key_values
        out = self.model(**inputs, use_cache=use_cache)
        return out.last_hidden_state[:, -1], out.past_key_values


def random_subject(name: str, layers: int | None, *, dtype: torch.dtype, device: torch.device) -> Subject:
    """A model of a published shape.

    Raises:
        ConfigurationError: no such shape, or it has fewer layers.
    """
    chosen = shape(name)
    if layers is not None and not 1 <= layers <= chosen.layers:
        raise ConfigurationError(f"--layers must be from 1 to {chosen.layers} for {name}; got {layers}")
    count = chosen.layers if layers is None else layers
    model = random_model(chosen, count, dtype=dtype, device=device)
    return Subject(name, model, None, chosen, cost_of(model), f"{count} of {chosen.layers}")


def real_subject(folder: str, *, dtype: str, device: torch.device) -> Subject:
    """A model from a folder or the package; see `madakv.loading.load`."""
    model, processor = load(folder, device=str(device), dtype=dtype)
    cost = cost_of(model)
    return Subject(folder, model, processor, None, cost, f"{cost.layers} of {cost.layers}")
