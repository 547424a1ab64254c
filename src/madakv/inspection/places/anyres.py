"""AnyRes: a picture as a whole, and once more in tiles whose padding was cut: LLaVA-NeXT and LLaVA-OneVision."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from madakv.inspection.places.grid import Cell
from madakv.inspection.places.pixels import assembled, picture
from madakv.inspection.places.sheet import Given, Layout, Sheet, Size, check, grid, no_pixels, pair, rows_of, sizes


def anyres(cell: Cell, *, most: bool = False, single: bool = False) -> Layout:
    """Pictures [n, tiles, 3, height, width], the first tile being the whole; unused tiles are behind.

    Args:
        cell: see `Cell`.
        most: whether rows and columns are scaled down where there are too many ("anyres_max_9").
        single: whether pictures are tiled only if there is one in a prompt; `batch_num_images` says how many there
            are.
    """

    def layout(given: Given) -> list[Sheet]:
        config = given.config
        tile = pair(config.vision_config.image_size)[0]
        side = tile // cell(config)
        shown = side * cell(config)
        heights_widths = sizes(given.tensor("image_sizes", 2, 3), 2)
        alone = _alone(given, len(heights_widths)) if single else [True] * len(heights_widths)
        pixels = given.inputs.get("pixel_values")
        if pixels is not None:
            check(pixels.dim() == 5 and len(pixels) == len(heights_widths) and pixels.shape[-1] == tile)
            pixels = pixels[..., :shown, :shown]
        sheets = []
        for number, size in enumerate(heights_widths):
            mine = None if pixels is None else pixels[number]
            whole = picture(given, None if mine is None else mine[0])
            if not alone[number]:
                sheets.append(Sheet("picture", number, "", whole, np.concatenate([grid(side, side), no_pixels(1)])))
                continue
            rows, columns = _tiling(size, config.image_grid_pinpoints, tile)
            check(mine is None or len(mine) > rows * columns)
            top, left = _padding(size, (rows * side, columns * side))
            seen = (rows * side - 2 * top, columns * side - 2 * left)
            scaled = _at_most(seen, side, str(config.vision_aspect_ratio)) if most else seen
            tiles = None if mine is None else _put_together(mine[1:], rows, columns, cell(config), top, left)
            sheets.append(Sheet("picture", number, "whole", whole, grid(side, side)))
            sheets.append(Sheet("picture", number, "", picture(given, tiles), rows_of(*scaled, 1)))
        return sheets

    return layout


def _alone(given: Given, count: int) -> list[bool]:
    """For each picture, whether it is the only one of its prompt; without a word from the processor, all are."""
    told = given.inputs.get("batch_num_images")
    if told is None:
        return [True] * count
    alone = [n == 1 for n in told.flatten().tolist() for _ in range(int(n))]
    check(len(alone) == count)
    return alone


def _tiling(size: list[int], pinpoints: list[list[int]], tile: int) -> Size:
    """Rows and columns of the tiles that a picture of this height and width is cut into."""
    from transformers.image_processing_utils import select_best_resolution

    height, width = select_best_resolution(tuple(size), pinpoints)
    return height // tile, width // tile


def _padding(size: list[int], tokens: Size) -> Size:
    """Rows at the top and columns at the left that the model cuts, and as many at the other side.

    As transformers' `unpad_image`, which rounds in this way.
    """
    (height, width), (rows, columns) = size, tokens
    if width / height > columns / rows:
        return (rows - int(round(height * (columns / width), 7))) // 2, 0
    return 0, (columns - int(round(width * (rows / height), 7))) // 2


def _at_most(tokens: Size, side: int, ratio_name: str) -> Size:
    """Rows and columns once they are scaled down to about as many as the tiles that "anyres_max_9" names."""
    most = ratio_name.removeprefix("anyres_max_")
    check(most.isdecimal())
    ratio = math.sqrt(tokens[0] * tokens[1] / (int(most) * side**2))
    return (int(tokens[0] // ratio), int(tokens[1] // ratio)) if ratio > 1.1 else tokens


def _put_together(tiles: Tensor, rows: int, columns: int, cell: int, top: int, left: int) -> Tensor:
    """The picture that tiles make, without the rows and columns of cells that the model cuts."""
    whole = assembled(tiles[: rows * columns], rows, columns)
    height, width = whole.shape[-2:]
    return whole[:, top * cell : height - top * cell, left * cell : width - left * cell]
