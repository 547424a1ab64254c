"""Modality preference adaptation: each head's budget is split by what that head attends to.

Source: MadaKV, equations for w_m, phi_m and k_m. Everything here is per batch row and KV head, and nothing
knows how many modalities there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from madakv.budget.top import top
from madakv.modality import KINDS


@dataclass(frozen=True, eq=False)
class Demand:
    """What the heads of one layer attend to.

    Attributes:
        weight: [B, H, M] fp64, w_m: psi summed over the candidates of modality m.
        tokens: [B, H, M] int64, n_m: how many candidates there are.
        wanted: [B, H, M] int64, k_m: the fewest candidates whose psi sums to theta * w_m.
    """

    weight: Tensor
    tokens: Tensor
    wanted: Tensor


def preference(psi: Tensor, modality: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """w_m and n_m of every head.

    Args:
        psi: [B, H, N] float.
        modality: [B, N] of `Modality` values.
        candidates: [B, H, N] bool, the tokens that compete (padding and protected tokens do not).

    Returns:
        [B, H, M] fp64 weights and [B, H, M] int64 counts.
    """
    member = _one_hot(modality)[:, None] & candidates[..., None]
    weight = torch.where(member, psi.to(torch.float64)[..., None], 0.0).sum(2)
    return weight, member.sum(2)


def demand(psi: Tensor, modality: Tensor, candidates: Tensor, theta: float) -> Demand:
    """w_m, n_m and k_m of every head.

    Args:
        psi, modality, candidates: as `preference`.
        theta: the share of w_m, in (0, 1], that the demanded tokens must hold.
    """
    weight, tokens = preference(psi, modality, candidates)
    order = torch.where(candidates, psi.to(torch.float64), -1.0).argsort(dim=-1, descending=True, stable=True)
    psi_sorted = psi.to(torch.float64).gather(-1, order)
    competes = candidates.gather(-1, order)
    kind = modality[:, None].expand_as(order).gather(-1, order)
    wanted = torch.zeros_like(tokens)
    for m in KINDS:
        member = competes & (kind == m)
        held = torch.where(member, psi_sorted, 0.0).cumsum(-1)
        # The target is a share of this very running sum: another order of summation could put it out of reach.
        short = member & (held < theta * held[..., -1:])
        wanted[..., m] = short.sum(-1) + (held[..., -1] > 0)
    return Demand(weight=weight, tokens=tokens, wanted=torch.minimum(wanted, tokens))


def top_of_each_modality(score: Tensor, modality: Tensor, candidates: Tensor, count: Tensor) -> Tensor:
    """Keep, per head, the `count[..., m]` best-scored candidates of each modality m; ties to the earlier.

    Args:
        score: [B, H, N] float.
        modality: [B, N] of `Modality` values.
        candidates: [B, H, N] bool.
        count: [B, H, M] int64.

    Returns:
        [B, H, N] bool.
    """
    chosen = torch.zeros_like(candidates)
    for m in KINDS:
        chosen |= top(score, candidates & (modality == m)[:, None], count[..., m])
    return chosen


def best_of_all_heads(score: Tensor, modality: Tensor, candidates: Tensor, count: Tensor) -> Tensor:
    """How many of a layer's best candidates are of each head and modality; ties to the earlier head, then token.

    Args:
        score: [B, H, N] float.
        modality: [B, N] of `Modality` values.
        candidates: [B, H, N] bool.
        count: [B] int64, how many are the best, over all heads together.

    Returns:
        [B, H, M] int64.
    """
    best = top(score.flatten(1), candidates.flatten(1), count).view_as(candidates)
    return (_one_hot(modality)[:, None] & best[..., None]).sum(2)


def _one_hot(modality: Tensor) -> Tensor:
    """[B, N] -> [B, N, M] bool, all false at padding."""
    return modality[..., None] == torch.arange(len(KINDS), device=modality.device)
