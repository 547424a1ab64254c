"""Methods that score by attention, and what they may hear beside the prompt's last tokens."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from madakv.errors import ConfigurationError
from madakv.methods.base import Method, no_scores
from madakv.methods.options import check_choice, check_number, check_positive, check_proxies, check_share, is_count
from madakv.scoring import (
    GroupReduction,
    LayerView,
    ProxyRule,
    over_groups,
    proxy_and_context_attention,
    proxy_attention,
    proxy_mask,
)
from madakv.scoring.proxies import spread_mask
from madakv.scoring.relevance import USUAL, relevance

AUTOMATIC_ECHO = 1 / 6
"""Share of a prompt's tokens: with it, 3,000 tokens of a model of 135 M parameters are 1.3 times the products."""


def most_echoed(echo: int | Literal["auto", "all"], tokens: Tensor) -> Tensor:
    """How many text tokens of prompts of so many tokens the option `echo` asks for, at most; both [B] int64."""
    if echo == "all":
        return tokens
    if echo == "auto":
        return (tokens.to(torch.float64) * AUTOMATIC_ECHO).to(torch.int64)
    return torch.full_like(tokens, echo)


@dataclass(frozen=True, kw_only=True)
class GroupedMethod(Method):
    """A method that scores by attention.

    Attributes:
        echo: how many text tokens of the prompt are read once more behind it, whose entries are not kept: the most
            that any of them attends to an entry says what answers are expected to look up (the idea of KVzip, arXiv
            2505.23416, without a second prefill); 0: none. The prompt takes as much longer to read. `"all"`: all of
            the text. `"auto"`: as many as a sixth of the prompt's tokens. Of longer texts, the parts that the
            question is after are read again; see `scoring.relevance`.
        weights: how all that is heard counts; seldom touched.
    """

    @dataclass(frozen=True, kw_only=True)
    class Weights:
        """What docs/choices.md settles.

        Attributes:
            groups: how the query heads that share a KV head (GQA) agree on a score.
            context: how many queries of the prompt, at even distances, say what later ones are expected to attend
                to; 0: none.
            context_weight: how much the average of these counts against one token of the question.
            echo_weight: how much an echo counts against one token of the question.
            answer_weight: how much a token of the answer (`draft`, `lookahead`) does.
        """

        groups: GroupReduction = "mean"
        context: int = 0
        context_weight: float = 1.0
        echo_weight: float = 1.0
        answer_weight: float = 1.0

        def __post_init__(self) -> None:
            check_choice("groups", self.groups, GroupReduction)
            check_number("context", self.context)
            for name in ("context_weight", "echo_weight", "answer_weight"):
                check_positive(name, getattr(self, name))

    echo: int | Literal["auto", "all"] = 0
    weights: Weights = Weights()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.echo not in ("auto", "all"):
            check_number("echo", self.echo)
        kind = type(type(self).weights)
        if type(self.weights) is not kind:
            raise ConfigurationError(f"weights must be {kind.__qualname__}(...); got {self.weights!r}")

    def idle(self) -> dict[str, str]:
        """The weights of what is not heard."""
        idle = super().idle()
        if not self.draft and not self.lookahead:
            idle["answer_weight"] = "neither draft nor lookahead"
        if not self.echo:
            idle["echo_weight"] = "echo=0"
        if not self.weights.context:
            idle["context_weight"] = "context=0"
        return idle

    @abstractmethod
    def heard(self, modality: Tensor) -> Tensor:
        """[B, N] bool: the queries whose attention scores."""

    def weigh(self, attention: Tensor, view: LayerView) -> Tensor:  # noqa: ARG002
        """psi from the attention of those queries, both [B, H, N] fp32."""
        return attention

    def listened(self, modality: Tensor) -> Tensor:
        """Those of `heard`, and the sample of the prompt's own."""
        sample = self.weights.context or (USUAL if self.echoes else 0)
        heard = self.heard(modality)
        return heard | spread_mask(modality, sample) if sample else heard

    @final
    def score(self, view: LayerView) -> Tensor:
        """What the queries of `heard` attend to, as `weigh` has it, and what the prompt's own do, if asked for."""
        if self.keeps_everything:
            return no_scores(view)
        heard, weights = self.heard(view.modality), self.weights
        if not weights.context:
            return self.weigh(proxy_attention(view, heard, weights.groups), view)
        attention, expected = proxy_and_context_attention(view, heard, weights.context, weights.groups)
        return self.weigh(attention, view) + expected * weights.context_weight

    @final
    def score_and_seek(self, view: LayerView) -> tuple[Tensor, Tensor]:
        """What these queries are after is told by the same attention."""
        heard, weights = self.heard(view.modality), self.weights
        attention, expected = proxy_and_context_attention(view, heard, weights.context or USUAL, weights.groups)
        psi = self.weigh(attention, view)
        if weights.context:
            psi = psi + expected * weights.context_weight
        return psi, relevance(attention, expected, heard)

    def later_score(self, attention: Tensor) -> Tensor:
        """The mean or the maximum over the group."""
        return over_groups(attention, self.weights.groups) * self.weights.answer_weight

    @property
    def echoes(self) -> bool:
        """If asked for, and anything is evicted."""
        return bool(self.echo) and not self.keeps_everything

    def most_echoed(self, tokens: Tensor) -> Tensor:
        """As asked for."""
        return most_echoed(self.echo, tokens)

    def echo_score(self, most: Tensor) -> Tensor:
        """The mean or the maximum over the group."""
        return over_groups(most, self.weights.groups) * self.weights.echo_weight


@dataclass(frozen=True, kw_only=True)
class ProxyMethod(GroupedMethod):
    """A method that hears proxies of the answer: the question's tokens (MadaKV, P).

    Attributes:
        proxies: whose queries score, see `ProxyRule`.
    """

    @dataclass(frozen=True, kw_only=True)
    class Weights(GroupedMethod.Weights):
        """Further attributes.

        Attributes:
            max_proxies: the most proxies that `"question"` takes, the newest.
            protected: the most of a head's sure part that proxies take whatever their scores, the newest first.
        """

        max_proxies: int = 32
        protected: float = 0.5

        def __post_init__(self) -> None:
            super().__post_init__()
            if not is_count(self.max_proxies):
                raise ConfigurationError(f"max_proxies must be a positive int; got {self.max_proxies!r}")
            check_share("protected", self.protected)

    proxies: ProxyRule = "question"
    weights: Weights = Weights()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_proxies("proxies", self.proxies)

    def idle(self) -> dict[str, str]:
        """A limit on proxies that were counted already."""
        counted = {} if self.proxies == "question" else {"max_proxies": f"proxies={self.proxies}"}
        return super().idle() | counted

    def heard(self, modality: Tensor) -> Tensor:
        """The proxies."""
        return proxy_mask(modality, self.proxies, self.weights.max_proxies)

    def protectable(self, share: Tensor) -> Tensor:
        """How many of a head's proxies are kept whatever their scores, of a share of entries; int64, as the share."""
        return part(share, self.weights.protected)


def part(entries: Tensor, share: float) -> Tensor:
    """The whole entries of a share of int64 entries."""
    return (entries.to(torch.float64) * share).to(torch.int64)
