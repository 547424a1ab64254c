"""Pictures small enough that all of them fit into one page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO

from PIL import Image

_ROOM = 3_300_000
"""Bytes of all pictures together, before base64 adds a third."""

_SIDE = 896
"""Most pixels along a side: sharp in the largest view of a page."""

_EXACT = 160 * 160
"""Pictures of so few pixels are kept bit for bit: single pixels show in them."""


def data_urls(pictures: Sequence[Image.Image | None]) -> list[str | None]:
    """WebP pictures as `data:` URLs, 4.4 MB at most together; the same picture is made once.

    Args:
        pictures: of any size; None stays None.
    """
    distinct = {id(picture): picture for picture in pictures if picture is not None}
    room = _ROOM // max(1, len(distinct))
    made = {key: _url(picture, room) for key, picture in distinct.items()}
    return [None if picture is None else made[id(picture)] for picture in pictures]


def _url(picture: Image.Image, room: int) -> str:
    picture = picture.convert("RGB")
    raw = _webp(picture, lossless=True) if picture.width * picture.height <= _EXACT else None
    # So many pixels a byte are usual: most pictures fit at once.
    side = min(_SIDE, max(picture.size), max(16, int(3 * room**0.5)))
    while raw is None or (len(raw) > room and side > 16):
        small = picture.copy()
        small.thumbnail((side, side))
        raw = _webp(small)
        side = min(int(side * 0.8), int(side * (room / len(raw)) ** 0.5))
    return "data:image/webp;base64," + base64.b64encode(raw).decode()


def _webp(picture: Image.Image, *, lossless: bool = False) -> bytes:
    file = BytesIO()
    picture.save(file, "WEBP", quality=80, method=2, lossless=lossless)
    return file.getvalue()
