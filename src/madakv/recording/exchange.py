"""What was said: the inputs of one `generate` call and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import ref

from torch import Tensor

from madakv.kept import Kept


@dataclass(frozen=True, eq=False)
class Exchange:
    """One `generate` call that read a prompt.

    Attributes:
        name: of the model, as it was loaded.
        config: of the model.
        input_ids: [B, N] int64, placeholders expanded; None of a prompt that came as embeddings.
        answer: [B, n] int64, what was generated, padded behind the end.
        kept: what stayed of the prompt; None if nobody saw it read.
        ends: tokens that end an answer.
    """

    name: str
    config: Any
    input_ids: Tensor | None
    answer: Tensor
    kept: Kept | None
    ends: frozenset[int]
    _inputs: Mapping[str, Callable[[], Tensor | None]]

    @classmethod
    def of(
        cls,
        model: Any,
        ids: Tensor | None,
        inputs: Mapping[str, Any],
        out: Any,
        kept: Kept | None,
        *,
        ends: frozenset[int],
        hold: bool,
    ) -> Exchange:
        """Of a call and what it returned.

        Args:
            model: a transformers model.
            ids: [B, N] of the prompt; None if embeddings were given in their place.
            inputs: all arguments of the call by name; those that are no tensors are left out.
            out: token ids [B, N + n] (of embeddings [B, n]), or an object that has them as `sequences`.
            kept: what stayed of the prompt.
            ends: tokens that end an answer.
            hold: whether to hold on to the inputs, pictures among them; else they are there for as long as somebody
                else does.
        """
        sequences: Tensor = getattr(out, "sequences", out)
        held: dict[str, Callable[[], Tensor | None]] = {}
        for name, value in inputs.items():
            if isinstance(value, Tensor):
                held[name] = partial(_itself, value) if hold else ref(value)
        answer = sequences if ids is None else sequences[:, ids.shape[1] :]
        name = str(getattr(model, "name_or_path", "") or type(model).__name__)
        return cls(name, model.config, ids, answer, kept, ends, held)

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What the model read besides ids, as the processor made it, pixels, grids and sizes: what is still there."""
        found = ((name, get()) for name, get in self._inputs.items())
        return {name: value for name, value in found if value is not None}


def _itself(value: Tensor) -> Tensor:
    return value
