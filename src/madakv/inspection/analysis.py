"""From prompts that were read to the numbers that figures draw: means over prompts, then quartiles over heads."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isnan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from madakv.errors import InputError
from madakv.inspection.statistics import (
    Floats,
    concentration,
    demand,
    interval_over_documents,
    per_token,
    preference,
    token_shares,
)
from madakv.modality import KINDS, Modality

TOGETHER = "together"
"""All tokens of a prompt, whatever their modality."""
SUM = "sum"
"""What the modalities of a prompt ask for, added up."""

_KINDS = tuple(kind.name.lower() for kind in KINDS)
_SHARES = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True, eq=False)
class Seen:
    """One prompt, and what was seen while it was read.

    Attributes:
        document: prompts of one document are drawn together when intervals are computed.
        task: the kind of question.
        layers: [L] indices in the model, of the layers that are evicted.
        attention: [L, H, N] float, see `Recording.attention`.
        modality: [N] of `Modality` values.
        kept: [4] fp64, entries that the method kept of each modality, over all layers and heads.
    """

    document: str
    task: str
    layers: tuple[int, ...]
    attention: NDArray[np.floating]
    modality: NDArray[np.int64]
    kept: Floats


@dataclass(frozen=True)
class Spread:
    """Median and quartiles over heads; None where no head says anything."""

    median: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Curve:
    """How concentrated attention within one modality is.

    Attributes:
        tokens: that a prompt has of it, on average.
        held: at each of the shares, what share of the modality's attention its most attended tokens hold.
        need: the smallest share of its tokens that holds 90 % of its attention.
    """

    tokens: float
    held: list[Spread]
    need: Spread


@dataclass(frozen=True)
class Concentration:
    """Figure 2a: a curve per modality, and one of all tokens together, over the heads of all layers.

    Attributes:
        shares: of a modality's tokens, most attended first.
        curves: by modality.
    """

    shares: list[float]
    curves: dict[str, Curve]


@dataclass(frozen=True)
class Preference:
    """Figure 2b: what share of a head's attention goes to what is not text.

    Attributes:
        layers: indices in the model.
        other: the modalities that are not text.
        prompt: their share of the prompt's tokens.
        plain: [L][H], share of the question's attention to the prompt.
        per_token: [L][H], the same if there were as many tokens of each: 1/2 says that a token of theirs gets as much
            as one of text.
    """

    layers: list[int]
    other: list[str]
    prompt: float
    plain: list[list[float]]
    per_token: list[list[float]]


@dataclass(frozen=True)
class Demand:
    """What one layer asks for, as shares of the prompt's tokens.

    Attributes:
        heads: [H], of each.
        mean: over them: what the paper's HCC compares with the layer's allotment.
        spread: over them.
    """

    heads: list[float]
    mean: float
    spread: Spread


@dataclass(frozen=True)
class Layers:
    """Figure 2c: entries that hold 90 % of a head's attention to a modality, layer by layer.

    Attributes:
        layers: indices in the model.
        demands: by modality, one per layer; and their sum, where there are several.
    """

    layers: list[int]
    demands: dict[str, list[Demand]]


@dataclass(frozen=True)
class Share:
    """A mean over documents, and its 95 % interval by bootstrap over them; None for one document."""

    mean: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Task:
    """What one kind of question gives to what is not text.

    Attributes:
        documents: that it was asked about.
        prompt: share of the prompt's tokens.
        attention: share of the question's attention, mean over layers and heads.
        kept: share of the kept entries of all layers and heads.
    """

    documents: int
    prompt: Share
    attention: Share
    kept: Share


@dataclass(frozen=True)
class Tasks:
    """Figure 5: modality by task.

    Attributes:
        method: what decided what is kept, for people.
        other: the modalities that are not text.
        tasks: by name, those that attend to them most first: an order that no method changes.
    """

    method: str
    other: list[str]
    tasks: dict[str, Task]


class Analysis:
    """Takes prompts as they are read, and holds sums over them: no more for thousands than for one.

    Args:
        method: what decides what is kept, for people.
    """

    def __init__(self, method: str) -> None:
        self.prompts = 0
        self._method = method
        self._layers: tuple[int, ...] = ()
        self._tokens = dict.fromkeys(_KINDS, 0)
        self._curves = {name: _Mean() for name in (*_KINDS, TOGETHER)}
        self._needs = {name: _Mean() for name in (*_KINDS, TOGETHER)}
        self._demands = {name: _Mean() for name in (*_KINDS, SUM)}
        self._plain, self._per_token, self._prompt = _Mean(), _Mean(), _Mean()
        self._asked: list[tuple[str, str, float, float, float]] = []

    def add(self, read: Seen) -> None:
        """Take one prompt.

        Raises:
            InputError: the question pays no attention to the prompt, or none that is a number.
        """
        if not np.isfinite(read.attention).all() or not read.attention.any():
            raise InputError(
                f"the attention that the question pays to prompt {self.prompts + 1} is all zero or no number: the "
                "model overflows in this dtype; use --dtype float32"
            )
        self.prompts += 1
        self._layers = read.layers
        everything = read.modality != Modality.PADDING
        total = np.zeros(read.attention.shape[:2])
        for kind, name in zip(KINDS, _KINDS, strict=True):
            member = read.modality == kind
            self._tokens[name] += int(member.sum())
            # A head that pays a modality nothing asks for nothing.
            asked = np.nan_to_num(self._note_within(name, read.attention, member))
            self._demands[name].add(asked / everything.sum())
            total += asked
        self._demands[SUM].add(total / everything.sum())
        self._note_within(TOGETHER, read.attention, everything)
        self._note_split(read)

    def _note_within(self, name: str, attention: NDArray[np.floating], member: NDArray[np.bool_]) -> Floats:
        """Note how concentrated attention to some tokens is; gives their demand, [L, H]."""
        needed = demand(attention, member)
        if member.any():
            self._curves[name].add(concentration(attention, member, _SHARES))
            self._needs[name].add(needed / member.sum())
        return needed

    def _note_split(self, read: Seen) -> None:
        """Note what goes to text and what goes to the rest."""
        split, shares = preference(read.attention, read.modality), token_shares(read.modality)
        self._asked.append(
            (
                read.task,
                read.document,
                float(1 - shares[0]),
                float(np.nanmean(1 - split[..., 0])),
                float(read.kept[1:].sum() / max(1.0, read.kept.sum())),
            )
        )
        if 0 < shares[0] < 1:
            of_two = np.stack([split[..., 0], split[..., 1:].sum(-1)], -1)
            both = np.array([shares[0], 1 - shares[0]])
            self._plain.add(of_two[..., 1])
            self._per_token.add(per_token(of_two, both)[..., 1])
            self._prompt.add(both[1])

    @property
    def others(self) -> list[str]:
        """The modalities that occurred, text aside."""
        return [name for name in self._kinds() if name != "text"]

    def concentration(self) -> Concentration:
        """What figure 2a draws."""
        tokens = {name: self._tokens[name] for name in self._kinds()}
        if len(tokens) > 1:
            tokens[TOGETHER] = sum(tokens.values())
        curves = {
            name: Curve(
                tokens=tokens[name] / self.prompts,
                held=[_spread(at) for at in np.moveaxis(self._curves[name].value(), -1, 0)],
                need=_spread(self._needs[name].value()),
            )
            for name in tokens
        }
        return Concentration(_SHARES.tolist(), curves)

    def preference(self) -> Preference:
        """What figure 2b draws.

        Raises:
            InputError: no prompt has both text and something else.
        """
        if not self._plain.added:
            raise InputError(
                f"preference compares text with pictures, video or audio: {self._told()}; use a model and prompts "
                "with pictures, or another --figure"
            )
        return Preference(
            layers=list(self._layers),
            other=self.others,
            prompt=float(self._prompt.value()),
            plain=self._plain.value().tolist(),
            per_token=self._per_token.value().tolist(),
        )

    def layers(self) -> Layers:
        """What figure 2c draws."""
        kinds = self._kinds()
        demands = {
            name: [
                Demand(heads=heads.tolist(), mean=float(heads.mean()), spread=_spread(heads))
                for heads in self._demands[name].value()
            ]
            for name in (kinds if len(kinds) == 1 else [*kinds, SUM])
        }
        return Layers(list(self._layers), demands)

    def tasks(self) -> Tasks:
        """What figure 5 draws.

        Raises:
            InputError: no prompt has anything but text.
        """
        if not self.others:
            raise InputError(
                f"tasks compares what is kept of pictures, video or audio: {self._told()}; use a model and a suite "
                "with pictures, or another --figure"
            )
        found = {}
        for task in dict.fromkeys(task for task, *_ in self._asked):
            own = [(document, values) for name, document, *values in self._asked if name == task]
            documents = [document for document, _ in own]
            prompt, attention, kept = (_share(values, documents) for values in np.array([at for _, at in own]).T)
            found[task] = Task(len(set(documents)), prompt, attention, kept)
        ranked = dict(sorted(found.items(), key=lambda item: -item[1].attention.mean))
        return Tasks(self._method, self.others, ranked)

    def _kinds(self) -> list[str]:
        """The modalities that occurred."""
        return [name for name, tokens in self._tokens.items() if tokens]

    def _told(self) -> str:
        kinds = " and ".join(self._kinds())
        return f"{'the prompt is' if self.prompts == 1 else f'all {self.prompts} prompts are'} {kinds} alone"


class _Mean:
    """The mean of arrays of one shape, NaN left out."""

    def __init__(self) -> None:
        self.added = 0
        self._sum: Floats = np.zeros(())
        self._count: Floats = np.zeros(())

    def add(self, values: Floats) -> None:
        self.added += 1
        known = ~np.isnan(values)
        self._sum = self._sum + np.where(known, values, 0.0)
        self._count = self._count + known

    def value(self) -> Floats:
        with np.errstate(invalid="ignore"):
            mean: Floats = self._sum / self._count
        return mean


def _share(values: Floats, documents: list[str]) -> Share:
    low, high = interval_over_documents(values, documents).tolist()
    return Share(float(values.mean()), None if isnan(low) else (low, high))


def _spread(values: Floats) -> Spread:
    known = values[~np.isnan(values)]
    if not len(known):
        return Spread(None, None, None)
    low, median, high = np.percentile(known, [25, 50, 75]).tolist()
    return Spread(median, low, high)


def as_numbers(figure: Concentration | Preference | Layers | Tasks) -> dict[str, Any]:
    """What a figure draws, as JSON takes it: with null for what is no number."""
    plain: dict[str, Any] = _plain(asdict(figure))
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return None if isnan(value) else round(value, 6)
    return value
