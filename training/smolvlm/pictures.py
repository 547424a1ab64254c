"""Pictures of 64 x 64 pixels, and what each of their 16 visual tokens is to say.

A token stands for 16 x 16 pixels. It says a token of what is seen there: the words of a caption run over the patches
that the object covers in diagonal stripes, so that every patch holds its own part, and none holds what is elsewhere.
Patches that show nothing say a newline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from captions import FILLER, Words
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from madakv.evaluation.digits import COLOURS, DIGITS
from madakv.evaluation.documents.pictures import THINGS, Content, Grid, Painting, Thing, paint
from madakv.evaluation.documents.words import PAINTED

SIDE, CELLS, PATCH = 64, 4, 8
"""Pixels of a tile, visual tokens and pixels of a vision patch, in each direction."""
COVERED = 0.06
SPOKEN = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
MIX = {"thing": 0.20, "painting": 0.08, "grid": 0.03, "emoji": 0.14, "word": 0.36, "number": 0.14, "half": 0.05}
"""Written words take longest: with 0.12 of them, a tenth of their tokens was read after 350,000 pictures."""

Floats = NDArray[np.floating]


def in_words(what: str) -> str:
    """`seven` for `7`; figures are words."""
    return SPOKEN[int(what)] if what in DIGITS else what


@dataclass(frozen=True)
class Shown:
    """n pictures.

    Attributes:
        pixels: uint8 [n, 64, 64, 3].
        tokens: int64 [n, 16], what each visual token is to say.
        letters: int64 [n, 64], which of `LETTERS` (from 1) each vision patch shows; 0 for none.
        kinds: of each picture.
    """

    pixels: NDArray[np.uint8]
    tokens: NDArray[np.int64]
    letters: NDArray[np.int64]
    kinds: list[str]


def enlarge(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture of the documents, 32 x 32, as the model sees it."""
    return np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


