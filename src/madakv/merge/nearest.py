"""Merge evicted entries into the kept ones whose keys are most alike (LOOK-M, arXiv 2406.18139, section 3.3)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from madakv.modality import Modality
from madakv.plan import KeepPlan

Merge = Literal["mean", "pivot", "weighted"]
"""How an entry that stays takes in the n evicted entries that chose it. `"mean"`: the average of all n + 1.
`"pivot"`: every evicted entry is averaged with it first, then all n + 1 are. `"weighted"`: evicted entries are
scaled by their keys' cosine similarity, then all n + 1 are averaged."""

_SCRATCH_ELEMENTS = 1 << 22


def merge_into_nearest(
    keys: Tensor, values: Tensor, kept: Tensor, merged: Tensor, how: Merge
) -> tuple[Tensor, Tensor]:
    """One head's kept entries, with the merged ones in them.

    Args:
        keys: [n, Dk].
        values: [n, Dv].
        kept: [k] int64, the entries that stay.
        merged: [e] int64, evicted entries to merge; each goes to the kept entry whose key is most alike.
        how: see `Merge`.

    Returns:
        [k, Dk] and [k, Dv], in the dtype of `keys` and `values`.
    """
    kept_keys, kept_values = keys[kept], values[kept]
    if not len(kept) or not len(merged):
        return kept_keys, kept_values
    target, likeness = _nearest(keys, kept, merged)
    out = []
    for states, own in ((keys, kept_keys), (values, kept_values)):
        gone, own32 = states[merged].float(), own.float()
        if how == "pivot":
            gone = (gone + own32[target]) / 2
        elif how == "weighted":
            gone = gone * likeness[:, None]
        count = torch.bincount(target, minlength=len(kept))
        out.append((own32.index_add(0, target, gone) / (1 + count)[:, None]).to(own.dtype))
    return out[0], out[1]


def _nearest(keys: Tensor, kept: Tensor, merged: Tensor) -> tuple[Tensor, Tensor]:
    """For every merged entry the kept one of highest cosine similarity, [e] int64, and that similarity, [e]."""
    basis = normalize(keys[kept].float(), dim=-1)
    step = max(1, _SCRATCH_ELEMENTS // len(kept))
    likeness, target = [], []
    for rows in merged.split(step):
        best = (normalize(keys[rows].float(), dim=-1) @ basis.T).max(-1)
        likeness.append(best.values)
        target.append(best.indices)
    return torch.cat(target), torch.cat(likeness)


def merge_evicted(
    keys: Tensor, values: Tensor, plan: KeepPlan, modality: Tensor, how: Merge
) -> tuple[Tensor, Tensor]:
    """Merge every head's evicted non-text entries into those it keeps; evicted text is dropped.

    Args:
        keys: [B, H, N, Dk].
        values: [B, H, N, Dv].
        plan: what stays.
        modality: [B, N] of `Modality` values.
        how: see `Merge`.

    Returns:
        [T, Dk] and [T, Dv] in the order of the plan.
    """
    out = []
    for b, heads in enumerate(plan.indices):
        for h, kept in enumerate(heads):
            gone = modality[b] > Modality.TEXT
            gone[kept] = False
            out.append(merge_into_nearest(keys[b, h], values[b, h], kept, gone.nonzero()[:, 0], how))
    merged_keys, merged_values = zip(*out, strict=True)
    return torch.cat(merged_keys), torch.cat(merged_values)


def merge_into_nearest_reference(
    keys: Tensor, values: Tensor, kept: Tensor, merged: Tensor, how: Merge
) -> tuple[Tensor, Tensor]:
    """The same in plain loops over float64; args as `merge_into_nearest`, returns fp64."""
    keys, values = keys.double(), values.double()
    chosen: dict[int, list[tuple[int, float]]] = {int(i): [] for i in kept}
    for e in merged.tolist():
        alike = [float(keys[e] @ keys[i] / (keys[e].norm() * keys[i].norm()).clamp_min(1e-12)) for i in kept.tolist()]
        if alike:
            best = max(range(len(alike)), key=alike.__getitem__)
            chosen[int(kept[best])].append((e, alike[best]))
    out = []
    for states in (keys, values):
        rows = []
        for i in kept.tolist():
            total = states[i].clone()
            for e, likeness in chosen[i]:
                if how == "mean":
                    total += states[e]
                elif how == "pivot":
                    total += (states[e] + states[i]) / 2
                else:
                    total += likeness * states[e]
            rows.append(total / (1 + len(chosen[i])))
        out.append(torch.stack(rows) if rows else states[:0])
    return out[0], out[1]
