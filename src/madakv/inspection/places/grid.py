"""Pictures and frames of one size, whose tokens tile them row by row: LLaVA and many others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from madakv.inspection.places.pixels import picture
from madakv.inspection.places.sheet import Given, Layout, Sheet, Size, check, grid, no_pixels, pair

Cell = Callable[[Any], int]
"""How many pixels a token is wide and high, from a model's config."""


def pictures(cell: Cell, *, tensor: str = "pixel_values", whole: Cell | None = None) -> Layout:
    """Each of [n, 3, height, width] is a picture.

    Args:
        cell: see `Cell`.
        tensor: the name of the pixels.
        whole: says from the config how many tokens of a picture stand for all of it, before the others.
    """

    def layout(given: Given) -> list[Sheet]:
        (rows, columns), tiles = tiles_of(given, cell(given.config), given.inputs.get(tensor))
        before = no_pixels(whole(given.config) if whole else 0)
        boxes = np.concatenate([before, grid(rows, columns)])
        count = len(tiles) if tiles is not None else len(given.at) // len(boxes)
        return [
            Sheet("picture", number, "", picture(given, None if tiles is None else tiles[number]), boxes)
            for number in range(count)
        ]

    return layout


def frames(cell: Cell, *, halved: bool = False, whole: int = 0, end: int = 0) -> Layout:
    """Each of [n, frames, 3, height, width] is a video.

    Args:
        cell: see `Cell`.
        halved: whether every frame has half as many rows and columns of tokens, rounded up.
        whole: tokens of each frame that stand for all of it, before the others.
        end: tokens that end a video.
    """

    def layout(given: Given) -> list[Sheet]:
        videos = given.tensor("pixel_values_videos", 5)
        size = cell(given.config)
        rows, columns = videos.shape[-2] // size, videos.shape[-1] // size
        check(rows > 0 and columns > 0)
        cells = grid(-(-rows // 2), -(-columns // 2)) if halved else grid(rows, columns)
        boxes = np.concatenate([no_pixels(whole), cells])
        sheets = []
        for number, video in enumerate(videos[..., : rows * size, : columns * size]):
            for moment, frame in enumerate(video):
                last = no_pixels(end if moment + 1 == len(video) else 0)
                name = f"frame {moment + 1}"
                made = picture(given, frame, video=True)
                sheets.append(Sheet("video", number, name, made, np.concatenate([boxes, last])))
        return sheets

    return layout


def tiles_of(given: Given, cell: int, pixels: Tensor | None) -> tuple[Size, Tensor | None]:
    """Rows and columns of the tokens of each tile [n, 3, height, width], and the pixels that they stand for.

    The size is that of the tower if there are no pixels.
    """
    if pixels is None:
        vision = getattr(given.config, "vision_config", None)
        height, width = pair(getattr(vision, "image_size", None))
    else:
        check(pixels.dim() == 4)
        height, width = pixels.shape[-2:]
    check(cell > 0)
    rows, columns = height // cell, width // cell
    check(rows > 0 and columns > 0)
    # A tower whose patches do not fill its pictures never sees the rest.
    return (rows, columns), None if pixels is None else pixels[..., : rows * cell, : columns * cell]
