"""Which prompt tokens are proxies: their attention stands in for that of the answer to come."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from madakv.modality import Modality

ProxyRule = Literal["question"] | int
"""`"question"`: the text after the last non-text token; an int: that many of the last tokens."""


def newest(mask: Tensor, count: Tensor | int) -> Tensor:
    """Keep only the last `count` true entries along the last axis.

    Args:
        mask: [..., N] bool.
        count: an int, or an integer tensor that broadcasts against [..., 1].

    Returns:
        bool, the broadcast shape of both.
    """
    age = mask.flip(-1).cumsum(-1).flip(-1)
    return mask & (age <= (min(count, mask.shape[-1]) if isinstance(count, int) else count))


def spread_mask(modality: Tensor, count: int) -> Tensor:
    """Mark `count` tokens of each row at even distances, whatever their modality, the last one among them.

    Args:
        modality: [B, N] of `Modality` values.
        count: at least 1; rows that have fewer tokens mark all.

    Returns:
        [B, N] bool.
    """
    valid = modality != Modality.PADDING
    place = valid.cumsum(-1)
    tokens = place[:, -1:].clamp_min(1)
    # Token number i of n closes one of `count` equal stretches if a multiple of n / count lies in (i - 1, i].
    return valid & (place * count // tokens > (place - 1) * count // tokens)


def proxy_mask(modality: Tensor, rule: ProxyRule = "question", at_most: int = 32) -> Tensor:
    """Mark the proxy tokens of each row.

    With `"question"`, these are the text tokens after the last token of another modality; a prompt that
    ends in such a token has no question, and its last tokens of any kind serve instead.

    Args:
        modality: [B, N] of `Modality` values.
        rule: see `ProxyRule`.
        at_most: the newest so many proxies are used.

    Returns:
        [B, N] bool; a row has no proxy only if it is all padding.

    Source: MadaKV, proxy tokens P; the rule itself is ours, the paper names none.
    """
    valid = modality != Modality.PADDING
    if isinstance(rule, int):
        return newest(valid, rule)
    later_non_text = (modality > Modality.TEXT).flip(-1).cumsum(-1).flip(-1)
    question = valid & (later_non_text == 0)
    no_question = ~question.any(-1, keepdim=True)
    return newest(torch.where(no_question, valid, question), at_most)
