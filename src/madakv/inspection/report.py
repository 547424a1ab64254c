"""What a report shows, as plain data: what pages and their tests are made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True, eq=False)
class View:
    """A picture, a part of one, or a frame of a video, as the model saw it.

    Attributes:
        title: such as "picture 3", "picture 3, whole" or "video 1, frame 4".
        picture: RGB; None if nobody kept its pixels.
        tokens: [n] int64, prompt positions of its visual tokens, in any order.
        boxes: [n, 4] fp32, where each stands: left, top, right, bottom, as shares of width and height.
        known: whether boxes are where the tokens' pixels are. If not, tokens lie in reading order, and the page says
            that nobody knows where.
    """

    title: str
    picture: Image.Image | None
    tokens: NDArray[np.int64]
    boxes: NDArray[np.float32]
    known: bool = True


@dataclass(frozen=True, eq=False)
class Side:
    """One method at one budget, and what came of it.

    Attributes:
        label: as typed, such as "madakv" or "snapkv:window_size=16".
        method: the method's repr.
        budget: as given.
        layers: [L] indices in the model, of those that are evicted.
        kept: [L, H, N] bool.
        asked: [L, H] int64, how many entries hold 90 % of what the question attends to in the prompt (the demand of
            MadaKV's HCC, over all modalities); None if not recorded. The same for both sides.
        stays: [L, H] fp32, share of the question's attention to the prompt that goes to what stays; NaN for a head
            that pays nothing; None if not recorded.
        answer: the tokens of the answer as text pieces, special ones dropped.
        looked: what each token of the answer looked at; None if not recorded. One shorter than `answer` may be: the
            first token comes from the prompt's own pass.
        kv_bytes, kv_bytes_full: of the evicted layers, all rows of a batch together.
        rows: how many these are.
    """

    label: str
    method: str
    budget: float | int
    layers: NDArray[np.int64]
    kept: NDArray[np.bool_]
    asked: NDArray[np.int64] | None
    stays: NDArray[np.float32] | None
    answer: list[str]
    looked: list[Glance | None] | None
    kv_bytes: int
    kv_bytes_full: int
    rows: int = 1


@dataclass(frozen=True, eq=False)
class Glance:
    """What the pass that chose one token of the answer attended to.

    Attributes:
        mean: [N] fp32, over all layers and heads.
        best: [L, H, k] int64, prompt positions of the entries that each head attended to most, best first; -1 where a
            head keeps fewer.
        weight: [L, H, k] fp32, what they got.
        answer: [L, H] fp32, what went to tokens of the answer before it, itself among them.
    """

    mean: NDArray[np.float32]
    best: NDArray[np.int64]
    weight: NDArray[np.float32]
    answer: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Report:
    """One prompt, and one or two ways of evicting it.

    Attributes:
        model: its name.
        tokens: [N] text pieces of the prompt, placeholders of pictures aside ("" there).
        modality: [N] int64 of `Modality` values, -1 at padding.
        views: of all pictures and frames, in reading order.
        preference: [L, H, 4] fp32, how the question's attention to the prompt is split between text, image, video and
            audio; sums to 1, NaN for a head that pays nothing. None if not recorded. The same for both sides.
        sides: one or two.
    """

    model: str
    tokens: list[str]
    modality: NDArray[np.int64]
    views: list[View]
    preference: NDArray[np.float32] | None
    sides: list[Side]
