"""How transformers' attention modules turn queries and keys by their positions."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from madakv.errors import UnsupportedModelError
from madakv.scoring import Rotary

_TURN = "apply_rotary_pos_emb"
_TURNS_ALL = re.compile(rf"^ {{8}}query_states, key_states = {_TURN}\(query_states, key_states, cos, sin\)$", re.M)
"""How a module turns the whole of all its queries and keys, whatever layer it is of."""
BY_LENGTH = ("dynamic", "longrope")
"""Kinds of RoPE whose frequencies depend on the longest prompt so far: asking for others would change the model."""


@dataclass(frozen=True, eq=False)
class Rope:
    """What turns a prompt's tokens.

    Attributes:
        embedding: the decoder's module that makes cos and sin of positions, if it has one.
        positions: as the decoder was handed them, [B or 1, N] or [3 or 4, B or 1, N]; None: tokens are counted.
        tokens: N.
    """

    embedding: torch.nn.Module | None
    positions: Tensor | None
    tokens: int

    def of(self, module: torch.nn.Module) -> Rotary:
        """The rotation of one attention module; what is not known is refused where it is asked for."""

        def waves(positions: Tensor) -> tuple[Tensor, Tensor]:
            return self._waves(module, positions)

        def turn(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            # Queries and keys are turned alike; of keys, there are none.
            turned: Tensor = getattr(sys.modules[type(module).__module__], _TURN)(states, states[:, :0], cos, sin)[0]
            return turned

        positions = torch.arange(self.tokens)[None] if self.positions is None else self.positions
        return Rotary(turn, waves, positions)

    def _waves(self, module: torch.nn.Module, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin in fp32.

        Raises:
            UnsupportedModelError: the module turns its queries in another way than most, or nobody knows how.
        """
        name = type(module).__name__
        if self.embedding is None or not _turns_all(type(module).forward):
            raise UnsupportedModelError(f"{name} turns queries by positions in a way of its own, or not at all")
        options: dict[str, Any] = {}
        kind = getattr(self.embedding, "rope_type", "default")
        if "layer_type" in inspect.signature(self.embedding.forward).parameters:
            options["layer_type"] = getattr(module, "layer_type", "full_attention")
            kind = kind[options["layer_type"]]
        if kind in BY_LENGTH:
            raise UnsupportedModelError(f"{name} has RoPE of the kind {kind!r}, which changes with what is read")
        like = next(self.embedding.buffers())
        told: tuple[Tensor, Tensor] = self.embedding(
            torch.empty(0, dtype=torch.float32, device=like.device), positions.to(like.device), **options
        )
        return told


@cache
def _turns_all(forward: Callable[..., Any]) -> bool:
    """Whether its source says so; some turn a part of each query, or those of some layers."""
    try:
        return _TURNS_ALL.search(inspect.getsource(forward)) is not None
    except (OSError, TypeError):
        return False
