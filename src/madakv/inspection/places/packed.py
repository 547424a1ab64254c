"""Pictures of any size as rows of patches, padded to the longest: Gemma 4, LFM2-VL."""

from __future__ import annotations

import torch

from madakv.inspection.places.cuts import by_names
from madakv.inspection.places.pixels import of_patches, picture
from madakv.inspection.places.sheet import Given, Sheet, UnplacedError, check, grid, sizes
from madakv.inspection.places.tiles import parts

_LFM2_NAMES = by_names(
    r"<\|img_row_(?P<row>\d+)_col_(?P<column>\d+)\|>", r"<\|img_thumbnail\|>|<\|image_start\|>", one_size=False
)


def positioned(given: Given) -> list[Sheet]:
    """Each patch comes with its column and row, -1 for padding; a square of them makes a token: Gemma 4."""
    places = given.tensor("image_position_ids", 3)
    by = given.config.vision_config.pooling_kernel_size
    pixels = given.inputs.get("pixel_values")
    sheets = []
    for number, own in enumerate(places):
        there = own[(own >= 0).all(-1)]
        check(len(there) > 0)
        columns, rows = (int(most) + 1 for most in there.amax(0))
        in_order = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).flip(-1)
        check(torch.equal(there.cpu().long(), in_order) and rows % by == 0 and columns % by == 0)
        shown = None if pixels is None else of_patches(pixels[number, : len(there)], rows, columns)
        sheets.append(Sheet("picture", number, "", picture(given, shown), grid(rows // by, columns // by)))
    return sheets


def shaped(given: Given) -> list[Sheet]:
    """Tiles and pictures come with their rows and columns of patches: LFM2-VL."""
    by = given.config.downsample_factor
    shapes = sizes(given.tensor("spatial_shapes", 2), 2)
    check(all(rows % by == 0 and columns % by == 0 for rows, columns in shapes))
    boxes = [grid(rows // by, columns // by) for rows, columns in shapes]
    pixels = given.inputs.get("pixel_values")
    shown = [
        None if pixels is None else of_patches(pixels[n, : rows * columns], rows, columns)
        for n, (rows, columns) in enumerate(shapes)
    ]
    try:
        cuts = _LFM2_NAMES(given, 0)
    except UnplacedError:
        return [Sheet("tile", n, "", picture(given, shown[n]), own) for n, own in enumerate(boxes)]
    check([run.length for run in given.runs()] == [len(own) for own in boxes])
    return parts(given, cuts, boxes, shown)
