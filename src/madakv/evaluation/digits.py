"""Documents of handwritten digits and facts, with questions whose answers span several tokens.

A document interleaves numbered pictures of real handwritten digits (scikit-learn's `load_digits`) with facts
in words, and every question comes after the whole document. Its last word is the key, so that attention is
already on the evidence while the question is read, and its answer has several tokens, so that most of it is
generated after eviction. Five kinds of question:

==========  =============  ============  ==================================================
kind        prompt         answer        needs
==========  =============  ============  ==================================================
``code``    ? code n3      4 7 1         a span of text
``show``    ? show i5      red 7         one picture, by its number
``owner``   ? show n7      red 7         one picture, through the fact ``owner n7 i5 .``
``which``   ? which red    i2 i5 i9      the colour of every picture
``list``    ? list         7 3 0 ...     the digit of every picture, in reading order
==========  =============  ============  ==================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from madakv.errors import InputError
from madakv.extras import require
from madakv.question import Question

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    Floats = NDArray[np.floating]

KINDS = ("code", "show", "owner", "which", "list")
SPLITS = ("train", "held_out")
IMAGE_MARK = "<image>"
IMAGE_SIZE = 32
MAX_IMAGES = 12

COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (230, 40, 40),
    "green": (40, 200, 60),
    "blue": (60, 90, 255),
    "yellow": (240, 230, 50),
    "purple": (170, 50, 220),
    "cyan": (50, 220, 230),
    "orange": (250, 140, 20),
    "white": (240, 240, 240),
}
DIGITS = tuple(str(digit) for digit in range(10))
INDICES = tuple(f"i{number}" for number in range(1, MAX_IMAGES + 1))
NAMES = tuple(f"n{number}" for number in range(1, 21))
# fmt: off
FILLERS = (
    "the", "a", "of", "and", "in", "on", "at", "by", "for", "with", "from", "to", "it", "was", "is", "as",
    "this", "that", "one", "two", "old", "new", "long", "short", "far", "near", "early", "late", "day",
    "night", "year", "road", "river", "hill", "town", "house", "door", "field", "tree", "stone", "bridge",
    "market", "garden", "winter", "summer", "rain", "wind", "light", "walked", "stood", "saw", "kept",
    "made", "found", "told", "left", "came", "went", "under", "over",
)
# fmt: on
WORDS = (
    *("image", "code", "owner", "show", "which", "list", "?", "."),
    *COLOURS,
    *DIGITS,
    *INDICES,
    *NAMES,
    *FILLERS,
)
"""Every word that a document, a question or an answer can contain (`IMAGE_MARK` aside)."""

_GLYPH = 8
_SCALE = 3
_HELD_OUT = 300
_SPLIT_SEED = 20240611


@dataclass(frozen=True)
class Document:
    """`text` has one `<image>` mark for each of `images` (RGB), in order."""

    text: str
    images: tuple[Image.Image, ...]
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Shape:
    """What a document holds: counts of pictures and sentences, and how many questions are asked per kind."""

    images: int
    codes: int
    owners: int
    fillers: int
    asked: Mapping[str, int]

    def __post_init__(self) -> None:
        if not 0 <= self.images <= MAX_IMAGES:
            raise InputError(f"a document has 0 to {MAX_IMAGES} images, not {self.images}")
        if self.codes + self.owners > len(NAMES):
            raise InputError(f"{self.codes} codes and {self.owners} owners need more than {len(NAMES)} names")
        if self.owners > self.images:
            raise InputError(f"{self.owners} owners need as many images, not {self.images}")

    @classmethod
    def of(cls, images: int, asked: Mapping[str, int] | None = None) -> Shape:
        """The usual mix of sentences around `images` pictures; one question per kind if `asked` is None."""
        sentences = max(2, images * 2 // 3)
        return cls(
            images=images,
            codes=sentences,
            owners=images // 2,
            fillers=sentences,
            asked=dict.fromkeys(KINDS, 1) if asked is None else asked,
        )


@dataclass(frozen=True)
class Draft:
    """A document before its pictures become `PIL` images: `pixels` is uint8 [images, 32, 32, 3]."""

    text: str
    pixels: NDArray[np.uint8]
    questions: tuple[Question, ...]


def make_document(seed: int, *, images: int = MAX_IMAGES, split: str = "held_out") -> Document:
    """Document number `seed` of a split, with one question per kind; equal arguments give equal documents.

    With 12 images its text is over 300 tokens long once every picture has become 16 of them.
    """
    require("handwritten digits need", "eval", "scikit-learn")
    import numpy as np
    from PIL import Image

    if images < 2:
        raise InputError(f"a document with all kinds of question needs 2 images or more, not {images}")
    rng = np.random.default_rng([seed, SPLITS.index(known_split(split)), images])
    drafted = draft(rng, Shape.of(images), split=split)
    pictures = tuple(Image.fromarray(pixels) for pixels in drafted.pixels)
    return Document(drafted.text, pictures, drafted.questions)


def draft(rng: np.random.Generator, shape: Shape, *, split: str, distort: bool = False) -> Draft:
    """Draw a document of the given shape; `distort` varies the handwriting, for training."""
    colours = _colours(rng, shape.images)
    pixels, digits = _pictures(rng, colours, split=split, distort=distort)
    names = [NAMES[i] for i in rng.permutation(len(NAMES))[: shape.codes + shape.owners]]
    codes = {name: " ".join(DIGITS[d] for d in rng.integers(10, size=3)) for name in names[: shape.codes]}
    owned = rng.permutation(shape.images)[: shape.owners]
    owners = dict(zip(names[shape.codes :], (int(i) for i in owned), strict=True))

    sentences = [f"code {name} {code} ." for name, code in codes.items()]
    sentences += [f"owner {name} {INDICES[i]} ." for name, i in owners.items()]
    sentences += [_filler(rng) for _ in range(shape.fillers)]
    text = _interleave(rng, sentences, shape.images)

    captions = [f"{colour} {DIGITS[digit]}" for colour, digit in zip(colours, digits, strict=True)]
    pool: dict[str, list[tuple[str, str]]] = {
        "code": [(f"? code {name}", code) for name, code in codes.items()],
        "show": [(f"? show {INDICES[i]}", caption) for i, caption in enumerate(captions)],
        "owner": [(f"? show {name}", captions[i]) for name, i in owners.items()],
        "which": [
            (f"? which {colour}", " ".join(INDICES[i] for i, c in enumerate(colours) if c == colour))
            for colour in dict.fromkeys(colours)
        ],
        "list": [("? list", " ".join(DIGITS[digit] for digit in digits))] if digits else [],
    }
    questions = []
    for kind, wanted in shape.asked.items():
        order = rng.permutation(len(pool[kind]))[:wanted]
        questions += [Question(kind, *pool[kind][i]) for i in order]
    return Draft(text, pixels, tuple(questions))


def _colours(rng: np.random.Generator, images: int) -> list[str]:
    """A colour per picture, from a palette so small that most colours come twice or more."""
    if not images:
        return []
    size = max(min(2, images), images * 2 // 5)
    palette = [str(colour) for colour in rng.permutation(list(COLOURS))[:size]]
    drawn = palette * min(2, images // len(palette))
    drawn += [palette[i] for i in rng.integers(len(palette), size=images - len(drawn))]
    return [drawn[i] for i in rng.permutation(images)]


def _filler(rng: np.random.Generator) -> str:
    words = rng.integers(len(FILLERS), size=int(rng.integers(3, 7)))
    return " ".join(FILLERS[i] for i in words) + " ."


def _interleave(rng: np.random.Generator, sentences: list[str], images: int) -> str:
    """Sentences in random order around the pictures, which keep theirs so that `i5` is the fifth one read."""
    parts: list[str | None] = [*sentences, *([None] * images)]
    number = 0
    text = []
    for i in rng.permutation(len(parts)):
        part = parts[i]
        if part is None:
            part = f"image {INDICES[number]} {IMAGE_MARK}"
            number += 1
        text.append(part)
    return " ".join(text)


def _pictures(
    rng: np.random.Generator, colours: list[str], *, split: str, distort: bool
) -> tuple[NDArray[np.uint8], list[int]]:
    """Pictures uint8 [n, 32, 32, 3] of random digits in the given colours, and the digits."""
    import numpy as np

    glyphs, labels = digit_pool(split)
    chosen = rng.integers(len(labels), size=len(colours))
    paint = np.array([COLOURS[colour] for colour in colours], dtype=np.float32).reshape(-1, 3)
    return render(rng, glyphs[chosen], paint, distort=distort), [int(label) for label in labels[chosen]]


def render(rng: np.random.Generator, glyphs: Floats, paint: Floats, *, distort: bool) -> NDArray[np.uint8]:
    """Enlarge glyphs [n, 8, 8] (0 to 1) three times, place them at random, colour them with paint [n, 3].

    Returns uint8 [n, 32, 32, 3]. With `distort`, handwriting varies: size, slant, turn, bends, stroke weight.
    """
    import numpy as np

    n = len(glyphs)
    middle = (_GLYPH - 1) / 2
    corner = rng.integers(0, IMAGE_SIZE - _GLYPH * _SCALE + 1, size=(n, 2)).astype(np.float32)
    centre = corner + np.float32((_GLYPH * _SCALE - 1) / 2)
    grid = np.arange(IMAGE_SIZE, dtype=np.float32)
    y: Floats = (grid[None, :, None] - centre[:, 0, None, None]) / _SCALE
    x: Floats = (grid[None, None, :] - centre[:, 1, None, None]) / _SCALE
    if distort:
        glyphs, y, x = _distort(rng, glyphs, y, x)
    ink = _sample(glyphs, y + middle, x + middle)
    coloured = ink[..., None] * paint[:, None, None, :]
    coloured += rng.standard_normal(coloured.shape, dtype=np.float32) * 8.0
    pixels: NDArray[np.uint8] = np.clip(coloured, 0, 255).astype(np.uint8)
    return pixels


def _distort(rng: np.random.Generator, glyphs: Floats, y: Floats, x: Floats) -> tuple[Floats, Floats, Floats]:
    """Varied glyphs [n, 8, 8], and the cells [n, 32, 32] to sample them at, relative to their middle."""
    import numpy as np

    n = len(glyphs)
    # A strength per picture keeps many close to the real digit, which is what is read at the end.
    strength = rng.uniform(0.0, 1.0, size=n)

    def vary(limit: float) -> NDArray[np.float32]:
        drawn = strength * rng.uniform(-limit, limit, size=n)
        return drawn.astype(np.float32)[:, None, None]

    angle, slant = vary(0.26), vary(0.25)
    cos, sin = np.cos(angle), np.sin(angle)
    y, x = cos * y - sin * x, sin * y + cos * x
    y, x = y * np.exp(vary(0.18)), (x + slant * y) * np.exp(vary(0.18))
    wave = np.float32(2 * np.pi / _GLYPH)
    phase = rng.uniform(0, 2 * np.pi, size=(2, n)).astype(np.float32)[:, :, None, None]
    y, x = y + vary(0.55) * np.sin(wave * x + phase[0]), x + vary(0.55) * np.sin(wave * y + phase[1])
    glyphs = np.clip(glyphs, 0, 1) ** np.exp(vary(0.6))
    return np.clip(glyphs + rng.normal(0, 0.04, size=glyphs.shape), 0, 1).astype(np.float32), y, x


def _sample(glyphs: Floats, y: Floats, x: Floats) -> Floats:
    """Bilinear values of glyphs [n, 8, 8] at cell coordinates broadcasting to [n, 32, 32]; 0 outside."""
    import numpy as np

    width = _GLYPH + 2
    padded = np.pad(glyphs, ((0, 0), (1, 1), (1, 1))).reshape(-1)
    y, x = np.clip(y + 1, 0, width - 1.001), np.clip(x + 1, 0, width - 1.001)
    top, left = np.floor(y).astype(np.int64), np.floor(x).astype(np.int64)
    fy, fx = y - top, x - left
    at = np.arange(len(glyphs))[:, None, None] * width**2 + top * width + left
    upper = padded[at] * (1 - fx) + padded[at + 1] * fx
    lower = padded[at + width] * (1 - fx) + padded[at + width + 1] * fx
    sampled: Floats = upper * (1 - fy) + lower * fy
    return sampled


@cache
def digit_pool(split: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The real digits of a split: glyphs [n, 8, 8] (0 to 1) and labels [n]; no digit is in both splits."""
    require("handwritten digits need", "eval", "scikit-learn")
    import numpy as np
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    data = load_digits()
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(data.target))
    mine = order[:_HELD_OUT] if known_split(split) == "held_out" else order[_HELD_OUT:]
    return (data.images[mine] / 16).astype(np.float32), data.target[mine].astype(np.int64)


def known_split(split: str) -> str:
    """The split, or InputError."""
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}: one of {', '.join(SPLITS)}")
    return split
