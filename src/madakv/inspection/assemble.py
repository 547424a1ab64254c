"""From what a run left behind to what a report shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from madakv.errors import ConfigurationError, InputError
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
        row: of the answers.

    Raises:
        InputError: nothing was generated; something else was read since; a prompt of embeddings; runs of different
            prompts or models; no such row.
        ConfigurationError: the processor has no tokenizer.
    """
    told = [_Told.of(run, row) for run in runs]
    first = told[0]
    for other in told[1:]:
        _check_same(first, other)
    ids, modality = first.ids, first.kept.modality[first.row]
    valid = (modality != Modality.PADDING).nonzero()[:, 0].numpy()
    tokenizer = _tokenizer(processor)
    own = ids.numpy()[valid]
    kinds = modality.numpy()[valid]
    words = np.array(pieces(tokenizer, own.tolist()), dtype=object)
    words[kinds != Modality.TEXT] = ""
    place = np.full(len(ids), -1, dtype=np.int64)
    place[valid] = np.arange(len(valid))
    attention = next((_attention(one.recording, one.row, valid) for one in told if one.recording is not None), None)
    return Report(
        model=_shown(first.exchange.name),
        tokens=[str(word) for word in words],
        modality=kinds.astype(np.int64),
        views=[replace(view, tokens=place[view.tokens]) for view in _views(told, processor)],
        preference=None if attention is None else preference(attention, kinds).astype(np.float32),
        sides=[_side(one, tokenizer, attention, valid, place) for one in told],
    )


