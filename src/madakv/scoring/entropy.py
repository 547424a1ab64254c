"""How spread a layer's attention between modalities is."""

from __future__ import annotations

import torch
from torch import Tensor

from madakv.modality import Modality
from madakv.scoring.view import LayerView

_SCRATCH_ELEMENTS = 1 << 22


def cross_modal_entropy(view: LayerView) -> Tensor:
    """Mean entropy of text queries over all other modalities' keys, plus that of the others' over text keys.

    Each softmax runs over the other modality alone, without a causal mask; rows and heads are averaged.

    Args:
        view: the layer's prefill.

    Returns:
        [B] fp32, in nats; zero for a row of one modality.

    Source: MEDA, arXiv 2502.17599, equations 5 and 6.
    """
    H = view.key.shape[1]
    G = view.query.shape[1] // H
    totals = []
    for b, kinds in enumerate(view.modality):
        text = (kinds == Modality.TEXT).nonzero()[:, 0]
        other = (kinds > Modality.TEXT).nonzero()[:, 0]
        total = torch.zeros((), device=view.key.device)
        if len(text) and len(other):
            for rows, columns in ((text, other), (other, text)):
                key = view.key[b][:, columns].float().transpose(1, 2)
                step = max(1, _SCRATCH_ELEMENTS // (H * G * len(columns)))
                summed = torch.zeros((), device=view.key.device)
                for chunk in rows.split(step):
                    query = view.query[b][:, chunk].float().view(H, -1, key.shape[1])
                    log_weights = (query @ key * view.scaling).log_softmax(-1)
                    summed -= (log_weights.exp() * log_weights).sum()
                total = total + summed / (H * G * len(rows))
        totals.append(total)
    return torch.stack(totals)
