"""Which text of a prompt is read once more behind it: all of it, or what the question is after."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from madakv.modality import Modality
from madakv.scoring.relevance import spread_to_neighbours

_RUN = 16
"""Tokens that are read again in one piece: a fact is only found by its own words."""


def fits(modality: Tensor, most: Tensor) -> bool:
    """Whether all text of every row may be read again, so that nothing has to be chosen.

    Args:
        modality: [B, N] of `Modality` values.
        most: [B] int64, tokens of each row.
    """
    return bool(((modality == Modality.TEXT).sum(-1) <= most).all())


def echo_places(modality: Tensor, most: Tensor, relevance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Which text tokens of each row are read again.

    Args:
        modality: [B, N] of `Modality` values.
        most: [B] int64, tokens of each row.
        relevance: [B, N] fp32. Of longer texts, the runs of 16 tokens are taken which have the most of it somewhere;
            None: no text is longer.

    Returns:
        places [B, E] int64 in ascending order; and [B, E] bool, false behind a row's last one.
    """
    text = modality == Modality.TEXT
    tokens = text.sum(-1)
    if relevance is not None and not fits(modality, most):
        text = text & _chosen(text, torch.minimum(most, tokens), relevance)
        tokens = text.sum(-1)
    E = int(tokens.max())
    places = text.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[:, :E]
    return places, torch.arange(E, device=text.device) < tokens[:, None]


def _chosen(text: Tensor, most: Tensor, relevance: Tensor) -> Tensor:
    """[B, N] bool: so many tokens of the most relevant runs of each row's text."""
    N = text.shape[1]
    # Text moves together, so that a run that pictures lie in is one.
    order = text.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)
    own = text.gather(1, order)
    told = spread_to_neighbours(relevance.gather(1, order) * own).masked_fill(~own, -1.0)
    runs = pad(told, (0, -N % _RUN), value=-1.0).unflatten(1, (-1, _RUN)).amax(-1)
    rank = runs.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    rank = rank.repeat_interleave(_RUN, 1)[:, :N]
    # All of the runs that fit, and the beginning of the next one.
    turn = (rank * _RUN + torch.arange(N, device=text.device) % _RUN).masked_fill(~own, N + _RUN)
    taken = own & (turn.argsort(dim=-1, stable=True).argsort(dim=-1) < most[:, None])
    return torch.zeros_like(text).scatter(1, order, taken)
