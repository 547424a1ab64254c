"""What every method is: a frozen, printable choice of scores and budgets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from madakv.budget.entries import check_budget
from madakv.errors import ConfigurationError
from madakv.merge import Merge
from madakv.methods.options import check_number
from madakv.methods.renamed import Renaming, warn_renamed
from madakv.plan import KeepPlan
from madakv.scoring import LayerView


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
class Method(metaclass=Renaming):
    """A way to evict; its `repr` is its provenance in every result.

    Attributes:
        budget: share of the prompt that stays, a float in (0, 1], or entries per head and layer on average, an int.
            A share is never exceeded: what it is of each row's tokens is rounded down to whole entries per head and
            layer. Less than one entry is none: of such a prompt nothing is kept, and answers see only themselves.
        lookahead: how many generated tokens are read with the full cache, and add their attention to the scores,
            before anything is evicted. The prompt then takes its full memory until that many tokens are there.
        draft: how many tokens of the answer are drafted on the evicted cache, for the prompt to be read a second time
            and their attention added to the scores. Only `generate` drafts; it takes a second prefill, and no memory.
    """

    name: ClassVar[str]
    sees_all_layers: ClassVar[bool] = False
    """Whether every layer must be scored before the first is evicted, which costs the full cache's peak."""
    decides_once: ClassVar[bool] = False
    """Whether it scores by what later tokens do not have, so that no trigger can decide again."""
    renamed: ClassVar[Mapping[str, str]] = {}
    """Options by their former names, which work for one more version."""

    budget: float | int = 0.2
    lookahead: int = 0
    draft: int = 0

    def __post_init__(self) -> None:
        check_budget(self.budget)
        check_number("lookahead", self.lookahead)
        check_number("draft", self.draft)
        if self.draft and self.lookahead:
            raise ConfigurationError(
                f"lookahead={self.lookahead} and draft={self.draft}: both look at the answer; choose one"
            )

    @classmethod
    def modern(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options by their present names; warns of former ones."""
        modern: dict[str, Any] = {}
        for name, value in options.items():
            new = cls.renamed.get(name, name)
            if new in modern or (new != name and new in options):
                raise ConfigurationError(f"{new} was given twice: {name} is its former name")
            if new != name:
                warn_renamed(cls.__name__, name, new)
            modern[new] = value
        return modern

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Every option by the name it is typed with, those of `weights` behind the others."""
        return flat({field.name: field.default for field in fields(cls)})

    @property
    def options(self) -> dict[str, Any]:
        """The values of `defaults`."""
        return flat({field.name: getattr(self, field.name) for field in fields(self)})

    @property
    def label(self) -> str:
        """The method as it is typed: its name and the options that differ from their defaults, budget aside."""
        defaults = self.defaults()
        differing = [
            f"{option}={value}"
            for option, value in self.options.items()
            if option != "budget" and value != defaults[option]
        ]
        return ":".join([self.name, *differing])

    def idle(self) -> dict[str, str]:
        """Options that change nothing as the others stand, with the reason, such as `draft=0`.

        `resolve` refuses them if they differ from their defaults: whoever set them meant something else.
        """
        return {}

    @property
    def waits(self) -> bool:
        """Whether layers are evicted later than right after their own prefill."""
        return self.lookahead > 0 or self.sees_all_layers

    @property
    def keeps_everything(self) -> bool:
        """Whether nothing is evicted, so that no score counts."""
        return isinstance(self.budget, float) and self.budget == 1.0

    @property
    def echoes(self) -> bool:
        """Whether text of the prompt is read once more behind it."""
        return False

    def most_echoed(self, tokens: Tensor) -> Tensor:
        """How many text tokens of prompts of so many tokens are read again, at most; both [B] int64."""
        return torch.zeros_like(tokens)

    @property
    def echo_chunk(self) -> tuple[int, int] | None:
        """Of an echo in chunks, the prompt's tokens in each, and how many first ones are in all; None: no chunks."""
        return None

    @property
    def merge(self) -> Merge | None:
        """What becomes of evicted entries; None: they are dropped."""
        return None

    def listened(self, modality: Tensor) -> Tensor:
        """[B, N] bool: the queries that `score` looks at. An engine that reads a prompt in chunks keeps no others."""
        return torch.ones_like(modality, dtype=torch.bool)

    @abstractmethod
    def score(self, view: LayerView) -> Tensor:
        """psi, [B, H, N] fp32, from one layer's prefill."""

    def score_and_seek(self, view: LayerView) -> tuple[Tensor, Tensor]:
        """The same psi, and what the question is after, [B, N] fp32: where not all text is read again."""
        raise RuntimeError(f"{self.label} has no echo, and looks for nothing at {tuple(view.modality.shape)}")

    def worth(self, view: LayerView) -> Tensor | None:  # noqa: ARG002
        """What psi is multiplied by once all queries have been heard, [B, H, N] fp32; None: nothing."""
        return None

    def later_score(self, attention: Tensor) -> Tensor:
        """What a generated token adds to psi, [B, H, N], from its attention to the prompt, [B, H, G, N].

        It is all that later tokens themselves score by where a trigger decides again; `score` never sees them.
        """
        return attention.mean(2)

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


def flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with those of their `weights`, if they have any, behind them."""
    own = dict(options)
    weights = own.pop("weights", None)
    return own if weights is None else own | {field.name: getattr(weights, field.name) for field in fields(weights)}
