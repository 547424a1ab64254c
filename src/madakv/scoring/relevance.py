"""Which tokens a question is after: those that it attends to more than queries usually do."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import avg_pool1d

USUAL = 64
"""How many queries tell what is usual, where a method asks for none."""
_DOUBT = 1e-3
"""Attention that tells nothing: of a token with less, nothing unusual can be said."""
_NEIGHBOURS = 8
"""Tokens to either side that a token speaks for: a fact is longer than the words that are asked for."""


def relevance(paid: Tensor, usual: Tensor, proxies: Tensor) -> Tensor:
    """How much more the question attends to each token than queries of the prompt do on average, relative to that.

    What every query looks at (the first token, punctuation) is not what is asked for, however much attention it
    gets; the ratio takes it out. Summed over heads: those that look facts up speak loudest by themselves.

    Args:
        paid: [B, H, N] fp32, the attention of all proxies together.
        usual: [B, H, N] fp32, that of a query of the prompt; see `proxy_and_context_attention`.
        proxies: [B, N] bool, the question.

    Returns:
        [B, N] fp32; zero at the question itself and at padding.
    """
    count = proxies.sum(-1).clamp_min(1)[:, None, None]
    more = (paid / count - usual).clamp_min(0) / (usual + _DOUBT)
    return more.sum(1).masked_fill(proxies, 0.0)


def spread_to_neighbours(relevance: Tensor) -> Tensor:
    """[..., N]: the average over so many neighbours to either side."""
    width = 2 * _NEIGHBOURS + 1
    rows = relevance.reshape(-1, 1, relevance.shape[-1])
    return avg_pool1d(rows, width, 1, _NEIGHBOURS).view_as(relevance)
