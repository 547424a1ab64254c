"""From what a run left behind to what a report shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from madakv.errors import InputError
from madakv.inspection.pieces import pieces, special_ids
from madakv.inspection.places import views
from madakv.inspection.report import Glance, Report, Side, View
from madakv.inspection.statistics import demand, preference
from madakv.kept import Kept
from madakv.methods import Method
from madakv.modality import Modality
from madakv.plan import KeepPlan
from madakv.recording import Exchange, Looked, Recording

_BEST = 12
"""Entries of each head that a glance names."""
_HOLDS = 0.9
"""Share of a head's attention that its demand holds, as theta of MadaKV's HCC."""


class Inspected(Protocol):
    """A run; see there."""

    method: Method
    last: Kept | None
    recording: Recording | None
    exchange: Exchange | None


def assemble(runs: Sequence[Inspected], processor: Any, row: int = 0) -> Report:
    """What one prompt's report shows.

    Args:
        runs: one or two, of the same prompt.
        processor: the model's processor or tokenizer.
        row: of the batch.

    Raises:
        InputError: nothing was generated; a prompt of embeddings; runs of different prompts; no such row.
    """
    told = [_told(run) for run in runs]
    kept, exchange = told[0]
    rows = len(kept.modality)
    if not 0 <= row < rows:
        raise InputError(f"row {row} of a batch of {rows}: rows are 0 to {rows - 1}")
    ids = _prompt(exchange, kept)[row]
    for other, said in told[1:]:
        if not torch.equal(_prompt(said, other)[min(row, len(other.modality) - 1)], ids):
            raise InputError("the two runs read different prompts; generate with the same inputs in both")
    modality = kept.modality[row]
    valid = (modality != Modality.PADDING).nonzero()[:, 0].numpy()
    tokenizer = getattr(processor, "tokenizer", processor)
    own = ids.numpy()[valid]
    kinds = modality.numpy()[valid]
    words = np.array(pieces(tokenizer, own.tolist()), dtype=object)
    words[kinds != Modality.TEXT] = ""
    found = _views([said for _, said in told], processor, kept, row)
    attention = next((_attention(run.recording, row, valid) for run in runs if run.recording is not None), None)
    return Report(
        model=_shown(exchange.name),
        tokens=[str(word) for word in words],
        modality=kinds.astype(np.int64),
        views=[_moved(view, valid, len(ids)) for view in found],
        preference=None if attention is None else np.nan_to_num(preference(attention, kinds)).astype(np.float32),
        sides=[
            _side(run, kept, said, tokenizer, attention, valid, row)
            for run, (kept, said) in zip(runs, told, strict=True)
        ],
    )


def _shown(name: str) -> str:
    """A model's name, with no more than a folder of where it lies on this machine."""
    path = Path(name)
    return f"{path.parent.name}/{path.name}" if path.is_absolute() else name


def _told(run: Inspected) -> tuple[Kept, Exchange]:
    if run.last is None or run.exchange is None:
        raise InputError("nothing was generated yet: call model.generate inside `madakv.evict` first")
    return run.last, run.exchange


