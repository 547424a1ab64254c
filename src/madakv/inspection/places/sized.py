"""Pictures of any size, padded to the largest of their call: Pixtral, Mistral 3."""

from __future__ import annotations

from madakv.inspection.places.grid import Cell
from madakv.inspection.places.pixels import picture
from madakv.inspection.places.sheet import Given, Layout, Sheet, check, rows_of, sizes


def sized(cell: Cell, *, row_ends: int = 0) -> Layout:
    """Pictures [n, 3, height, width], of which `image_sizes` [n, 2] is what counts; tokens row by row.

    Args:
        cell: see `Cell`.
        row_ends: tokens at the end of each row that stand for no pixels, and count among a picture's own.
    """

    def layout(given: Given) -> list[Sheet]:
        pixels = given.inputs.get("pixel_values")
        size = cell(given.config)
        sheets = []
        for number, (height, width) in enumerate(sizes(given.tensor("image_sizes", 2), 2)):
            rows, columns = height // size, width // size
            check(rows > 0 and columns > 0)
            shown = None
            if pixels is not None:
                check(pixels.dim() == 4 and len(pixels) > number)
                shown = pixels[number, :, : rows * size, : columns * size]
                check(shown.shape[1:] == (rows * size, columns * size))
            sheets.append(Sheet("picture", number, "", picture(given, shown), rows_of(rows, columns, row_ends)))
        return sheets

    return layout
