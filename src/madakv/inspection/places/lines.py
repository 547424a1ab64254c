"""Patches that are tokens by themselves, in lines that end with a token of text: Fuyu."""

from __future__ import annotations

from madakv.inspection.places.pixels import of_patches, picture
from madakv.inspection.places.sheet import Given, Run, Sheet, check, grid


def lines(given: Given) -> list[Sheet]:
    """Patches [1, n, values] or [n, values] of all pictures; a picture is as many lines of one length as follow
    each other with one token between them."""
    pixels = given.inputs.get("pixel_values", given.inputs.get("image_patches"))
    flat = None if pixels is None else pixels.flatten(0, -2)
    check(flat is None or len(flat) == len(given.at))
    sheets = []
    start = 0
    for number, (rows, columns) in enumerate(_grids(given.runs())):
        stop = start + rows * columns
        shown = None if flat is None else of_patches(flat[start:stop], rows, columns)
        sheets.append(Sheet("picture", number, "", picture(given, shown), grid(rows, columns)))
        start = stop
    return sheets


def _grids(runs: list[Run]) -> list[tuple[int, int]]:
    """Rows and columns of each picture."""
    found: list[tuple[int, int]] = []
    stop = None
    for run in runs:
        if run.start - 1 == stop and found[-1][1] == run.length:
            found[-1] = (found[-1][0] + 1, run.length)
        else:
            found.append((1, run.length))
        stop = run.start + run.length
    return found
