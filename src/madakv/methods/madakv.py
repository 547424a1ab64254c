"""What we make of MadaKV's idea: all heads of all layers compete. The paper's own method is `madakv_paper.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from madakv.budget import (
    SharedPool,
    apportion,
    best_of_all_heads,
    per_head,
    preference,
    prompt_entries,
    top_of_each_modality,
)
from madakv.errors import ConfigurationError
from madakv.methods.base import Allocator
from madakv.methods.grouped import ProxyMethod, part
from madakv.methods.options import check_choice, check_flag, check_share, check_width
from madakv.methods.renamed import warn_renamed
from madakv.modality import Modality
from madakv.plan import KeepPlan
from madakv.scoring import LayerView
from madakv.scoring.pooling import pool
from madakv.scoring.proxies import newest
from madakv.scoring.values import output_norms

Shape = Literal["ragged", "layers-even", "heads-even", "rectangular"]
"""Which heads may differ in how many entries they keep; see `MadaKV.shape`."""


@dataclass(frozen=True, kw_only=True)
class MadaKV(ProxyMethod):
    """Entries stay where they add most to what the model computes: in whatever layer, head and modality.

    The paper (ACL 2025, arXiv 2506.15724) splits a head's share between modalities by the attention they get (MPA),
    and lets layers hand on what they spare (HCC). Ours takes both to their end: every head is sure of a part, split
    between modalities as the paper has it, the newest proxies first; for all beyond, the entries of all heads of all
    layers compete. An entry's score is the attention it gets, times how far its value can move the residual stream,
    |o_proj v|: units that heads and layers share. Over the whole prompt at most `prompt_entries(budget, N) * H * L`
    entries stay, and no more while it is read: a layer that is read narrows those before it, and the outcome is that
    of a choice among all layers at once (`budget/pool.py`).

    Attributes:
        budget, lookahead, draft: see `Method`.
        echo: see `GroupedMethod`.
        proxies: see `ProxyMethod`.
        safeguard: share of its even part, and of that part's split between modalities, that each head is sure of.
        shape: how many entries heads keep. `"ragged"`: as many as competition among all layers leaves them.
            `"layers-even"`: all layers keep equally many, and the heads of one compete for what is beyond their
            safeguards (as in AdaKV, arXiv 2407.11550). `"heads-even"`: layers keep as many as competition leaves
            them, and the heads of one share that evenly. `"rectangular"`: all heads keep equally many.
        weights: see `Weights`.
    """

    @dataclass(frozen=True, kw_only=True)
    class Weights(ProxyMethod.Weights):
        """Further attributes.

        Attributes:
            values: whether scores are multiplied by how far a token's value can move the residual stream.
            text_pooling: width of the max-pool over neighbouring text tokens' scores, 1 = none.
        """

        context: int = 64
        context_weight: float = 0.25
        echo_weight: float = 4.0
        answer_weight: float = 4.0
        values: bool = True
        text_pooling: int = 1

        def __post_init__(self) -> None:
            super().__post_init__()
            check_flag("values", self.values)
            check_width("text_pooling", self.text_pooling)

    name: ClassVar[str] = "madakv"
    echo: int | Literal["auto"] = "auto"
    safeguard: float = 0.4
    shape: Shape = "ragged"
    weights: Weights = Weights()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("safeguard", self.safeguard)
        check_choice("shape", self.shape, Shape)

    @classmethod
    def modern(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """`compensation` was `shape`, and the paper's."""
        modern = super().modern(options)
        old = modern.pop("compensation", "shared")
        for option, is_the_papers in (("compensation", old not in ("shared", "none")), ("theta", "theta" in modern)):
            if is_the_papers:
                raise ConfigurationError(f"{cls.name!r} has no {option}={options[option]!r}: 'madakv-paper' has")
        if "compensation" not in options:
            return modern
        if "shape" in modern:
            raise ConfigurationError("shape was given twice: compensation is its former name")
        if old == "shared":
            shape: Shape = "ragged"
        elif modern.get("safeguard") == 1:
            # Every head was sure of all of its even part.
            shape = "rectangular"
            del modern["safeguard"]
        else:
            shape = "layers-even"
        warn_renamed(cls.__name__, f"compensation={old!r}", f"shape={shape!r}")
        return modern | {"shape": shape}

    def idle(self) -> dict[str, str]:
        """Floors where none are needed, and what is sure in them where nothing is."""
        idle = super().idle()
        if self.shape == "rectangular":
            idle["safeguard"] = "shape=rectangular"
        elif self.shape in ("ragged", "heads-even") and not self.safeguard:
            idle["protected"] = "safeguard=0.0"
        return idle

    def worth(self, view: LayerView) -> Tensor | None:
        """How far values can move the residual stream, if that counts."""
        return output_norms(view) if self.weights.values and not self.keeps_everything else None

    def allocator(self, modality: Tensor, *, heads: int, layers: int) -> Allocator:
        """Competition among all layers, within them, or none."""
        if self.shape == "ragged":
            return _Pooled(self, modality, heads, layers)
        if self.shape == "heads-even":
            return _HeadsEven(self, modality, heads, layers)
        return _Even(self, modality, heads)


