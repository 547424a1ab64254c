"""How a layer turns queries and keys by their positions (RoPE), and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

AXES = 3
"""Of M-RoPE's positions: time, height and width; before them may come the plain count of tokens."""


@dataclass(frozen=True, eq=False)
class Rotary:
    """The rotation of one layer; nothing is computed before it is asked for.

    Attributes:
        turn: states [B, h, n, D], cos and sin, each [B or 1, n or 1, R], to the turned states; with sin negated, it
            turns back.
        waves: positions to cos and sin, both [B or 1, n, R] and fp32.
        positions: [B or 1, N], or [3 or 4, B or 1, N] with M-RoPE, of the tokens.
    """

    turn: Callable[[Tensor, Tensor, Tensor], Tensor]
    waves: Callable[[Tensor], tuple[Tensor, Tensor]]
    positions: Tensor

    def prefix(self, length: int) -> Rotary:
        """Of the first tokens alone."""
        return replace(self, positions=self.positions[..., :length])

    def turned_back(self, query: Tensor) -> Tensor:
        """The queries of all tokens, [B, h, N, D], as they were before RoPE; fp32."""
        cos, sin = self.waves(self.positions[-AXES:] if self.positions.dim() == 3 else self.positions)
        # Scaled rotations (YaRN) are undone with their scale.
        norm = cos.square() + sin.square()
        return self.turn(query.float(), cos / norm, -sin / norm)

    def met_ahead(self, key: Tensor, count: int) -> Tensor:
        """Keys [B, h, n, D] as queries that are not turned meet them, averaged over the next positions; fp32.

        With R the mean rotation of these positions, (R q) . k = q . (R^T k); this is R^T k.

        Args:
            key: after RoPE.
            count: how many positions behind the prompt's last are averaged.
        """
        last = self.positions.amax(-1)
        if last.dim() == 2:
            # The axes of a picture end apart; text goes on behind the farthest.
            last = last[-AXES:].amax(0)
        cos, sin = self.waves(last[:, None] + torch.arange(1, count + 1, device=last.device))
        return self.turn(key.float(), cos.mean(1, keepdim=True), -sin.mean(1, keepdim=True))