class Painter:
    """Draws pictures and knows what their tokens are to say."""

    def __init__(self, words: Words, emoji: Path | None) -> None:
        self.words = words
        self._emoji = emoji
        self._filler = words.ids(FILLER)[0]

    # What the documents show.

    def contents(self, rng: np.random.Generator, contents: Sequence[Content], split: str, distort: bool) -> Shown:
        """Pictures as the documents have them."""
        small = paint(rng, contents, split=split, distort=distort)
        pixels = np.stack([enlarge(picture) for picture in small])
        tokens = np.stack([self.said(c, covered(p)) for c, p in zip(contents, pixels, strict=True)])
        letters = np.zeros((len(contents), SIDE // PATCH, SIDE // PATCH), np.int64)
        for i, content in enumerate(contents):
            if isinstance(content, Painting):
                letters[i] = _bitmap_letters(pixels[i], content)
        kinds = [type(content).__name__.lower() for content in contents]
        return Shown(pixels, tokens, letters.reshape(len(contents), -1), kinds)

    def said(self, content: Content, where: NDArray[np.bool_]) -> NDArray[np.int64]:
        """[16]: what the tokens of a picture say of which the cells `where` [4, 4] are covered."""
        if isinstance(content, Thing):
            ids = self.words.said(content.colour) + self.words.said(in_words(content.what))
            return self._stripes([ids] * CELLS, where)
        if isinstance(content, Painting):
            upper, lower = self.words.said(content.upper), self.words.said(content.lower)
            return self._stripes([upper, upper, lower, lower], where)
        cells = np.full((2, 2), self._filler)
        for i, colour in enumerate(content.colours):
            if colour is not None:
                cells[i // 2, i % 2] = self.words.said(colour)[0]
        return cells.repeat(2, 0).repeat(2, 1).reshape(-1)

    def _stripes(self, rows: Sequence[tuple[int, ...]], where: NDArray[np.bool_]) -> NDArray[np.int64]:
        tokens = np.full((CELLS, CELLS), self._filler)
        for y, x in zip(*np.nonzero(where), strict=True):
            tokens[y, x] = rows[y][(y + x) % len(rows[y])]
        return tokens.reshape(-1)

    # Beside them.

    def mixed(self, rng: np.random.Generator, n: int, split: str) -> Shown:
        """Pictures of all kinds, as `MIX` has them."""
        kinds = [str(kind) for kind in rng.choice(list(MIX), size=n, p=list(MIX.values()))]
        if not self.words.emoji:
            kinds = ["thing" if kind == "emoji" else kind for kind in kinds]
        plain = [i for i, kind in enumerate(kinds) if kind in ("thing", "painting", "grid", "half")]
        contents = [draw_content(rng, kinds[i]) for i in plain]
        shown = self.contents(rng, contents, split, distort=split == "train")
        pixels = np.empty((n, SIDE, SIDE, 3), np.uint8)
        tokens, letters = np.empty((n, CELLS**2), np.int64), np.zeros((n, (SIDE // PATCH) ** 2), np.int64)
        pixels[plain], tokens[plain], letters[plain] = shown.pixels, shown.tokens, shown.letters
        for i, content in zip(plain, contents, strict=True):
            if kinds[i] == "half":
                pixels[i] = squeezed(pixels[i], int(rng.integers(2)), int(rng.integers(2)))
                tokens[i] = self.said(content, covered(pixels[i]))
        for i, kind in enumerate(kinds):
            if kind == "emoji":
                pixels[i], tokens[i] = self._sticker(rng)
            elif kind in ("word", "number"):
                pixels[i], tokens[i], letters[i] = self._text(rng, kind, split)
        return Shown(pixels, tokens, letters, kinds)

    def _sticker(self, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        flags = rng.random() < 0.22
        names = self.words.flags if flags else self.words.emoji
        name = list(names)[int(rng.integers(len(names)))]
        pixels, ink = sticker(rng, _emoji(self._emoji, names[name]))
        return pixels, self._stripes([self.words.said(name)] * CELLS, cells(ink))

    def _text(
        self, rng: np.random.Generator, kind: str, split: str
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
        lines = 2 if rng.random() < 0.5 else 1
        if kind == "number":
            pool = _numbers(split)
            texts = [f"{pool[int(rng.integers(len(pool)))]:04d}" for _ in range(lines)]
        else:
            known = (*PAINTED, *self.words.written)
            texts = [known[int(rng.integers(len(known)))] for _ in range(lines)]
        ink = np.zeros((SIDE, SIDE), np.float32)
        tokens = np.full((CELLS, CELLS), self._filler)
        letters = np.zeros((SIDE // PATCH, SIDE // PATCH), np.int64)
        for line, text in enumerate(texts):
            size = int(rng.integers(16, 23)) if kind == "word" else int(rng.integers(20, 27))
            drawn, edges = _written(text, int(rng.integers(len(_FONTS))), size)
            room = SIDE // lines
            height, width = drawn.shape
            y = line * room + int(rng.integers(max(1, room - height + 1)))
            x = int(rng.integers(max(1, SIDE - width + 1)))
            part = drawn[: SIDE - y, : SIDE - x]
            ink[y : y + part.shape[0], x : x + part.shape[1]] = part
            top, bottom = (y + 2) // PATCH, min(SIDE - 1, y + height - 2) // PATCH
            for letter, left, right in zip(text, edges, edges[1:], strict=False):
                middle = [k for k in range(SIDE // PATCH) if x + left <= k * PATCH + PATCH / 2 < x + right]
                letters[top : bottom + 1, middle] = LETTERS.index(letter) + 1
            own = np.zeros_like(ink)
            own[y : y + part.shape[0], x : x + part.shape[1]] = part
            for row, column in zip(*np.nonzero(cells(own)), strict=True):
                if kind == "word":
                    ids = self.words.said(text)
                    tokens[row, column] = ids[(row + column) % len(ids)]
                else:
                    overlap = [
                        min(x + edges[k + 1], 16 * column + 16) - max(x + edges[k], 16 * column)
                        for k in range(len(text))
                    ]
                    tokens[row, column] = self.words.ids(text[int(np.argmax(overlap))])[0]
        return _on_ground(rng, ink), tokens.reshape(-1), letters.reshape(-1)


def draw_content(rng: np.random.Generator, kind: str) -> Content:
    """Something of the documents' own."""
    colours = list(COLOURS)
    if kind in ("thing", "half"):
        return THINGS[int(rng.integers(len(THINGS)))]
    if kind == "painting":
        upper, lower = (PAINTED[i] for i in rng.integers(len(PAINTED), size=2))
        return Painting(upper, lower, colours[int(rng.integers(len(colours)))])
    empty = int(rng.integers(8))
    return Grid(tuple(None if i == empty else colours[int(rng.integers(len(colours)))] for i in range(4)))


def squeezed(picture: NDArray[np.uint8], along: int, half: int) -> NDArray[np.uint8]:
    """`picture` in one half of a dark canvas (0 the upper or left one), along the height (0) or the width (1)."""
    canvas = np.zeros((SIDE, SIDE, 3), np.uint8)
    size = (SIDE, SIDE // 2) if along == 0 else (SIDE // 2, SIDE)
    small = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
    start = half * SIDE // 2
    if along == 0:
        canvas[start : start + SIDE // 2] = small
    else:
        canvas[:, start : start + SIDE // 2] = small
    return canvas


def cells(ink: Floats) -> NDArray[np.bool_]:
    """[4, 4]: which cells ink [64, 64] (0 to 1) covers."""
    side = SIDE // CELLS
    share = (ink > 0.35).reshape(CELLS, side, CELLS, side).mean((1, 3))
    covers: NDArray[np.bool_] = share > COVERED
    return covers


def covered(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """[4, 4]: which cells of a picture on a dark ground show something."""
    return cells(picture.max(-1).astype(np.float32) / 200)


def _ground(rng: np.random.Generator) -> Floats:
    """Dark, bright or grey, often with a gradient: [64, 64, 3]."""
    sort = rng.random()
    base = np.zeros(3) if sort < 0.4 else np.full(3, 245.0) if sort < 0.6 else np.full(3, rng.uniform(0, 255))
    slope = rng.uniform(-40, 40, size=2) * (sort > 0.5)
    axis = np.linspace(-1, 1, SIDE, dtype=np.float32)
    tilt = slope[0] * axis[:, None] + slope[1] * axis[None, :]
    ground: Floats = (base[None, None, :] + tilt[:, :, None]).astype(np.float32)
    return ground


def _finish(rng: np.random.Generator, picture: Floats) -> NDArray[np.uint8]:
    noise = rng.standard_normal(picture.shape, dtype=np.float32) * np.float32(rng.uniform(0, 10))
    pixels: NDArray[np.uint8] = np.clip(picture + noise, 0, 255).astype(np.uint8)
    return pixels


def _on_ground(rng: np.random.Generator, ink: Floats) -> NDArray[np.uint8]:
    """Ink [64, 64] in a colour that stands out."""
    ground = _ground(rng)
    dark = ground.mean() < 128
    if rng.random() < 0.3 or not dark:
        colour = np.full(3, 250.0 if dark else 10.0)
    else:
        colour = np.array(list(COLOURS.values())[int(rng.integers(len(COLOURS)))], np.float32)
    return _finish(rng, ground * (1 - ink[..., None]) + colour * ink[..., None])


def sticker(rng: np.random.Generator, drawn: Image.Image) -> tuple[NDArray[np.uint8], Floats]:
    """An emoji [64, 64, RGBA] turned, scaled and placed on a ground, and its alpha [64, 64]."""
    scale, turn = float(rng.uniform(0.7, 1.0)), float(rng.uniform(-0.1, 0.1))
    room = SIDE / 2 * (1 - scale) + 1
    dx, dy = rng.uniform(-room, room, size=2)
    cos, sin = np.cos(turn) / scale, np.sin(turn) / scale
    middle = SIDE / 2
    rows = (
        *(cos, sin, middle - cos * (middle + dx) - sin * (middle + dy)),
        *(-sin, cos, middle + sin * (middle + dx) - cos * (middle + dy)),
    )
    moved = drawn.transform((SIDE, SIDE), Image.Transform.AFFINE, rows, Image.Resampling.BILINEAR)
    array = np.asarray(moved, dtype=np.float32)
    alpha: Floats = array[..., 3] / 255
    return _finish(rng, _ground(rng) * (1 - alpha[..., None]) + array[..., :3] * alpha[..., None]), alpha


@cache
def _emoji(folder: Path | None, name: str) -> Image.Image:
    assert folder is not None
    with Image.open(folder / "img" / "twitter" / "64" / name) as opened:
        return opened.convert("RGBA").resize((SIDE, SIDE))


@cache
def _numbers(split: str) -> NDArray[np.int64]:
    drawn = np.random.default_rng(5).permutation(10_000)
    return drawn[:1000] if split == "held_out" else drawn[1000:]


_FONTS = ("DejaVuSans.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf", "DejaVuSans-Bold.ttf", "")
"""Of matplotlib, and Pillow's own."""


@cache
def _font(number: int, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if not _FONTS[number]:
        return ImageFont.load_default(size)
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / _FONTS[number]), size)


@cache
def _written(text: str, font: int, size: int) -> tuple[Floats, tuple[float, ...]]:
    """Ink of a text in a font, and where each letter begins (and the last one ends); small enough for a tile."""
    drawer = _font(font, size)
    while drawer.getlength(text) > SIDE - 2:
        size -= 1
        drawer = _font(font, size)
    left, top, right, bottom = drawer.getbbox(text)
    image = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2))
    ImageDraw.Draw(image).text((1 - left, 1 - top), text, fill=255, font=drawer)
    edges = tuple(drawer.getlength(text[:k]) - left + 1 for k in range(len(text) + 1))
    return np.asarray(image, dtype=np.float32) / 255, edges


def _bitmap_letters(picture: NDArray[np.uint8], painting: Painting) -> NDArray[np.int64]:
    """[8, 8]: the letters of the documents' painted words, six pixels each before `enlarge`."""
    letters = np.zeros((SIDE // PATCH, SIDE // PATCH), np.int64)
    bright = picture.max(-1) > 80
    for line, word in enumerate((painting.upper, painting.lower)):
        part = bright[32 * line : 32 * line + 32]
        rows, columns = np.nonzero(part.any(1))[0], np.nonzero(part.any(0))[0]
        if not len(rows):
            continue
        top, bottom = 4 * line + rows[0] // PATCH, 4 * line + rows[-1] // PATCH
        for k, letter in enumerate(word):
            left = columns[0] - 2 + 12 * k
            middle = [c for c in range(SIDE // PATCH) if left <= c * PATCH + PATCH / 2 < left + 12]
            letters[top : bottom + 1, middle] = LETTERS.index(letter) + 1
    return letters
