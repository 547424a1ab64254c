"""Pictures cut into crops that overlap; which patches make a token is told: Molmo 2."""

from __future__ import annotations

import torch
from torch import Tensor

from madakv.inspection.places.pixels import of_patches, picture
from madakv.inspection.places.sheet import Given, Sheet, check, grid, sizes


def pooled(given: Given) -> list[Sheet]:
    """Patches [crops, n, values], `image_token_pooling` with the patches of each token, and two grids a picture.

    The first grid is of the whole picture, the other of its crops, put together without what overlaps.
    """
    of = given.tensor("image_token_pooling", 2)
    pixels = given.inputs.get("pixel_values")
    sheets = []
    start = 0
    for number, told in enumerate(sizes(given.tensor("image_grids", 2), 4)):
        for part, (rows, columns) in (("whole", told[:2]), ("", told[2:])):
            if rows * columns == 0:
                continue
            own = of[start : start + rows * columns]
            start += rows * columns
            check(len(own) == rows * columns)
            shown = None if pixels is None else _together(pixels.flatten(0, -2), own, rows, columns)
            sheets.append(Sheet("picture", number, part, picture(given, shown), grid(rows, columns)))
    check(start == len(of))
    return sheets


def _together(patches: Tensor, of: Tensor, rows: int, columns: int) -> Tensor:
    """The picture that the patches of all tokens make; a token's are a square, -1 where it has none."""
    side = round(of.shape[1] ** 0.5)
    check(side * side == of.shape[1] and int(of.max()) < len(patches))
    nothing = torch.cat([patches, patches.new_zeros(1, patches.shape[1])])
    order = of.reshape(rows, columns, side, side).transpose(1, 2).flatten()
    return of_patches(nothing[order.long()], rows * side, columns * side)
