"""Pictures: handwritten digits, drawn figures, painted words and grids of coloured cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from madakv.evaluation.digits import COLOURS, DIGITS, digit_pool, render
from madakv.evaluation.documents.words import FIGURES, PAINTED

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]
    Floats = NDArray[np.float32]

SIZE = 32
_NOISE = 8.0


@dataclass(frozen=True)
class Thing:
    """A digit or a figure in a colour: `red 7`, `blue ring`."""

    colour: str
    what: str

    @property
    def words(self) -> str:
        """Colour and what it is."""
        return f"{self.colour} {self.what}"


@dataclass(frozen=True)
class Painting:
    """Two words, one above the other."""

    upper: str
    lower: str
    colour: str


@dataclass(frozen=True)
class Grid:
    """Four cells in colours or empty, in the order a1, a2, b1, b2."""

    colours: tuple[str | None, ...]


Content = Thing | Painting | Grid

THINGS = tuple(Thing(colour, what) for colour in COLOURS for what in (*DIGITS, *FIGURES))


def paint(rng: np.random.Generator, contents: Sequence[Content], *, split: str, distort: bool) -> Pixels:
    """Pictures uint8 [n, 32, 32, 3] of the contents; handwriting is of the split, and varies with `distort`."""
    import numpy as np

    out = np.empty((len(contents), SIZE, SIZE, 3), np.uint8)

    def fill(where: list[int], draw: Pixels) -> None:
        if where:
            out[where] = draw

    digits = [i for i, c in enumerate(contents) if isinstance(c, Thing) and c.what in DIGITS]
    figures = [i for i, c in enumerate(contents) if isinstance(c, Thing) and c.what in FIGURES]
    paintings = [i for i, c in enumerate(contents) if isinstance(c, Painting)]
    grids = [i for i, c in enumerate(contents) if isinstance(c, Grid)]
    things = [c for c in contents if isinstance(c, Thing)]
    fill(digits, _digits(rng, [t for t in things if t.what in DIGITS], split, distort))
    fill(figures, _figures(rng, [t for t in things if t.what in FIGURES]))
    fill(paintings, _paintings(rng, [c for c in contents if isinstance(c, Painting)]))
    fill(grids, _grids(rng, [c for c in contents if isinstance(c, Grid)]))
    return out


def _colours(names: Sequence[str | None]) -> Floats:
    import numpy as np

    black = (0, 0, 0)
    return np.array([COLOURS[name] if name else black for name in names], dtype=np.float32).reshape(-1, 3)


def _digits(rng: np.random.Generator, things: list[Thing], split: str, distort: bool) -> Pixels:
    import numpy as np

    glyphs, labels = digit_pool(split)
    by_label = _by_label(split)
    chosen = [by_label[int(t.what)][int(rng.integers(len(by_label[int(t.what)])))] for t in things]
    assert all(labels[i] == int(t.what) for i, t in zip(chosen, things, strict=True))
    return render(
        rng, glyphs[np.array(chosen, dtype=np.int64)], _colours([t.colour for t in things]), distort=distort
    )


@cache
def _by_label(split: str) -> tuple[tuple[int, ...], ...]:
    labels = digit_pool(split)[1]
    return tuple(tuple(i for i, label in enumerate(labels) if label == digit) for digit in range(10))


def _figures(rng: np.random.Generator, things: list[Thing]) -> Pixels:
    import numpy as np

    n = len(things)
    radius = rng.uniform(8.0, 11.0, size=(n, 1, 1)).astype(np.float32)
    centre = rng.uniform(radius[:, 0], SIZE - 1 - radius[:, 0], size=(n, 2)).astype(np.float32)
    grid = np.arange(SIZE, dtype=np.float32)
    y = (grid[None, :, None] - centre[:, 0, None, None]) / radius
    x = (grid[None, None, :] - centre[:, 1, None, None]) / radius
    r = np.sqrt(x * x + y * y)
    square = np.maximum(abs(x), abs(y))
    # Signed distances to the outline, negative inside, in units of the radius.
    outline = {
        "circle": r - 1,
        "square": square - 0.85,
        "triangle": np.maximum(y - 0.8, 2 * abs(x) - y - 1),
        "cross": np.maximum(np.minimum(abs(x), abs(y)) - 0.3, square - 1),
        "ring": abs(r - 0.75) - 0.25,
        "diamond": abs(x) + abs(y) - 1,
    }
    kind = np.array([FIGURES.index(t.what) for t in things], dtype=np.int64)
    distance = np.stack([outline[name] for name in FIGURES])[kind, np.arange(n)]
    ink = np.clip(0.5 - distance * radius, 0, 1)
    return _coloured(rng, ink, _colours([t.colour for t in things])[:, None, None, :])


@cache
def _word_bitmaps() -> dict[str, NDArray[np.float32]]:
    """Each painted word, [11, 30], in Pillow's own bitmap font, the same on every machine."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default_imagefont()
    bitmaps = {}
    for word in PAINTED:
        image = Image.new("L", (30, 11))
        ImageDraw.Draw(image).text((0, 0), word, fill=255, font=font)
        bitmaps[word] = np.asarray(image, dtype=np.float32) / np.float32(255)
    return bitmaps


def _paintings(rng: np.random.Generator, paintings: list[Painting]) -> Pixels:
    import numpy as np

    ink = np.zeros((len(paintings), SIZE, SIZE), np.float32)
    for i, painting in enumerate(paintings):
        for line, word in enumerate((painting.upper, painting.lower)):
            y, x = int(rng.integers(6)) + 16 * line, int(rng.integers(3))
            ink[i, y : y + 11, x : x + 30] = _word_bitmaps()[word]
    return _coloured(rng, ink, _colours([p.colour for p in paintings])[:, None, None, :])


def _grids(rng: np.random.Generator, grids: list[Grid]) -> Pixels:
    import numpy as np

    ink = np.zeros((SIZE, SIZE), np.float32)
    for y in (0, 16):
        for x in (0, 16):
            ink[y + 2 : y + 14, x + 2 : x + 14] = 1
    cells = _colours([colour for grid in grids for colour in grid.colours]).reshape(-1, 2, 2, 3)
    return _coloured(rng, ink[None], cells.repeat(16, axis=1).repeat(16, axis=2))


def _coloured(rng: np.random.Generator, ink: Floats, colour: Floats) -> Pixels:
    import numpy as np

    mixed = ink[..., None] * colour
    mixed = mixed + rng.standard_normal(mixed.shape, dtype=np.float32) * _NOISE
    pixels: Pixels = np.clip(mixed, 0, 255).astype(np.uint8)
    return pixels