def _prompt(exchange: Exchange, kept: Kept) -> Tensor:
    """[B, N] ids of what was kept of."""
    ids, (B, N) = _ids(exchange), kept.modality.shape
    if ids.shape[1] != N:
        raise InputError(
            f"the last prompt had {N} tokens, and the last call of generate {ids.shape[1]}: make a report right "
            "after generate"
        )
    # Of several answers to each prompt.
    return ids.repeat_interleave(B // len(ids), 0)


def _views(exchanges: Sequence[Exchange], processor: Any, kept: Kept, row: int) -> list[View]:
    """Of a row's pictures, from whichever call still has its inputs."""
    exchange = exchanges[0]
    inputs = next((said.inputs for said in exchanges if said.inputs), {})
    ids = _ids(exchange)
    # Of several answers to each prompt, the call knew the prompt once.
    answers = len(kept.modality) // len(ids)
    held = {name: value.detach().cpu() for name, value in inputs.items()}
    return views(exchange.config, processor, ids, kept.modality[::answers], held, row=row // answers)


def _ids(exchange: Exchange) -> Tensor:
    """[B, N] on the CPU.

    Raises:
        InputError: nobody knows them.
    """
    if exchange.input_ids is None:
        raise InputError("the prompt came as embeddings, of which nobody knows the text; generate from input_ids")
    return exchange.input_ids.cpu()


def _attention(recording: Recording, row: int, valid: NDArray[np.int64]) -> NDArray[np.float32]:
    """[L, H, N]."""
    layers = [layer[row].float().cpu().numpy()[:, valid] for layer in recording.attention]
    return np.stack(layers).astype(np.float32)


def _moved(view: View, valid: NDArray[np.int64], length: int) -> View:
    """With tokens counted without padding."""
    place = np.full(length, -1, dtype=np.int64)
    place[valid] = np.arange(len(valid))
    return View(view.title, view.picture, place[view.tokens], view.boxes, view.known)


def _side(
    run: Inspected,
    kept: Kept,
    exchange: Exchange,
    tokenizer: Any,
    attention: NDArray[np.float32] | None,
    valid: NDArray[np.int64],
    row: int,
) -> Side:
    mask = np.stack([_mask(plan, row, kept.modality.shape[1]) for plan in kept.plans])[:, :, valid]
    stays = None
    if attention is not None:
        whole = np.maximum(attention.sum(-1), np.float32(1e-12))
        stays = ((attention * mask).sum(-1) / whole).astype(np.float32)
    answer = exchange.answer[row].tolist()
    special = special_ids(tokenizer)
    spoken = [number for number, token in enumerate(answer) if token not in special]
    glances = None
    if run.recording is not None:
        steps = run.recording.steps
        glances = [_glance(steps[n], kept.plans, row, valid) if n in steps else None for n in spoken]
    return Side(
        label=run.method.label,
        method=kept.method,
        budget=run.method.budget,
        layers=np.array(kept.layers, dtype=np.int64),
        kept=mask,
        asked=None if attention is None else _asked(attention),
        stays=stays,
        answer=pieces(tokenizer, [answer[number] for number in spoken]),
        looked=glances,
        kv_bytes=kept.kv_bytes,
        kv_bytes_full=kept.kv_bytes_full,
    )


def _asked(attention: NDArray[np.float32]) -> NDArray[np.int64]:
    """[L, H]: what each head would need."""
    every = np.ones(attention.shape[-1], dtype=np.bool_)
    return np.nan_to_num(demand(attention, every, _HOLDS)).astype(np.int64)


def _mask(plan: KeepPlan, row: int, length: int) -> NDArray[np.bool_]:
    """[H, N]."""
    B, H = plan.counts.shape
    mask = torch.zeros(B * H, length, dtype=torch.bool)
    mask[plan.owners(), plan.positions] = True
    own: NDArray[np.bool_] = mask.view(B, H, length)[row].numpy()
    return own


def _glance(looked: Sequence[Looked], plans: Sequence[KeepPlan], row: int, valid: NDArray[np.int64]) -> Glance:
    """Of one pass; `looked` and `plans` of all layers."""
    H, N = plans[0].counts.shape[1], len(valid)
    place = np.full(int(valid[-1]) + 1, -1, dtype=np.int64)
    place[valid] = np.arange(N)
    mean = np.zeros(N, dtype=np.float64)
    best = np.full((len(plans), H, _BEST), -1, dtype=np.int64)
    weight = np.zeros((len(plans), H, _BEST), dtype=np.float32)
    for layer, (own, plan) in enumerate(zip(looked, plans, strict=True)):
        counts = plan.counts.flatten().tolist()
        weights = own.entries.float().cpu().split(counts)
        positions = plan.positions.split(counts)
        for head in range(H):
            paid, at = weights[row * H + head].numpy(), place[positions[row * H + head].numpy()]
            np.add.at(mean, at, paid)
            order = np.argsort(-paid, kind="stable")[:_BEST]
            best[layer, head, : len(order)], weight[layer, head, : len(order)] = at[order], paid[order]
    answer = np.stack([own.answer[row].float().cpu().numpy() for own in looked])
    return Glance((mean / (len(plans) * H)).astype(np.float32), best, weight, answer.astype(np.float32))
