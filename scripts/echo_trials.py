"""Cheaper echoes that were tried and given up: the command line of madakv with one of them in place.

    python scripts/echo_trials.py turned eval --model smollm2 --methods full,madakv:echo=0 ...
    python scripts/echo_trials.py lower eval --model smollm2 --methods full,madakv:echo=all ...
    python scripts/echo_trials.py spread eval --model smollm2 --methods full,madakv ...
    python scripts/echo_trials.py own eval --model smollm2 --methods full,madakv ...
    python scripts/echo_trials.py chunks eval --model smollm2 --methods full,madakv,madakv:echo=all ...

What they are:

    turned   no second pass: the queries that text had in the prompt, turned to positions behind it, meet all keys; a
             `madakv:echo=0` hears the most that any of them pays, as it would hear an echo of all text
    lower    of an echo, the first twenty layers alone are heard: the others would not have to be computed
    spread   an echo shorter than the text is of runs at even distances, not of those that the question is after
    own      an echo shorter than the text is of its newest 32 tokens, the question's own words among them
    chunks   a token that is read again is heard by its own 256 tokens of the prompt and the first four, as KVzip has
             it with 2,000
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from madakv.cli import main
from madakv.hf.echo import _behind
from madakv.methods.madakv import MadaKV
from madakv.modality import Modality
from madakv.reading import Reading, Scores, echo
from madakv.scoring import LayerView, most_attention
from madakv.scoring.rotary import AXES

LOWER, NEWEST, CHUNK = 20, 32, (256, 4)


def turned(view: LayerView) -> Tensor:
    """The most that any query of the prompt's text pays from behind it, [1, H, G, N] fp32."""
    rotary = view.rotary
    assert rotary is not None
    text = (view.modality[0] == Modality.TEXT).nonzero()[:, 0]
    E, N = len(text), view.key.shape[2]
    positions = _behind(rotary.positions, E)
    cos, sin = rotary.waves(positions[-AXES:] if positions.dim() == 3 else positions)
    query = rotary.turn(rotary.turned_back(view.query)[:, :, text], cos, sin).to(view.key.dtype)
    # What stood behind a token in the prompt is seen, too.
    everything = torch.ones(1, 1, E, N, dtype=torch.bool)
    return most_attention(replace(view, query=query, mask=everything), torch.arange(N)[None] >= N - E)


def hear_turned() -> None:
    """One prompt at a time."""
    settle = Reading.settle

    def heard(self: Reading, view: LayerView) -> None:
        if isinstance(self.method, MadaKV) and not self.method.keeps_everything:
            self.scores.add(len(self.scores) - 1, self.method.echo_score(turned(view)))
        settle(self, view)

    Reading.settle = heard


def hear_lower() -> None:
    """What the others hear is not added."""
    add = Scores.add

    def added(self: Scores, layer: int, psi: Tensor) -> None:
        if layer < LOWER:
            add(self, layer, psi)

    Scores.add = added


def hear_spread() -> None:
    """Of every text as many as the default would."""

    def chosen(text: Tensor, most: Tensor, _relevance: Tensor) -> Tensor:
        taken = torch.zeros_like(text)
        for row, own, count in zip(taken, text, most.tolist(), strict=True):
            runs = own.nonzero()[:, 0].split(echo._RUN)
            for number in range(count // echo._RUN):
                row[runs[number * len(runs) * echo._RUN // count]] = True
        return taken

    echo._chosen = chosen


def hear_own() -> None:
    """Of every text the end."""

    def chosen(text: Tensor, _most: Tensor, _relevance: Tensor) -> Tensor:
        left = text.flip(-1).cumsum(-1).flip(-1)
        return text & (left <= NEWEST)

    echo._chosen = chosen


def hear_chunks() -> None:
    """As `kvzip:chunk_size=256` would."""
    setattr(MadaKV, "echo_chunk", property(lambda _self: CHUNK))  # noqa: B010 - read-only for a type checker


TRIALS: dict[str, Callable[[], None]] = {
    "turned": hear_turned,
    "lower": hear_lower,
    "spread": hear_spread,
    "own": hear_own,
    "chunks": hear_chunks,
}


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in TRIALS:
        raise SystemExit(__doc__)
    TRIALS[sys.argv.pop(1)]()
    main()
