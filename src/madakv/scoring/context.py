"""What queries still to come are expected to attend to, told from those that the prompt itself makes.

The question's attention knows nothing of what the answer, or the next question, will look for. The prompt's own
tokens have looked for things too, and what they found useful others will.
"""

from __future__ import annotations

import torch
from torch import Tensor

from madakv.modality import Modality
from madakv.scoring.attention import GroupReduction, attention_paid, over_groups, proxy_attention
from madakv.scoring.proxies import spread_mask
from madakv.scoring.view import LayerView

_DOUBT = 1 / 16
"""How many queries, as a share of all, count as having ignored a token beside those that could see it."""


def proxy_and_context_attention(
    view: LayerView, proxies: Tensor, queries: int, groups: GroupReduction = "mean"
) -> tuple[Tensor, Tensor]:
    """psi, and the average attention of a sample of the prompt's queries.

    Early tokens are seen by more queries than late ones; each token's attention is divided by how many of the sample
    come after it or are it, so that this is no advantage, and what few have seen is trusted less.

    Args:
        view: the layer's prefill.
        proxies: [B, N] bool.
        queries: size of the sample, at even distances over the prompt.
        groups: how query heads of a group combine.

    Returns:
        psi as of `proxy_attention`; and [B, H, N] fp32. Both are zero at padding.
    """
    sample = spread_mask(view.modality, queries)
    psi, paid = over_groups(attention_paid(view, torch.stack([proxies, sample])), groups)
    seen = sample.flip(-1).cumsum(-1).flip(-1)[:, None]
    return psi, paid / (seen + queries * _DOUBT)


def context_attention_reference(view: LayerView, queries: int) -> Tensor:
    """The same average with the mean over groups, one token after another: [B, H, N] fp64."""
    B, H, N, _ = view.key.shape
    out = torch.zeros(B, H, N, dtype=torch.float64)
    for b in range(B):
        tokens = [i for i in range(N) if view.modality[b, i] != Modality.PADDING]
        count = min(queries, len(tokens))
        sample = {tokens[-(-len(tokens) * (i + 1) // queries) - 1] for i in range(queries)} if count else set()
        for j in sorted(sample):
            alone = torch.zeros(B, N, dtype=torch.bool)
            alone[b, j] = True
            out[b] += proxy_attention(view, alone)[b].double()
        for i in range(N):
            out[b, :, i] /= sum(j >= i for j in sample) + queries * _DOUBT
    return out
