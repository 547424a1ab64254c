"""What a layout is told about a call, and what it says of each picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Boxes = NDArray[np.float32]
Size = tuple[int, int]
"""Height and width, or rows and columns."""


class UnplacedError(Exception):
    """The places of a call's tokens cannot be told; never leaves this room."""


@dataclass(frozen=True, eq=False)
class Sheet:
    """A picture, a part of one, or a frame of a video, with the boxes of its tokens.

    Attributes:
        name: "picture", "video" or "tile".
        number: which of its name, over all rows of the batch; sheets of one picture share it.
        part: what of it, such as "whole" or "frame 4"; "" if it is all, or the main part.
        picture: makes it, RGB; None if nobody kept its pixels.
        boxes: [n, 4] in the order of the tokens, as in `View`; NaN for a token that stands for no pixels.
    """

    name: str
    number: int
    part: str
    picture: Callable[[], Image.Image] | None
    boxes: Boxes


@dataclass(frozen=True, eq=False)
class Given:
    """One `generate` call.

    Attributes:
        config: of the model, the top-level one.
        processor: of the model; None if nobody has it.
        ids: [B, N] int64.
        at: [n] int64, flat positions in `ids` of the placeholders of the modality that is asked for.
        inputs: what the processor made.
    """

    config: Any
    processor: Any
    ids: Tensor
    at: Tensor
    inputs: Mapping[str, Tensor]

    def tensor(self, name: str, *dims: int) -> Tensor:
        """An input that a layout cannot do without.

        Raises:
            UnplacedError: it is missing, or has another number of dimensions than any of `dims`.
        """
        found = self.inputs.get(name)
        if found is None or found.dim() not in dims:
            raise UnplacedError
        return found

    def runs(self) -> list[Run]:
        """Placeholders that follow each other without a gap, in reading order."""
        rows = self.at // self.ids.shape[1]
        breaks = (self.at.diff() != 1) | (rows.diff() != 0)
        pieces = torch.tensor_split(self.at, (breaks.nonzero()[:, 0] + 1).tolist())
        return [Run(int(piece[0]), len(piece)) for piece in pieces if len(piece)]

    def texts(self) -> list[str]:
        """What stands before each run, since the run before it or the start of its row.

        Raises:
            UnplacedError: nobody has a tokenizer.
        """
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        if not hasattr(tokenizer, "decode"):
            raise UnplacedError
        flat, length = self.ids.flatten(), self.ids.shape[1]
        found = []
        stop = 0
        for run in self.runs():
            start = max(stop, run.start - run.start % length)
            found.append(str(tokenizer.decode(flat[start : run.start].tolist(), skip_special_tokens=False)))
            stop = run.start + run.length
        return found


@dataclass(frozen=True)
class Run:
    """Placeholders that follow each other: the flat position of the first, and how many."""

    start: int
    length: int


Layout = Callable[[Given], list[Sheet]]
"""Says where the tokens of one modality of a call stand, in the order of placeholders; or raises UnplacedError."""


def grid(rows: int, columns: int) -> Boxes:
    """[rows * columns, 4], cells that tile a picture, row by row."""
    y, x = np.divmod(np.arange(rows * columns), columns)
    edges = np.stack([x / columns, y / rows, (x + 1) / columns, (y + 1) / rows], axis=-1)
    return np.asarray(edges, dtype=np.float32)


def rows_of(rows: int, columns: int, ends: int) -> Boxes:
    """A grid with so many tokens at the end of each row that stand for no pixels."""
    cells = grid(rows, columns).reshape(rows, columns, 4)
    return np.concatenate([cells, no_pixels(rows * ends).reshape(rows, ends, 4)], axis=1).reshape(-1, 4)


def within(boxes: Boxes, row: int, column: int, rows: int, columns: int) -> Boxes:
    """Boxes of a tile as those of the picture that rows x columns of such tiles make."""
    moved = boxes + np.array([column, row, column, row])
    return np.asarray(moved / np.array([columns, rows, columns, rows]), dtype=np.float32)


def no_pixels(count: int) -> Boxes:
    """[count, 4] NaN: tokens that end rows or videos, or stand for all of a picture."""
    return np.full((count, 4), np.nan, dtype=np.float32)


def pair(value: Any) -> Size:
    """A size that a config gives as one number or as height and width.

    Raises:
        UnplacedError: it is neither.
    """
    if isinstance(value, int):
        return value, value
    if isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(one, int) for one in value):
        return value[0], value[1]
    raise UnplacedError


def sizes(tensor: Tensor, width: int) -> list[list[int]]:
    """An input of sizes or grids as rows of `width` ints.

    Raises:
        UnplacedError: it has another shape.
    """
    if tensor.shape[-1:] != (width,):
        raise UnplacedError
    return [[int(value) for value in row] for row in tensor.reshape(-1, width).tolist()]


def check(holds: bool) -> None:
    """Raise UnplacedError unless it holds."""
    if not holds:
        raise UnplacedError
