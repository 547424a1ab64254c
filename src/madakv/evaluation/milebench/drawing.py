"""Small drawn pictures for sample data: a coloured figure, and words below it."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw, ImageFont

COLOURS = {
    "red": (205, 40, 40),
    "green": (35, 150, 60),
    "blue": (40, 80, 205),
    "yellow": (230, 200, 30),
    "purple": (140, 50, 170),
    "orange": (240, 130, 20),
}
SHAPES = ("circle", "square", "triangle", "cross")

_SIZES = range(64, 129, 16)
_TEXT_HEIGHT = 12


@dataclass(frozen=True)
class Thing:
    """A figure in a colour; its words, such as `red circle`, are what questions ask for."""

    colour: str
    shape: str

    @property
    def words(self) -> str:
        """Colour and shape."""
        return f"{self.colour} {self.shape}"


def any_thing(rng: Random) -> Thing:
    """One of all colours and shapes."""
    return Thing(rng.choice(list(COLOURS)), rng.choice(SHAPES))


def draw(rng: Random, thing: Thing, words: str = "") -> Image.Image:
    """A picture of a thing on grey, RGB, 64 to 128 pixels wide and high, at a place and in a size of its own.

    Args:
        rng: where size and place come from.
        thing: the figure.
        words: painted along the lower edge, in Pillow's bitmap font, the same on every machine.
    """
    width, height = rng.choice(_SIZES), rng.choice(_SIZES)
    grey = rng.randrange(200, 256)
    image = Image.new("RGB", (width, height), (grey, grey, grey))
    pen = ImageDraw.Draw(image)
    radius = rng.randrange(14, 22)
    x = rng.randrange(radius + 2, width - radius - 2)
    y = rng.randrange(radius + 2, height - radius - _TEXT_HEIGHT)
    _figure(pen, thing, x, y, radius)
    pen.text((2, height - _TEXT_HEIGHT), words, fill="black", font=ImageFont.load_default_imagefont())
    return image


def _figure(pen: ImageDraw.ImageDraw, thing: Thing, x: int, y: int, radius: int) -> None:
    colour = COLOURS[thing.colour]
    box = (x - radius, y - radius, x + radius, y + radius)
    if thing.shape == "circle":
        pen.ellipse(box, fill=colour)
    elif thing.shape == "square":
        pen.rectangle(box, fill=colour)
    elif thing.shape == "triangle":
        pen.polygon([(x, y - radius), (x + radius, y + radius), (x - radius, y + radius)], fill=colour)
    else:
        third = radius // 3
        pen.rectangle((x - radius, y - third, x + radius, y + third), fill=colour)
        pen.rectangle((x - third, y - radius, x + third, y + radius), fill=colour)
