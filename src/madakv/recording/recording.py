"""What attention did while one prompt was read and answered: looked at on the way, and held beside the cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from madakv.attention import ragged_partial, weights_on_entries, weights_on_tail
from madakv.cache import LayerMemory
from madakv.scoring import LayerView
from madakv.scoring.attention import proxy_attention
from madakv.scoring.proxies import proxy_mask

MOST_STEPS = 256
"""Tokens behind a prompt whose attention is noted."""


@dataclass(frozen=True, eq=False)
class Looked:
    """What one token of the answer attended to in one layer.

    Attributes:
        entries: [T] fp16, over the kept entries in the order of the layer's plan, the mean over the query heads of a
            KV head.
        answer: [B, H] fp32, what went to tokens behind the prompt, itself among them.
    """

    entries: Tensor
    answer: Tensor


class Recording:
    """Looks on while one prompt is read and answered.

    It changes nothing of what is computed. Tensors stay on the devices that they were made on.

    Args:
        modality: [B, N] of `Modality` values.

    Attributes:
        attention: for each evicted layer [B, H, N] fp16, the attention that the question pays to each prompt token:
            the mean over its tokens (`proxy_mask`, at most 32) and over the query heads of a KV head. With sinks, or
            where tokens behind are seen, a head's sum is below 1. It is taken before anything is evicted, and is the
            same whatever the method.
        steps: what the pass that read token t behind the prompt (from 1 on) looked at in each evicted layer, which is
            the one that chose token t + 1. Passes are missing that read several tokens, or are heard by a method
            (`lookahead`, triggers that decide again), and those behind `MOST_STEPS`.
    """

    def __init__(self, modality: Tensor) -> None:
        self.attention: list[Tensor] = []
        self.steps: dict[int, list[Looked]] = {}
        self._proxies = proxy_mask(modality)

    @torch.no_grad()
    def read(self, view: LayerView) -> None:
        """Look at the next layer's prefill, of the prompt alone."""
        proxies = self._proxies.to(view.key.device)
        paid = proxy_attention(view, proxies)
        self.attention.append((paid / proxies.sum(-1).clamp_min(1)[:, None, None]).half())

    @torch.no_grad()
    def step(
        self,
        number: int,
        query: Tensor,
        memory: LayerMemory,
        *,
        scaling: float,
        mask: Tensor | None,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> None:
        """Look at a pass of one token behind the prompt, in a layer.

        Args:
            number: of the layer among those that are evicted.
            query: [B, Hq, Q, Dk]; passes of several tokens, such as a next turn, are not noted.
            memory: of the layer; the token is in its tail.
            scaling, mask, softcap, sinks: see `ragged_attention`.
        """
        if query.shape[2] != 1:
            return
        entries, tail = memory.kept, memory.tail
        if number == 0 and len(self.steps) < MOST_STEPS:
            self.steps[tail.length] = []
        if (looked := self.steps.get(tail.length)) is None or len(looked) != number:
            return
        shared: dict[str, Any] = {"scaling": scaling, "softcap": softcap}
        lse = ragged_partial(query, entries, tail, mask=mask, sinks=sinks, **shared).lse
        on_entries = weights_on_entries(query, entries, lse, **shared)[:, :, 0].mean(-1)
        on_tail = weights_on_tail(query, tail, lse, mask=mask, **shared)[:, :, :, 0].sum(-1)
        looked.append(Looked(on_entries.half(), on_tail.mean(-1)))
