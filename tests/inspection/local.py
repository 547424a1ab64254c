"""The oracle of places: towers in which a token hears of nothing but its own pixels, and pictures with one square.

What a token stands for is then seen without knowing any layout: change some pixels, run the real tower and
projector, and look which tokens changed.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from madakv.inspection.places import views
from madakv.inspection.report import View
from madakv.modality import prompt_modality
from tests.families.listed import LISTED
from tests.families.zoo import FAMILIES, IMAGE, Inputs

Box = tuple[float, float, float, float]
_MIXES = re.compile(
    r"(attn|attn_1|attention)\.(out_proj|proj_out|proj|o_proj|projection_layer)(\.linear)?\.(weight|bias)$"
)


@torch.no_grad()
def localised(model: Any) -> Any:
    """The model, with nothing that attention in its tower says."""
    silenced = 0
    for name, weight in model.named_parameters():
        if "language_model" not in name and _MIXES.search(name):
            weight.zero_()
            silenced += 1
    assert silenced
    return model


def picture(width: int, height: int, square: Box | None = None) -> Image.Image:
    """A smooth picture unlike itself turned, with a bright square at a place in shares of width and height."""
    y, x = np.mgrid[:height, :width]
    shades = np.stack([60 * x / width, 90 * y / height, 40 * (x / width) * (y / height)], axis=-1)
    made = Image.fromarray(shades.astype(np.uint8))
    if square is not None:
        left, top, right, bottom = square
        corners = [left * width, top * height, right * width - 1, bottom * height - 1]
        ImageDraw.Draw(made).rectangle([round(corner) for corner in corners], fill=(255, 255, 255))
    return made


@dataclass(frozen=True)
class Call:
    """A call with a bright square, and the same without it.

    Attributes:
        config, processor: as `views` gets them.
        ids: [1, N] int64.
        without, having: what a processor made of the pictures.
        features: runs the tower and projector, [tokens, D].
        token: the placeholder.
    """

    config: Any
    processor: Any
    ids: Tensor
    without: Mapping[str, Tensor]
    having: Mapping[str, Tensor]
    features: Callable[[Mapping[str, Tensor]], Tensor]
    token: int = IMAGE

    def views(self, inputs: Mapping[str, Tensor]) -> list[View]:
        return views(self.config, self.processor, self.ids[0], prompt_modality(self.config, self.ids)[0], inputs)

    @torch.no_grad()
    def heard(self) -> set[int]:
        """Prompt positions of the tokens that the square changes, by the tower."""
        before, behind = self.features(self.without), self.features(self.having)
        changed = ((before - behind).abs() > 1e-4 * before.abs().mean()).any(-1)
        at = (self.ids[0] == self.token).nonzero()[:, 0]
        assert len(at) == len(changed)
        return {int(position) for position in at[changed]}

    def shown(self) -> tuple[set[int], list[View]]:
        """Prompt positions of the tokens whose boxes show the square, by `views`; and the views that show it."""
        found: set[int] = set()
        showing = []
        for before, behind in zip(self.views(self.without), self.views(self.having), strict=True):
            assert before.title == behind.title
            assert before.known
            np.testing.assert_array_equal(before.tokens, behind.tokens)
            changed = differences(before, behind)
            if changed.any():
                showing.append(behind)
            for token, box in zip(behind.tokens, behind.boxes, strict=True):
                if changed[pixels_of(box, changed.shape)].any():
                    found.add(int(token))
        return found, showing


def differences(before: View, behind: View) -> Any:
    """[height, width] bool, pixels that differ between two views."""
    assert before.picture is not None
    assert behind.picture is not None
    return (np.asarray(before.picture) != np.asarray(behind.picture)).any(-1)


def pixels_of(box: Any, shape: tuple[int, int]) -> tuple[slice, slice]:
    height, width = shape
    left, top, right, bottom = (box * [width, height, width, height]).round().astype(int)
    return slice(top, bottom), slice(left, right)


def clear(without: Mapping[str, Tensor], having: Mapping[str, Tensor], name: str = "pixel_values") -> Inputs:
    """The second without what resizing spread so thinly that eight bits do not show it."""
    spread = (without[name] - having[name]).abs() < 0.05
    return {**having, name: torch.where(spread, without[name], having[name])}


def centre(before: View, behind: View) -> tuple[float, float]:
    """Of the pixels that differ, in shares of width and height."""
    y, x = differences(before, behind).nonzero()
    height, width = differences(before, behind).shape
    return float((x + 0.5).mean() / width), float((y + 0.5).mean() / height)


def prompt(*counts: int, token: int = IMAGE) -> Tensor:
    """[1, N]: text, and so many placeholders between each two pieces of it."""
    pieces = [torch.arange(5, 12)]
    for number, count in enumerate(counts):
        pieces += [torch.full((count,), token), torch.arange(20, 23 + number)]
    return torch.cat(pieces)[None]


def with_image_processor(image_processor: Any, tokenizer: Any = None) -> Any:
    return SimpleNamespace(image_processor=image_processor, tokenizer=tokenizer)


def flat(pooled: Any) -> Tensor:
    """What `get_image_features` gives, [tokens, D]."""
    if isinstance(pooled, Tensor):
        return pooled.reshape(-1, pooled.shape[-1])
    return torch.cat([flat(one) for one in pooled])


PLACES: list[Box] = [(0.05, 0.1, 0.3, 0.4), (0.6, 0.05, 0.95, 0.2), (0.1, 0.7, 0.25, 0.95), (0.55, 0.6, 0.7, 0.75)]


@cache
def model_of(name: str) -> Any:
    model = localised((FAMILIES | LISTED)[name].model())
    if name == "ovis2":
        # It rounds to the nearest word of a vocabulary, and a few pixels are not heard.
        model.model.vision_tower.config.tokenize_function = "softmax"
    return model


def tower(model: Any) -> Any:
    """What has `get_image_features`."""
    return getattr(model, "model", model)


def call_of(
    name: str,
    processor: Any,
    sizes: Sequence[tuple[int, int]],
    changed: int,
    square: Box,
    *,
    model: Any = None,
    **extra: Tensor,
) -> Call:
    """A call with pictures of these widths and heights, one of which has a square, through the real processor."""
    model = model_of(name) if model is None else model

    def inputs(with_square: bool) -> Inputs:
        made = [
            picture(*size, square if with_square and number == changed else None) for number, size in enumerate(sizes)
        ]
        return dict(processor.image_processor(made, return_tensors="pt")) | extra

    def features(given: Mapping[str, Tensor]) -> list[Tensor]:
        taken = inspect.signature(tower(model).get_image_features).parameters
        pooled = tower(model).get_image_features(**{n: t for n, t in given.items() if n in taken}).pooler_output
        return [flat(one) for one in pooled]

    without, having = inputs(False), inputs(True)
    with torch.no_grad():
        counts = [len(one) for one in features(without)]
    return Call(
        model.config,
        processor,
        prompt(*counts),
        without,
        clear(without, having),
        lambda given: torch.cat(features(given)),
    )


def check(call: Call, title: str, square: Box | None = None, off: float = 0.05) -> None:
    """The tokens whose boxes show the square are those that the tower hears it in, and it is where it was drawn.

    Args:
        title: of a view that shows it.
        square: where its view must show it, in shares of that view.
        off: how far its centre may be from there.
    """
    heard = call.heard()
    shown, showing = call.shown()
    assert 0 < len(heard) < int((call.ids == call.token).sum()) / 2
    assert shown == heard
    assert title in [view.title for view in showing]
    if square is not None:
        before = {view.title: view for view in call.views(call.without)}
        behind = next(view for view in showing if view.title == title)
        x, y = centre(before[title], behind)
        assert abs(x - (square[0] + square[2]) / 2) < off
        assert abs(y - (square[1] + square[3]) / 2) < off
