"""A picture, made small, then what it was cut into, each of a size of its own: MiniCPM-V 4.6."""

from __future__ import annotations

from math import isqrt

from torch import Tensor

from madakv.inspection.places.cuts import by_separators
from madakv.inspection.places.pixels import picture
from madakv.inspection.places.sheet import Given, Sheet, UnplacedError, check, grid, sizes
from madakv.inspection.places.tiles import parts

_CUTS = by_separators("<image>", r"(?:</image>|\n)<slice>", "<slice>", whole_first=True, one_size=False)


def slices(given: Given) -> list[Sheet]:
    """Strips [1, 3, side, n * side] of the patches of all parts, row by row; `target_sizes` are rows and columns."""
    told = sizes(given.tensor("target_sizes", 2), 2)
    runs = given.runs()
    check(len(runs) == len(told))
    # How many patches make a token is chosen by each call.
    by = isqrt(told[0][0] * told[0][1] // runs[0].length)
    check(by > 0 and all(rows % by == 0 and columns % by == 0 for rows, columns in told))
    boxes = [grid(rows // by, columns // by) for rows, columns in told]
    check([run.length for run in runs] == [len(own) for own in boxes])
    shown = _pictures(given.inputs.get("pixel_values"), told)
    try:
        cuts = _CUTS(given, 0)
    except UnplacedError:
        return [Sheet("tile", n, "", picture(given, shown[n]), own) for n, own in enumerate(boxes)]
    return parts(given, cuts, boxes, shown)


def _pictures(strip: Tensor | None, told: list[list[int]]) -> list[Tensor | None]:
    """The parts [3, height, width] of a strip."""
    if strip is None:
        return [None] * len(told)
    side = strip.shape[-2]
    check(strip.dim() == 4 and strip.shape[-1] == side * sum(rows * columns for rows, columns in told))
    found: list[Tensor | None] = []
    start = 0
    for rows, columns in told:
        own = strip[0, :, :, start : start + rows * columns * side]
        start += rows * columns * side
        cells = own.reshape(3, side, rows, columns, side)
        found.append(cells.permute(0, 2, 1, 3, 4).reshape(3, rows * side, columns * side))
    return found
