"""From scores to keep-plans: the decisions of one method about all layers of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from madakv.errors import InputError
from madakv.methods import Method, resolve
from madakv.modality import check_modality
from madakv.plan import KeepPlan
from madakv.scoring import LayerView


class Decisions:
    """Decides layer after layer.

    Args:
        method: how to decide.
        modality: [B, N] of `Modality` values.
        heads: KV heads of every layer.
        layers: how many there are.

    Attributes:
        plans: of the layers decided so far; of some methods, later layers narrow them.
    """

    def __init__(self, method: Method, modality: Tensor, *, heads: int, layers: int) -> None:
        self._allocator = method.allocator(modality, heads=heads, layers=layers)
        self.plans: list[KeepPlan] = []

    def observe(self, view: LayerView) -> None:
        """Look at the next layer beyond its scores."""
        self._allocator.observe(view)

    def foresee(self, psi: Sequence[Tensor]) -> None:
        """Look at the scores of all layers, [B, H, N] each, before the first is decided."""
        self._allocator.foresee(psi)

    def decide(self, psi: Tensor) -> KeepPlan:
        """The plan of the next layer, from its scores [B, H, N]."""
        plan = self._allocator.decide(psi)
        self.plans = [*self._allocator.narrowed(self.plans), plan]
        return self.plans[-1]

    def decide_all(self, psi: Sequence[Tensor]) -> list[KeepPlan]:
        """The plans of all layers, whose scores are known."""
        self.foresee(psi)
        for scores in psi:
            self.decide(scores)
        return self.plans


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
    decisions = Decisions(chosen, modality, heads=H, layers=len(psi))
    scores_of_layers = [scores.to(modality.device) for scores in psi]
    if chosen.waits:
        return decisions.decide_all(scores_of_layers)
    for scores in scores_of_layers:
        decisions.decide(scores)
    return decisions.plans
