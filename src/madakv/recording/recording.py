"""What attention did while one prompt was read and answered: looked at on the way, and held beside the cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from madakv.attention import ragged_partial, weights_on_entries, weights_on_tail
from madakv.cache import LayerMemory
from madakv.modality import Modality
from madakv.scoring import LayerView
from madakv.scoring.attention import over_groups, proxy_attention
from madakv.scoring.proxies import proxy_mask

MOST_STEPS = 256
"""Tokens of an answer whose attention is noted; those behind are not."""


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

    It changes nothing of what is computed. Tensors stay on the devices that they were made on until `settled`.

    Args:
        modality: [B, N] of `Modality` values.
        layers: how many are evicted.

    Attributes:
        attention: for each evicted layer [B, H, N] fp16, the attention that the question pays to each prompt token:
            the mean over its tokens (`proxy_mask`, at most 32) and over the query heads of a KV head. With sinks, or
            where tokens behind are seen, a head's sum is below 1. It is taken before anything is evicted, and is the
            same whatever the method.
        asked: for each evicted layer [B, H] int64, entries that it was given when it was decided, before layers
            behind it took any away.
        steps: for each token of the answer, what it looked at in each evicted layer.
        skipped: tokens of the answer behind `MOST_STEPS`.
    """

    def __init__(self, modality: Tensor, layers: int) -> None:
        self.attention: list[Tensor] = []
        self.asked: list[Tensor] = []
        self.steps: list[list[Looked]] = []
        self.skipped = 0
        self._layers = layers
        self._proxies = proxy_mask(modality)
        self._valid = modality != Modality.PADDING

    @torch.no_grad()
    def read(self, view: LayerView) -> None:
        """Look at the next layer's prefill, of the prompt alone."""
        proxies = self._proxies.to(view.key.device)
        paid = proxy_attention(view, proxies)
        self.attention.append((paid / proxies.sum(-1).clamp_min(1)[:, None, None]).half())

    def decided(self, counts: Tensor) -> None:
        """Note what the next layer was given, [B, H] int64."""
        self.asked.append(counts)

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
        if number == 0:
            if len(self.steps) == MOST_STEPS:
                self.skipped += 1
            else:
                self.steps.append([])
        if self.skipped:
            return
        entries, tail = memory.kept, memory.tail
        shared: dict[str, Any] = {"scaling": scaling, "softcap": softcap}
        lse = ragged_partial(query, entries, tail, mask=mask, sinks=sinks, **shared).lse
        on_entries = weights_on_entries(query, entries, lse, **shared)[:, :, 0].mean(-1)
        on_tail = weights_on_tail(query, tail, lse, mask=mask, **shared)[:, :, :, 0].sum(-1)
        self.steps[-1].append(Looked(on_entries.half(), over_groups(on_tail[..., None], "mean")[..., 0]))
