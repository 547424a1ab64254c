"""Where a MileBench text names its pictures: `{image#3}` and `{table#3}` are both the third one."""

from __future__ import annotations

import re

Piece = str | int
"""Text, or the number of a picture, counted from 1."""

_PLACE = re.compile(r"\{(?:image|table)#([1-9][0-9]*)\}")


def split(text: str, pictures: int) -> list[Piece]:
    """Cut a text at the places of its pictures.

    Args:
        text: with places; one whose number is beyond `pictures` stays text, as in the original.
        pictures: how many there are.

    Returns:
        Text and numbers in reading order, empty text left out. A number comes as often as it is named.
    """
    pieces: list[Piece] = []
    start = 0
    for place in _PLACE.finditer(text):
        if int(place[1]) <= pictures:
            pieces += [text[start : place.start()], int(place[1])]
            start = place.end()
    return [piece for piece in [*pieces, text[start:]] if piece != ""]


def beyond(text: str, pictures: int) -> list[str]:
    """The places whose number is beyond `pictures`, in reading order."""
    return [place[0] for place in _PLACE.finditer(text) if int(place[1]) > pictures]
