"""Pictures that were cut into tiles of one size, each with its own grid of tokens: Idefics3, InternVL, Llama 4."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from madakv.inspection.places.grid import Cell, tiles_of
from madakv.inspection.places.pixels import assembled, picture, stacked
from madakv.inspection.places.sheet import Boxes, Given, Layout, Sheet, UnplacedError, check, grid, within

_LOOK = 32
"""Pixels a side at which the whole is compared with its tiles."""
_CLEAR = 2.0
"""How many times further from the whole the second best tiling must be for the best to be believed."""


@dataclass(frozen=True)
class Cut:
    """How one picture was cut; the whole picture, made as small as a tile, comes beside its tiles.

    Attributes:
        tiles: how many; 0 if it was not cut, and the whole is all there is.
        columns: of tiles, whose rows follow each other; None if the prompt does not say.
        whole_first: whether the whole comes before its tiles.
    """

    tiles: int
    columns: int | None = None
    whole_first: bool = False


Cuts = Callable[[Given, int], Sequence[Cut]]
"""From a call and the number of tokens of a tile, how each picture was cut; or UnplacedError."""


def tiled(cell: Cell, cuts: Cuts, *, skip_empty: bool = False) -> Layout:
    """Tiles [..., 3, height, width] in the order of their tokens.

    Where nobody knows which tiles make a picture, each is shown by itself.

    Args:
        cell: see `Cell`.
        cuts: how pictures were cut.
        skip_empty: whether tiles of zeros alone fill up a batch, and have no tokens.
    """

    def layout(given: Given) -> list[Sheet]:
        pixels = given.inputs.get("pixel_values")
        if pixels is not None:
            check(pixels.dim() >= 4)
            pixels = pixels.flatten(0, -4)
            pixels = pixels[(pixels != 0).flatten(1).any(1)] if skip_empty else pixels
        (rows, columns), tiles = tiles_of(given, cell(given.config), pixels)
        boxes = grid(rows, columns)
        count = len(given.at) // len(boxes) if tiles is None else len(tiles)
        check(len(given.at) == count * len(boxes))
        try:
            told = cuts(given, len(boxes))
            check(sum(cut.tiles + 1 for cut in told) == count)
        except UnplacedError:
            return [Sheet("tile", n, "", picture(given, _one(tiles, n)), boxes) for n in range(count)]
        sheets: list[Sheet] = []
        start = 0
        for number, cut in enumerate(told):
            stop = start + cut.tiles + 1
            sheets += _of_picture(given, number, cut, boxes, None if tiles is None else tiles[start:stop])
            start = stop
        return sheets

    return layout


def _of_picture(given: Given, number: int, cut: Cut, boxes: Boxes, tiles: Tensor | None) -> Iterator[Sheet]:
    at, rest = (0, slice(1, None)) if cut.whole_first else (cut.tiles, slice(cut.tiles))
    whole = Sheet("picture", number, "whole" if cut.tiles else "", picture(given, _one(tiles, at)), boxes)
    if cut.whole_first:
        yield whole
    if cut.tiles:
        columns = cut.columns
        if columns is None and tiles is not None:
            columns = _columns(tiles[rest].float(), tiles[at].float())
        yield from _of_tiles(given, number, columns, boxes, cut.tiles, None if tiles is None else tiles[rest])
    if not cut.whole_first:
        yield whole


def parts(given: Given, cuts: Sequence[Cut], boxes: Sequence[Boxes], shown: Sequence[Tensor | None]) -> list[Sheet]:
    """Pictures whose wholes are of sizes of their own, with the boxes and the pixels of each tile and whole.

    Raises:
        UnplacedError: tiles of one picture are of several sizes, or there are more or fewer than were cut.
    """
    check(sum(cut.tiles + 1 for cut in cuts) == len(boxes))
    sheets: list[Sheet] = []
    start = 0
    for number, cut in enumerate(cuts):
        stop = start + cut.tiles + 1
        whole, first = (start, start + 1) if cut.whole_first else (stop - 1, start)
        tiles = slice(first, first + cut.tiles)
        check(len({own.tobytes() for own in boxes[tiles]}) <= 1)
        name = "whole" if cut.tiles else ""
        found = [Sheet("picture", number, name, picture(given, shown[whole]), boxes[whole])]
        if cut.tiles:
            own = _of_tiles(given, number, cut.columns, boxes[first], cut.tiles, stacked(shown[tiles]))
            found = [*found, *own] if cut.whole_first else [*own, *found]
        sheets += found
        start = stop
    return sheets


def _of_tiles(
    given: Given, number: int, columns: int | None, boxes: Boxes, count: int, tiles: Tensor | None
) -> Iterator[Sheet]:
    if columns is None:
        for n in range(count):
            yield Sheet("picture", number, f"tile {n + 1}", picture(given, _one(tiles, n)), boxes)
        return
    rows = count // columns
    put = [within(boxes, *divmod(n, columns), rows, columns) for n in range(count)]
    together = None if tiles is None else assembled(tiles, rows, columns)
    yield Sheet("picture", number, "", picture(given, together), np.concatenate(put))


def _one(tiles: Tensor | None, number: int) -> Tensor | None:
    return None if tiles is None else tiles[number]


def _columns(tiles: Tensor, whole: Tensor) -> int | None:
    """Columns of tiles from what they show, as nothing else tells; None if that is not clear.

    Put together, they look like the whole; and no other way to put them together looks nearly as much like it.
    """
    small = adaptive_avg_pool2d(whole, _LOOK)
    count = len(tiles)
    apart = sorted(
        (float((adaptive_avg_pool2d(assembled(tiles, count // n, n), _LOOK) - small).norm()), n)
        for n in range(1, count + 1)
        if count % n == 0
    )
    clear = len(apart) == 1 or apart[1][0] > _CLEAR * apart[0][0]
    return apart[0][1] if clear else None
