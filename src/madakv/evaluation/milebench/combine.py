"""Several pictures as one: a grid with captions, for models that take a single picture.

The layout is that of MileBench's combined-image set. Not taken over: its font, which is not free (captions are in
Pillow's), its JPEG files, and black where a source is transparent (here white, as everywhere in madakv).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from madakv.errors import InputError
from madakv.pictures import as_rgb

SIDE = 800
_FONT_SIZE = 32
_PADDING = 12


def combine(images: Sequence[Image.Image]) -> Image.Image:
    """One picture of all: each stretched to 800 x 800 pixels, row by row, captioned `Image 1`, `Image 2` and so on.

    Args:
        images: at least one, of any size.

    Returns:
        RGB; as many columns as a square grid would have, and as many rows as are needed: 3 x 2 cells for 5 pictures.
        Cells left over are black.

    Raises:
        InputError: no picture.
    """
    if not images:
        raise InputError("there is no picture to combine; give at least one")
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    grid = Image.new("RGB", (columns * SIDE, rows * SIDE))
    for index, image in enumerate(images):
        cell = as_rgb(image).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        _caption(cell, f"Image {index + 1}")
        row, column = divmod(index, columns)
        grid.paste(cell, (column * SIDE, row * SIDE))
    return grid


def _caption(cell: Image.Image, text: str) -> None:
    """Write white on a black box at the middle of the lower edge, in place."""
    draw = ImageDraw.Draw(cell)
    font = ImageFont.load_default(_FONT_SIZE)
    where = (SIDE / 2, SIDE - _PADDING)
    left, top, right, _ = draw.textbbox(where, text, font=font, anchor="mb")
    draw.rectangle((left - _PADDING, top - _PADDING, right + _PADDING, SIDE), fill="black")
    draw.text(where, text, fill="white", font=font, anchor="mb")
