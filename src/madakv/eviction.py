"""One prompt's eviction in progress: from a layer's view to its keep-plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from madakv.errors import InputError
from madakv.methods import Allocator, Method, resolve
from madakv.modality import check_modality
from madakv.plan import KeepPlan
from madakv.scoring import LayerView


class PromptEviction:
    """Scores and plans the layers of one prompt, in order.

    Most methods decide on each layer right after its attention has run; those that wait (see `Method.waits`) collect
    the scores of all layers first, and those of the first generated tokens.

    Args:
        method: how to score and decide.
        modality: [B, N] of `Modality` values.
        layers: how many layers will be evicted.

    Attributes:
        plans: the plans decided so far; of some methods, later layers narrow them.
    """

    def __init__(self, method: Method, modality: Tensor, layers: int) -> None:
        self.method = method
        self.modality = modality
        self.layers = layers
        self.plans: list[KeepPlan] = []
        self._psi: list[Tensor] = []
        self._worth: list[Tensor | None] = []
        self._allocator: Allocator | None = None

    def again(self, method: Method, views: Sequence[LayerView]) -> PromptEviction:
        """The same scores under a method that decides otherwise, before any layer is decided.

        Args:
            method: scores as this one's does.
            views: of all layers.
        """
        other = PromptEviction(method, self.modality, self.layers)
        other._psi, other._worth = list(self._psi), list(self._worth)
        other._allocator = method.allocator(self.modality, heads=views[0].key.shape[1], layers=self.layers)
        for view in views:
            other._allocator.observe(view)
        return other

    def score(self, view: LayerView) -> int:
        """Score the next layer; returns its number among the evicted ones."""
        if self._allocator is None:
            heads = view.key.shape[1]
            self._allocator = self.method.allocator(self.modality, heads=heads, layers=self.layers)
        number = len(self._psi)
        worth = self.method.worth(view)
        self._psi.append(self.method.score(view).to(self.modality.device))
        self._worth.append(None if worth is None else worth.to(self.modality.device))
        if not bool(torch.isfinite(self._final(number)).all()):
            raise InputError(
                f"layer {number} of the evicted ones has attention that is not finite: the model overflows "
                f"in {view.key.dtype}; load it in another dtype"
            )
        self._allocator.observe(view)
        return number

    def add_later(self, layer: int, attention: Tensor) -> None:
        """Add what a token after the prompt attends to.

        Args:
            layer: which of the evicted layers.
            attention: [B, H, G, N] fp32.
        """
        self._psi[layer] = self._psi[layer] + self.method.later_score(attention).to(self.modality.device)

    def add_echo(self, layer: int, most: Tensor) -> None:
        """Add what text that was read again looks up.

        Args:
            layer: which of the evicted layers.
            most: [B, H, G, N] fp32, the most that any token of the echo attends to.
        """
        self._psi[layer] = self._psi[layer] + self.method.echo_score(most).to(self.modality.device)

    def decide(self) -> KeepPlan:
        """The plan of the next layer, on the device of the prompt's modality map."""
        if self._allocator is None:
            raise RuntimeError("no layer has been scored")
        layer = len(self.plans)
        if self.method.waits and not layer:
            self._allocator.foresee([self._final(number) for number in range(len(self._psi))])
        self.plans = _extended(self._allocator, self.plans, self._final(layer))
        if not self.method.waits:
            self._psi[layer] = self._psi[layer].new_empty(0)
            self._worth[layer] = None
        return self.plans[-1]

    def _final(self, layer: int) -> Tensor:
        """[B, H, N]: what the allocator sees."""
        psi, worth = self._psi[layer], self._worth[layer]
        return psi if worth is None else psi * worth


def _extended(allocator: Allocator, plans: list[KeepPlan], psi: Tensor) -> list[KeepPlan]:
    """The plans of all layers so far, once one more is decided."""
    plan = allocator.decide(psi)
    return [*allocator.narrowed(plans), plan]


def allocate(
    psi: Sequence[Tensor],
    modality: Tensor,
    method: str | Method = "madakv",
    *,
    budget: float | int | None = None,
    **options: Any,
) -> list[KeepPlan]:
    """Decide what every layer keeps, from scores alone: the same decision that `madakv.evict` executes.

    Args:
        psi: one [B, H, N] float tensor per layer, in the order of the layers.
        modality: [B, N] integer, 0 text, 1 image, 2 video, 3 audio, -1 padding.
        method: a name from `madakv.list_methods()` or a method object.
        budget: overrides the method's budget.
        options: further options of the method; or `compression_ratio`, 1 - budget, instead of a budget.

    Returns:
        One `KeepPlan` per layer.

    Raises:
        ConfigurationError: see `madakv.evict`.
        InputError: shapes that do not fit together, or scores that are not finite and non-negative.
    """
    chosen = resolve(method, budget=budget, **options)
    if len(psi) == 0:
        raise InputError("psi must hold one tensor per layer; got none")
    modality = torch.as_tensor(modality)
    if modality.dim() != 2 or 0 in modality.shape:
        raise InputError(f"modality must be [B, N], both at least 1; got shape {tuple(modality.shape)}")
    if modality.is_floating_point() or modality.is_complex() or modality.dtype == torch.bool:
        raise InputError(f"modality must be of an integer dtype; got {modality.dtype}")
    modality = modality.to(torch.int64)
    check_modality(modality, name="modality")
    B, N = modality.shape
    H = psi[0].shape[1] if psi[0].dim() == 3 else 0
    for layer, scores in enumerate(psi):
        if not scores.is_floating_point():
            raise InputError(f"psi[{layer}] must be of a float dtype; got {scores.dtype}")
        if scores.shape != (B, H, N) or H == 0:
            raise InputError(
                f"psi[{layer}] has shape {tuple(scores.shape)}; modality is {(B, N)} and psi[0] "
                f"{tuple(psi[0].shape)}, so [B, H, N] = {(B, H, N)} is needed"
            )
        if not bool((torch.isfinite(scores.to(torch.float32)) & (scores >= 0)).all()):
            raise InputError(f"psi[{layer}] holds values that are negative or not finite")
    allocator = chosen.allocator(modality, heads=H, layers=len(psi))
    scores_of_layers = [scores.to(modality.device) for scores in psi]
    if chosen.waits:
        allocator.foresee(scores_of_layers)
    plans: list[KeepPlan] = []
    for scores in scores_of_layers:
        plans = _extended(allocator, plans, scores)
    return plans
