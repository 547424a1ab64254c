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
"""What all modalities of a prompt are called as one."""

_NAMES = (*(kind.name.lower() for kind in KINDS), TOGETHER)
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
        per_token: [L][H], the same if there were as many tokens of each modality: 1/2 says that a token of theirs gets
            as much as one of text.
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
        demands: by modality, and of all together (their sum), one per layer.
    """

    layers: list[int]
    demands: dict[str, list[Demand]]


@dataclass(frozen=True)
class Task:
    """What one kind of question gives to what is not text.

    Attributes:
        documents: that it was asked about.
        kept: share of the kept entries, mean over documents.
        interval: its 95 % interval, by bootstrap over documents; None for one document.
        attention: share of the question's attention, mean over layers, heads and documents.
        prompt: share of the prompt's tokens.
    """

    documents: int
    kept: float
    interval: tuple[float, float] | None
    attention: float
    prompt: float


@dataclass(frozen=True)
class Tasks:
    """Figure 5: modality by task.

    Attributes:
        method: the method's repr, budget included.
        other: the modalities that are not text.
        tasks: by name, those that keep most of them first.
    """

    method: str
    other: list[str]
    tasks: dict[str, Task]


class Analysis:
    """Takes prompts as they are read, and holds sums over them: no more for thousands than for one.

    Args:
        method: the repr of what decides what is kept.
    """

    def __init__(self, method: str) -> None:
        self.prompts = 0
        self._method = method
        self._layers: tuple[int, ...] = ()
        self._tokens = np.zeros(len(_NAMES))
        self._curves = {name: _Mean() for name in _NAMES}
        self._needs = {name: _Mean() for name in _NAMES}
        self._demands = {name: _Mean() for name in _NAMES}
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
        members = {kind.name.lower(): read.modality == kind for kind in KINDS}
        members[TOGETHER] = read.modality != Modality.PADDING
        total = members[TOGETHER].sum()
        asked = np.zeros(read.attention.shape[:2])
        for place, (name, member) in enumerate(members.items()):
            count = member.sum()
            self._tokens[place] += count
            if not count:
                continue
            self._curves[name].add(concentration(read.attention, member, _SHARES))
            needed = demand(read.attention, member)
            self._needs[name].add(needed / count)
            if name != TOGETHER:
                asked += np.nan_to_num(needed)
                self._demands[name].add(np.nan_to_num(needed) / total)
        self._demands[TOGETHER].add(asked / total)
        self._note_split(read)

    def _note_split(self, read: Seen) -> None:
        """Note what goes to text and what goes to the rest."""
        split, shares = preference(read.attention, read.modality), token_shares(read.modality)
        self._asked.append(
            (
                read.task,
                read.document,
                float(read.kept[1:].sum() / max(1.0, read.kept.sum())),
                float(np.nanmean(1 - split[..., 0])),
                float(1 - shares[0]),
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
        return [name for name, tokens in zip(_NAMES[1:-1], self._tokens[1:-1], strict=True) if tokens]

    def concentration(self) -> Concentration:
        """What figure 2a draws."""
        names = [name for name in self._names() if self._curves[name].added]
        curves = {
            name: Curve(
                tokens=float(self._tokens[_NAMES.index(name)] / self.prompts),
                held=[_spread(at) for at in np.moveaxis(self._curves[name].value(), -1, 0)],
                need=_spread(self._needs[name].value()),
            )
            for name in names
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
        demands = {
            name: [
                Demand(heads=heads.tolist(), mean=float(heads.mean()), spread=_spread(heads))
                for heads in self._demands[name].value()
            ]
            for name in self._names()
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
            kept, attention, prompt = np.array([values for _, values in own]).T
            low, high = interval_over_documents(kept, documents).tolist()
            found[task] = Task(
                documents=len(set(documents)),
                kept=float(kept.mean()),
                interval=None if isnan(low) else (low, high),
                attention=float(attention.mean()),
                prompt=float(prompt.mean()),
            )
        ranked = dict(sorted(found.items(), key=lambda item: -item[1].kept))
        return Tasks(self._method, self.others, ranked)

    def _names(self) -> list[str]:
        """The modalities that occurred; and all together, where there are several."""
        names = [name for name, tokens in zip(_NAMES[:-1], self._tokens[:-1], strict=True) if tokens]
        return [*names, TOGETHER] if len(names) > 1 else names

    def _told(self) -> str:
        kinds = " and ".join(self._names())
        return f"the prompt is {kinds} alone" if self.prompts == 1 else f"all {self.prompts} prompts are {kinds} alone"


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
    return None if isinstance(value, float) and isnan(value) else round(value, 6) if isinstance(value, float) else value
