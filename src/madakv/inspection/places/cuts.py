"""How each family's prompts say into which tiles a picture was cut."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from madakv.inspection.places.sheet import Given, check
from madakv.inspection.places.tiles import Cut, Cuts


def by_names(cell: str, whole: str, *, one_size: bool = True) -> Cuts:
    """Tiles are named in the text before them, with row and column: Idefics3, SmolVLM.

    Args:
        cell: a pattern of the names of tiles, with the groups "row" and "column", which count from 1.
        whole: a pattern of the name of the whole, which comes behind its tiles.
        one_size: whether all tiles and wholes have equally many tokens.
    """
    pattern = re.compile(f"{cell}|(?P<whole>{whole})")

    def cuts(given: Given, per_tile: int) -> list[Cut]:
        names = list(_names(given, per_tile if one_size else None, pattern))
        found = []
        for first, behind in _spans([name["whole"] is not None for name in names], whole_first=False):
            cells = [(int(name["row"]), int(name["column"])) for name in names[first : behind - 1]]
            columns = max((column for _, column in cells), default=1)
            check(cells == [(n // columns + 1, n % columns + 1) for n in range(len(cells))])
            check(len(cells) % columns == 0)
            found.append(Cut(len(cells), columns))
        return found

    return cuts


def by_separators(whole: str, row: str, column: str, *, whole_first: bool = False, one_size: bool = True) -> Cuts:
    """Marks stand between tiles: Llama 4, Ovis2.

    Args:
        whole, row, column: patterns of the mark before the whole, before the first tile of a row, and before others.
        whole_first: whether the whole comes before its tiles.
        one_size: whether all tiles and wholes have equally many tokens.
    """
    pattern = re.compile(f"(?P<whole>{whole})|(?P<row>{row})|(?P<column>{column})")

    def cuts(given: Given, per_tile: int) -> list[Cut]:
        marks = [str(name.lastgroup) for name in _names(given, per_tile if one_size else None, pattern)]
        found = []
        for first, behind in _spans([mark == "whole" for mark in marks], whole_first=whole_first):
            inner = marks[first + 1 : behind] if whole_first else marks[first : behind - 1]
            rows = inner.count("row") or 1
            columns = len(inner) // rows
            check(not inner or inner == ["row", *["column"] * (columns - 1)] * rows)
            found.append(Cut(len(inner), columns or 1, whole_first=whole_first))
        return found

    return cuts


def up_to(whole: str, tile: str) -> Cuts:
    """The whole is named behind its tiles, which have numbers but no rows: Aya Vision.

    Args:
        whole, tile: patterns of the names before them.
    """
    pattern = re.compile(f"(?P<whole>{whole})|(?P<tile>{tile})")

    def cuts(given: Given, per_tile: int) -> list[Cut]:
        wholes = [name["whole"] is not None for name in _names(given, per_tile, pattern)]
        return [Cut(behind - first - 1) for first, behind in _spans(wholes, whole_first=False)]

    return cuts


def in_runs(given: Given, per_tile: int) -> list[Cut]:
    """The tokens of all tiles of a picture follow each other: InternVL."""
    found = []
    for run in given.runs():
        check(run.length % per_tile == 0)
        found.append(Cut(run.length // per_tile - 1))
    return found


def with_breaks(given: Given, per_tile: int) -> list[Cut]:
    """One token stands between the tiles of a picture, more between pictures: Command A Vision."""
    counts: list[int] = []
    stop = None
    for run in given.runs():
        check(run.length == per_tile)
        if run.start - 1 == stop:
            counts[-1] += 1
        else:
            counts.append(1)
        stop = run.start + run.length
    return [Cut(count - 1) for count in counts]


def _names(given: Given, per_tile: int | None, pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
    """What stands before each tile, the nearest that matches; None: tiles have any number of tokens."""
    for run, text in zip(given.runs(), given.texts(), strict=True):
        names = list(pattern.finditer(text))
        check(per_tile in (None, run.length) and bool(names))
        yield names[-1]


def _spans(wholes: list[bool], *, whole_first: bool) -> list[tuple[int, int]]:
    """The first tile of each picture and the one behind its last, from which tiles are wholes."""
    edges = [number + (not whole_first) for number, whole in enumerate(wholes) if whole]
    edges = [*edges, len(wholes)] if whole_first else [0, *edges]
    check(edges[0] == 0 and edges[-1] == len(wholes))
    return list(pairwise(edges))
