"""What every method is: a frozen, printable choice of scores and budgets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from madakv.budget.ledger import check_budget
from madakv.errors import ConfigurationError
from madakv.merge import Merge
from madakv.methods.options import check_choice, check_number, check_positive
from madakv.plan import KeepPlan
from madakv.scoring import (
    GroupReduction,
    LayerView,
    over_groups,
    proxy_and_context_attention,
    proxy_attention,
)

AUTOMATIC_ECHO = 128


class Allocator(ABC):
    """Decides one prompt's keep-plans, layer after layer; holds what one layer tells the next."""

    def observe(self, view: LayerView) -> None:  # noqa: B027
        """Look at a layer beyond its scores, right after it was scored."""

    def foresee(self, psi: Sequence[Tensor]) -> None:  # noqa: B027
        """Look at all layers before the first is decided; called only if all are known by then.

        Args:
            psi: of every layer, [B, H, N] float.
        """

    @abstractmethod
    def decide(self, psi: Tensor) -> KeepPlan:
        """The plan of the next layer.

        Args:
            psi: [B, H, N] float, that layer's scores.
        """

    def narrowed(self, plans: list[KeepPlan]) -> list[KeepPlan]:
        """What the newest layer leaves of those before it; called right after it was decided.

        Args:
            plans: of the layers before it.

        Returns:
            As many plans; those that changed keep fewer of the same entries.
        """
        return plans


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A way to evict; its `repr` is its provenance in every result.

    Attributes:
        budget: share of the prompt that stays, a float in (0, 1], or entries per head and layer, an int.
        lookahead: how many generated tokens are read with the full cache, and add their attention to the scores,
            before anything is evicted. The prompt then takes its full memory until that many tokens are there.
        draft: how many tokens of the answer are drafted on the evicted cache, for the prompt to be read a second time
            and their attention added to the scores. Only `generate` drafts; it takes a second prefill, and no memory.
        answer_weight: how much a token of the answer (`draft`, `lookahead`) counts against one of the prompt.
    """

    name: ClassVar[str]
    sees_all_layers: ClassVar[bool] = False
    """Whether every layer must be scored before the first is evicted, which costs the full cache's peak."""

    budget: float | int = 0.2
    lookahead: int = 0
    draft: int = 0
    answer_weight: float = 1.0

    def __post_init__(self) -> None:
        check_budget(self.budget)
        check_number("lookahead", self.lookahead)
        check_number("draft", self.draft)
        check_positive("answer_weight", self.answer_weight)
        if self.draft and self.lookahead:
            raise ConfigurationError(
                f"lookahead={self.lookahead} and draft={self.draft}: both look at the answer; choose one"
            )

    @property
    def label(self) -> str:
        """The method as it is typed: its name and the options that differ from their defaults, budget aside."""
        differing = [
            f"{field.name}={value}"
            for field in fields(self)
            if field.name != "budget" and (value := getattr(self, field.name)) != field.default
        ]
        return ":".join([self.name, *differing])

    @property
    def waits(self) -> bool:
        """Whether layers are evicted later than right after their own prefill."""
        return self.lookahead > 0 or self.sees_all_layers

    @property
    def keeps_everything(self) -> bool:
        """Whether nothing is evicted, so that no score counts."""
        return isinstance(self.budget, float) and self.budget == 1.0

    @property
    def echoed(self) -> int:
        """How many text tokens of the prompt are read once more behind it, at most."""
        return 0

    @property
    def echo_is_optional(self) -> bool:
        """Whether models that cannot take back what is read behind the prompt go without."""
        return False

    @property
    def merge(self) -> Merge | None:
        """What becomes of evicted entries; None: they are dropped."""
        return None

    @abstractmethod
    def score(self, view: LayerView) -> Tensor:
        """psi, [B, H, N] fp32, from one layer's prefill."""

    def worth(self, view: LayerView) -> Tensor | None:  # noqa: ARG002
        """What psi is multiplied by once all queries have been heard, [B, H, N] fp32; None: nothing."""
        return None

    def later_score(self, attention: Tensor) -> Tensor:
        """What a generated token adds to psi, [B, H, N], from its attention to the prompt, [B, H, G, N]."""
        return attention.mean(2) * self.answer_weight

    def echo_score(self, most: Tensor) -> Tensor:  # noqa: ARG002
        """What an echo adds to psi, [B, H, N], from the most that any of it attends to, [B, H, G, N]."""
        raise RuntimeError(f"{self.label} has no echo")

    @abstractmethod
    def allocator(self, modality: Tensor, *, heads: int, layers: int) -> Allocator:
        """The decision maker for one prompt.

        Args:
            modality: [B, N] of `Modality` values.
            heads: KV heads of every layer.
            layers: layers that are evicted.
        """


def no_scores(view: LayerView) -> Tensor:
    """psi of methods that compare nothing: zeros, [B, H, N] fp32."""
    return torch.zeros(view.key.shape[:3], dtype=torch.float32, device=view.key.device)


@dataclass(frozen=True, kw_only=True)
class GroupedMethod(Method):
    """A method that scores by attention.

    Attributes:
        groups: how the query heads that share a KV head agree on a score.
        context: how many queries of the prompt, at even distances, say what later ones are expected to attend to;
            0: none.
        context_weight: how much the average of these counts against one token of the question.
        echo: how many text tokens of the prompt are read once more behind it, whose entries are not kept: the most
            that any of them attends to an entry says what later questions are expected to look up (the idea of
            KVzip, arXiv 2505.23416, without a second prefill); 0: none. The prompt takes as much longer to read.
            `"auto"`: AUTOMATIC_ECHO of them if the model can take them back, and else none.
        echo_weight: how much that counts against one token of the question.
    """

    groups: GroupReduction = "mean"
    context: int = 0
    context_weight: float = 1.0
    echo: int | Literal["auto"] = 0
    echo_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("groups", self.groups, GroupReduction)
        check_number("context", self.context)
        check_positive("context_weight", self.context_weight)
        if self.echo != "auto":
            check_number("echo", self.echo)
        check_positive("echo_weight", self.echo_weight)

    @abstractmethod
    def heard(self, modality: Tensor) -> Tensor:
        """[B, N] bool: the queries whose attention scores."""

    def weigh(self, attention: Tensor, view: LayerView) -> Tensor:  # noqa: ARG002
        """psi from the attention of those queries, both [B, H, N] fp32."""
        return attention

    @final
    def score(self, view: LayerView) -> Tensor:
        """What the queries of `heard` attend to, as `weigh` has it, and what the prompt's own do, if asked for."""
        if self.keeps_everything:
            return no_scores(view)
        heard = self.heard(view.modality)
        if not self.context:
            return self.weigh(proxy_attention(view, heard, self.groups), view)
        attention, expected = proxy_and_context_attention(view, heard, self.context, self.groups)
        return self.weigh(attention, view) + expected * self.context_weight

    def later_score(self, attention: Tensor) -> Tensor:
        """The mean or the maximum over the group."""
        return over_groups(attention, self.groups) * self.answer_weight

    @property
    def echoed(self) -> int:
        """As asked for."""
        return AUTOMATIC_ECHO if self.echo == "auto" else self.echo

    @property
    def echo_is_optional(self) -> bool:
        """If nobody asked for it."""
        return self.echo == "auto"

    def echo_score(self, most: Tensor) -> Tensor:
        """The mean or the maximum over the group."""
        return over_groups(most, self.groups) * self.echo_weight
