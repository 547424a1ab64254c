"""KVzip (NeurIPS 2025, arXiv 2505.23416): what the model looks up while it reads the prompt once more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from madakv.budget import SharedPool
from madakv.budget.ranked import RankedPlans
from madakv.errors import ConfigurationError
from madakv.methods.base import Allocator, Method, no_scores
from madakv.methods.grouped import most_echoed
from madakv.methods.options import check_choice, check_number, is_count
from madakv.modality import Modality
from madakv.plan import KeepPlan
from madakv.scoring import LayerView, proxy_and_context_attention, proxy_mask
from madakv.scoring.relevance import USUAL, relevance

Budgets = Literal["headwise", "uniform"]
"""`"headwise"`: all heads of all layers compete; `"uniform"`: all keep equally many."""


@dataclass(frozen=True, kw_only=True)
class KVzip(Method):
    """An entry stays if the prompt, read once more behind itself, attends to it much at any point.

    The score is the maximum over the repeated tokens and the query heads of a group; neither values nor the
    question's attention count. The prompt is repeated in chunks of 2,000 tokens, and the softmax runs over the
    chunk's own keys, the first tokens', and what was read again; a short prompt is one chunk, whose softmax is the
    model's own. Budgets are two of the authors' (their code has a third, of scores made offline).

    Ours differs in that

    - no instruction goes before what is repeated ("Repeat the previous context exactly."): a method knows no
      tokenizer;
    - all chunks are repeated in one pass, so that a chunk's tokens see the repetition of those before it, and count
      it in their softmax;
    - only text can be repeated, and pictures score by what text looks up in them;
    - the question is part of the prompt, and competes with it (there, the context is evicted before it is asked);
    - the first tokens take the system prompt's place, kept as far as they fit in half of an average share; and the
      budget counts them.

    Attributes:
        echo: how many text tokens are read again, see `GroupedMethod`, which this one is helped as; `"all"`, as
            published.
        budgets: see `Budgets`.
        chunk_size: tokens of the prompt in a chunk.
        n_sink: first tokens that are kept, and are in every softmax.
    """

    name: ClassVar[str] = "kvzip"
    echo: int | Literal["auto", "all"] = "all"
    budgets: Budgets = "headwise"
    chunk_size: int = 2000
    n_sink: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.echo not in ("auto", "all") and not is_count(self.echo):
            raise ConfigurationError(
                f"echo must be 'all', 'auto' or a positive int: nothing else scores; got {self.echo!r}"
            )
        check_choice("budgets", self.budgets, Budgets)
        if not is_count(self.chunk_size):
            raise ConfigurationError(f"chunk_size must be a positive int; got {self.chunk_size!r}")
        check_number("n_sink", self.n_sink)

    def score(self, view: LayerView) -> Tensor:
        """Zeros: what is read behind the prompt decides."""
        return no_scores(view)

    @property
    def echoes(self) -> bool:
        """Whenever anything is evicted."""
        return not self.keeps_everything

    def most_echoed(self, tokens: Tensor) -> Tensor:
        """As asked for."""
        return most_echoed(self.echo, tokens)

    def score_and_seek(self, view: LayerView) -> tuple[Tensor, Tensor]:
        """What the question is after, as for ours."""
        question = proxy_mask(view.modality)
        paid, usual = proxy_and_context_attention(view, question, USUAL)
        return self.score(view), relevance(paid, usual, question)

    @property
    def echo_chunk(self) -> tuple[int, int] | None:
        """The chunks."""
        return self.chunk_size, self.n_sink

    def echo_score(self, most: Tensor) -> Tensor:
        """The maximum over the group."""
        return most.amax(2)

    def allocator(self, modality: Tensor, *, heads: int, layers: int) -> Allocator:
        """The best of all heads of all layers, or of each head."""
        plans = RankedPlans(modality, heads=heads, layers=layers, budget=self.budget)
        first = plans.first(torch.clamp(plans.average // 2, max=self.n_sink))
        if self.budgets == "headwise":
            return _Headwise(modality, plans.average, first, heads=heads, layers=layers)
        plans.protect(first)
        return _Uniform(plans)


class _Headwise(Allocator):
    def __init__(self, modality: Tensor, average: Tensor, first: Tensor, *, heads: int, layers: int) -> None:
        self._valid, self._first = (x[:, None].expand(-1, heads, -1) for x in (modality != Modality.PADDING, first))
        self._pool = SharedPool(average * heads * layers, first.sum(-1) * heads, layers)

    def decide(self, psi: Tensor) -> KeepPlan:
        self._pool.add(psi, self._valid, self._first)
        return self._pool.plans[-1]

    def narrowed(self, plans: list[KeepPlan]) -> list[KeepPlan]:
        return self._pool.plans[: len(plans)]


class _Uniform(Allocator):
    def __init__(self, plans: RankedPlans) -> None:
        self._plans = plans

    def decide(self, psi: Tensor) -> KeepPlan:
        return self._plans.keep(psi)