class _Split(Allocator):
    """Entries that every head gets alike, protected proxies first, the others split between modalities."""

    def __init__(self, method: MadaKV, modality: Tensor, heads: int, share: Tensor) -> None:
        self.method = method
        self.modality = modality
        self.valid = (modality != Modality.PADDING)[:, None].expand(-1, heads, -1)
        self.share = share
        self.protected = newest(
            method.heard(modality)[:, None].expand_as(self.valid), method.protectable(share)[:, None, None]
        )
        self.candidates = self.valid & ~self.protected

    def ranking(self, psi: Tensor) -> Tensor:
        """[B, H, N]: psi, for text tokens pooled over text neighbours."""
        return pool(psi, self.modality, self.method.weights.text_pooling, scope="text")

    def split(self, psi: Tensor) -> tuple[Tensor, Tensor]:
        """How many candidates of each modality a head's share pays for, and how many there are; [B, H, M] int64."""
        weight, tokens = preference(psi, self.modality, self.candidates)
        return apportion(self.share[:, None] - self.protected.sum(-1), weight, tokens), tokens

    def keep(self, ranking: Tensor, count: Tensor) -> Tensor:
        """[B, H, N] bool: the protected tokens, and so many of the best of each modality."""
        return self.protected | top_of_each_modality(ranking, self.modality, self.candidates, count)


class _Pooled(_Split):
    """All heads of all layers compete for what lies above their safeguards."""

    def __init__(self, method: MadaKV, modality: Tensor, heads: int, layers: int) -> None:
        average = prompt_entries(method.budget, (modality != Modality.PADDING).sum(-1))
        super().__init__(method, modality, heads, part(average, method.safeguard))
        self.pool = SharedPool(average * heads * layers, self.share * heads, layers)

    def decide(self, psi: Tensor) -> KeepPlan:
        ranking = self.ranking(psi)
        split, _ = self.split(psi)
        self.add(ranking, self.keep(ranking, split))
        return self.plans[-1]

    def add(self, ranking: Tensor, sure: Tensor) -> None:
        """Let one more layer compete; both [B, H, N], the second bool."""
        self.pool.add(ranking, self.valid, sure)

    @property
    def plans(self) -> list[KeepPlan]:
        """Of the layers so far."""
        return self.pool.plans

    def narrowed(self, plans: list[KeepPlan]) -> list[KeepPlan]:
        return self.plans[: len(plans)]


class _HeadsEven(_Pooled):
    """Layers get what competition leaves them, and each of their heads an even part of it.

    What a layer gets only becomes less while later ones are read, and a head's smaller part lies in its larger one.
    """

    def __init__(self, method: MadaKV, modality: Tensor, heads: int, layers: int) -> None:
        super().__init__(method, modality, heads, layers)
        self._heads = heads
        self._plans: list[KeepPlan] = []
        # Of every entry of these plans, how many of its own head are better.
        self._better: list[Tensor] = []

    def add(self, ranking: Tensor, sure: Tensor) -> None:
        super().add(ranking, sure)
        own = ranking.masked_fill(sure, float("inf")).masked_fill(~self.valid, float("-inf"))
        better = own.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        self._plans.append(KeepPlan.from_mask(self.valid))
        self._better.append(better[self.valid])
        for layer, pooled in enumerate(self.pool.plans):
            self._narrow(layer, per_head(pooled.counts.sum(-1), self._heads))

    def _narrow(self, layer: int, share: Tensor) -> None:
        """Keep no more of a layer's entries than each head's share, [B, H] int64."""
        plan = self._plans[layer]
        if not torch.equal(plan.counts, share):
            stays = self._better[layer] < share.flatten()[plan.owners()]
            self._plans[layer], self._better[layer] = plan.subset(stays), self._better[layer][stays]

    @property
    def plans(self) -> list[KeepPlan]:
        return self._plans


class _Even(_Split):
    """Layers keep equally many; their heads do, or compete for what lies above their safeguards."""

    def __init__(self, method: MadaKV, modality: Tensor, heads: int) -> None:
        super().__init__(
            method, modality, heads, prompt_entries(method.budget, (modality != Modality.PADDING).sum(-1))
        )

    def decide(self, psi: Tensor) -> KeepPlan:
        ranking = self.ranking(psi)
        split, tokens = self.split(psi)
        if self.method.shape == "layers-even":
            split = self._compete(ranking, split, tokens)
        return KeepPlan.from_mask(self.keep(ranking, split))

    def _compete(self, ranking: Tensor, split: Tensor, tokens: Tensor) -> Tensor:
        """[B, H, M] int64: what heads keep once they have competed for all beyond their safeguard."""
        sure = self.method.safeguard
        total = split.sum((1, 2))
        best = best_of_all_heads(ranking, self.modality, self.candidates, total)
        wanted = sure * split.to(torch.float64) + (1 - sure) * best.to(torch.float64)
        free = apportion(total, wanted.sum(-1), tokens.sum(-1))
        return apportion(free, wanted, tokens)