@dataclass(frozen=True, eq=False)
class _Told:
    """One answer of a run.

    Attributes:
        method: of the run.
        kept, exchange, recording: of the run, all of one prompt.
        prompt: its row among the prompts of the call.
        row: its row among those that were read: beams and several answers to a prompt have one each.
        answer: its row among the answers.
    """

    method: Method
    kept: Kept
    exchange: Exchange
    recording: Recording | None
    prompt: int
    row: int
    answer: int

    @classmethod
    def of(cls, run: Inspected, row: int) -> _Told:
        kept, exchange = run.last, run.exchange
        if kept is None or exchange is None:
            raise InputError("nothing was generated yet: call model.generate inside `madakv.evict` first")
        prompts, (read, N), answers = len(_ids(exchange)), kept.modality.shape, len(exchange.answer)
        # A next turn counts on, and leaves the plans as they are.
        if exchange.kept is None or exchange.kept.plans is not kept.plans:
            raise InputError(
                "what was read last is not the prompt that the last call of generate answered: make a report right "
                "after generate"
            )
        if (width := _ids(exchange).shape[1]) != N:
            raise InputError(
                f"what was decided over has {N} tokens, and the prompt {width}: a prompt that is read in parts, or "
                "decided over again together with its answer, cannot be shown"
            )
        if not 0 <= row < answers:
            raise InputError(f"row {row} of a batch of {answers}: rows are 0 to {answers - 1}")
        prompt = row // (answers // prompts)
        own = row if read == answers else prompt * (read // prompts)
        return cls(run.method, kept, exchange, run.recording, prompt, own, row)

    @property
    def ids(self) -> Tensor:
        """[N] of the prompt."""
        return _ids(self.exchange)[self.prompt]


def _check_same(one: _Told, other: _Told) -> None:
    """Raise InputError unless both are of one model and one prompt."""
    if (name := one.exchange.name) != (second := other.exchange.name):
        raise InputError(f"the two runs are of two models, {name!r} and {second!r}; a report compares methods")
    same = torch.equal(one.ids, other.ids) and torch.equal(one.kept.modality[one.row], other.kept.modality[other.row])
    if not same:
        raise InputError("the two runs read different prompts; generate with the same inputs in both")
    if one.exchange.answer.shape[0] != other.exchange.answer.shape[0]:
        # Of one batch's pictures, nobody knows here which are of one row.
        return
    theirs = other.exchange.inputs
    for name, value in one.exchange.inputs.items():
        # `pixel_values`, `pixel_values_videos`, `image_pixel_values`, `image_patches`, and their sizes.
        pictured = any(word in name for word in ("pixel", "image", "video"))
        if pictured and name in theirs and not torch.equal(value.cpu(), theirs[name].cpu()):
            raise InputError(f"the two runs read different prompts: their {name} differ; give both the same pictures")


def _tokenizer(processor: Any) -> Any:
    """Whoever knows the words.

    Raises:
        ConfigurationError: nobody does.
    """
    found = getattr(processor, "tokenizer", processor)
    if not (callable(found) and callable(getattr(found, "decode", None))):
        raise ConfigurationError(
            f"{type(processor).__name__} is neither a tokenizer nor a processor that has one; give the one that made "
            "the inputs"
        )
    return found


def _shown(name: str) -> str:
    """A model's name, with no more than a folder of where it lies on this machine."""
    path = Path(name)
    return f"{path.parent.name}/{path.name}" if path.is_absolute() else name


def _views(told: Sequence[_Told], processor: Any) -> list[View]:
    """Of a prompt's pictures, from whichever call still has its inputs."""
    one = next((each for each in told if each.exchange.inputs), told[0])
    ids = _ids(one.exchange)
    held = {name: value.detach().cpu() for name, value in one.exchange.inputs.items()}
    # Of beams and several answers to each prompt, the call knew the prompt once.
    modality = one.kept.modality[:: len(one.kept.modality) // len(ids)]
    return views(one.exchange.config, processor, ids, modality, held, row=one.prompt)


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


def _side(
    one: _Told,
    tokenizer: Any,
    attention: NDArray[np.float32] | None,
    valid: NDArray[np.int64],
    place: NDArray[np.int64],
) -> Side:
    """What became of one answer; `valid` and `place` say where tokens stand with padding, and without."""
    kept = one.kept
    mask = np.stack([_mask(plan, one.row, len(place)) for plan in kept.plans])[:, :, valid]
    stays = None
    if attention is not None:
        with np.errstate(invalid="ignore"):
            stays = ((attention * mask).sum(-1) / attention.sum(-1)).astype(np.float32)
    answer = one.exchange.answer[one.answer].tolist()
    # What follows the end is padding, which need not be a special token.
    over = next((number + 1 for number, token in enumerate(answer) if token in one.exchange.ends), len(answer))
    special = special_ids(tokenizer)
    spoken = [number for number, token in enumerate(answer[:over]) if token not in special]
    glances = None
    if one.recording is not None:
        steps = one.recording.steps
        glances = [_glance(steps[n], kept.plans, one.row, place) if n in steps else None for n in spoken]
    return Side(
        label=one.method.label,
        method=kept.method,
        budget=one.method.budget,
        layers=np.array(kept.layers, dtype=np.int64),
        kept=mask,
        asked=None if attention is None else _asked(attention),
        stays=stays,
        answer=pieces(tokenizer, [answer[number] for number in spoken]),
        looked=glances,
        kv_bytes=kept.kv_bytes,
        kv_bytes_full=kept.kv_bytes_full,
        rows=len(kept.modality),
    )


def _asked(attention: NDArray[np.float32]) -> NDArray[np.int64]:
    """[L, H]: what each head would need."""
    every = np.ones(attention.shape[-1], dtype=np.bool_)
    return np.nan_to_num(demand(attention, every)).astype(np.int64)


def _mask(plan: KeepPlan, row: int, length: int) -> NDArray[np.bool_]:
    """[H, N]."""
    mask = np.zeros((plan.counts.shape[1], length), dtype=np.bool_)
    for own, positions in zip(mask, plan.indices[row], strict=True):
        own[positions.numpy()] = True
    return mask


def _glance(looked: Sequence[Looked], plans: Sequence[KeepPlan], row: int, place: NDArray[np.int64]) -> Glance:
    """Of one pass; `looked` and `plans` of all layers, `place` where tokens stand without padding."""
    H = plans[0].counts.shape[1]
    mean = np.zeros(int(place.max()) + 1, dtype=np.float64)
    best = np.full((len(plans), H, _BEST), -1, dtype=np.int64)
    weight = np.zeros((len(plans), H, _BEST), dtype=np.float32)
    for layer, (own, plan) in enumerate(zip(looked, plans, strict=True)):
        weights = own.entries.float().cpu().split(plan.counts.flatten().tolist())
        for head, positions in enumerate(plan.indices[row]):
            paid, at = weights[row * H + head].numpy(), place[positions.numpy()]
            np.add.at(mean, at, paid)
            order = np.argsort(-paid, kind="stable")[:_BEST]
            best[layer, head, : len(order)], weight[layer, head, : len(order)] = at[order], paid[order]
    answer = np.stack([own.answer[row].float().cpu().numpy() for own in looked])
    return Glance((mean / (len(plans) * H)).astype(np.float32), best, weight, answer.astype(np.float32))
