"""How the question's attention is spread over one prompt: within each modality, between them, over layers.

a(i) is the attention that the question pays to token i of the prompt, in one head; X_m are the tokens of modality m,
N all tokens but padding, and w_m = sum of a(i) over X_m the preference weight (MadaKV, equation of MPA).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from madakv.modality import KINDS

THETA = 0.9
"""The share of a modality's attention that its demand has to hold, as in the paper's HCC."""

_ROUNDING = 1e-6
"""Sums that miss their goal by this share have reached it: else ten equal tokens would hold 90 % in ten."""

Floats = NDArray[np.float64]


def concentration(attention: NDArray[np.floating], member: NDArray[np.bool_], shares: Floats) -> Floats:
    """What share of a modality's attention its most attended tokens hold: a Lorenz curve from the top.

    With a_1 >= a_2 >= ... the attention to the n tokens of X_m, C(k / n) = (a_1 + ... + a_k) / w_m, and straight
    lines between these points.

    Args:
        attention: [L, H, N] float, non-negative.
        member: [N] bool, the tokens of X_m.
        shares: [S] fp64 in [0, 1], ascending: of X_m, where the curve is told.

    Returns:
        [L, H, S] fp64; NaN for a head that pays X_m nothing, or if there is no such token.
    """
    held = _held(attention, member)
    n = held.shape[-1] - 1
    place = shares * n
    before = np.minimum(place.astype(np.int64), n - 1)
    start = held[..., before]
    with np.errstate(invalid="ignore", divide="ignore"):
        curve: Floats = (start + (held[..., before + 1] - start) * (place - before)) / held[..., -1:]
    return curve


def demand(attention: NDArray[np.floating], member: NDArray[np.bool_], theta: float = THETA) -> Floats:
    """k_m: the fewest tokens of X_m whose attention sums to theta * w_m at least (MadaKV, HCC).

    Args:
        attention: [L, H, N] float, non-negative.
        member: [N] bool, the tokens of X_m.
        theta: in (0, 1].

    Returns:
        [L, H] fp64, whole numbers; NaN for a head that pays X_m nothing, or if there is no such token.
    """
    held = _held(attention, member)
    short = held < theta * (1 - _ROUNDING) * held[..., -1:]
    return np.where(held[..., -1] > 0, short.sum(-1), np.nan)


def preference(attention: NDArray[np.floating], modality: NDArray[np.int64]) -> Floats:
    """w_m over the sum of all w: how a head's attention to the prompt is split between modalities.

    Args:
        attention: [L, H, N] float, non-negative.
        modality: [N] of `Modality` values.

    Returns:
        [L, H, 4] fp64, of text, image, video and audio; sums to 1. NaN for a head that pays nothing to any.
    """
    weights = attention.astype(np.float64) @ _members(modality).T
    with np.errstate(invalid="ignore"):
        split: Floats = weights / weights.sum(-1, keepdims=True)
    return split


def token_shares(modality: NDArray[np.int64]) -> Floats:
    """[4] fp64: the share of the prompt's tokens, padding aside, that is text, image, video and audio."""
    counts = _members(modality).sum(-1)
    shares: Floats = counts / counts.sum()
    return shares


def per_token(preference: Floats, shares: Floats) -> Floats:
    """The preference corrected for how many tokens a modality has: what one token of each gets, as a split again.

    c_m = (w_m / |X_m|) / (sum over modalities of w / |X|). Of two modalities, 1/2 says that a token of the one gets
    as much as one of the other, however many there are.

    Args:
        preference: [L, H, M] fp64, see `preference`.
        shares: [M] fp64, see `token_shares`; a modality without tokens gets 0.

    Returns:
        [L, H, M] fp64, sums to 1.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        each = np.where(shares > 0, preference / shares, 0.0)
        split: Floats = each / each.sum(-1, keepdims=True)
    return split


def interval_over_documents(values: Floats, documents: list[str], *, draws: int = 2000, seed: int = 0) -> Floats:
    """95 % interval of a mean, by bootstrap: documents are drawn with replacement, each with all its values.

    Args:
        values: [n] fp64.
        documents: n names; values of one document are drawn together, and each document counts by their number.
        draws: how many means are drawn.
        seed: of the draws.

    Returns:
        [2] fp64, low and high; NaN for fewer than two documents, which say nothing about others.
    """
    names, owner = np.unique(documents, return_inverse=True)
    if len(names) < 2:
        return np.full(2, np.nan)
    sums = np.bincount(owner, weights=values)
    sizes = np.bincount(owner)
    times = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    interval: Floats = np.percentile((times @ sums) / (times @ sizes), [2.5, 97.5])
    return interval


def _held(attention: NDArray[np.floating], member: NDArray[np.bool_]) -> Floats:
    """[L, H, n + 1] fp64: what the 0, 1, ... n most attended of n tokens get."""
    own = -np.sort(-attention[..., member].astype(np.float64), axis=-1)
    held: Floats = np.concatenate([np.zeros((*own.shape[:2], 1)), own.cumsum(-1)], axis=-1)
    return held


def _members(modality: NDArray[np.int64]) -> Floats:
    """[4, N] fp64: 1 where a token is text, image, video or audio."""
    return np.stack([modality == kind for kind in KINDS]).astype(np.float64)
