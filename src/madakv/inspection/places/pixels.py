"""Pictures from the tensors that processors made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isqrt
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from madakv.inspection.places.sheet import Given, check


def picture(given: Given, pixels: Tensor | None, *, video: bool = False) -> Callable[[], Image.Image] | None:
    """What makes a picture of pixels as a model gets them, [3, height, width]; None if there are none.

    Normalising and rescaling are undone as the processor says that they were done. If there is no processor, or it
    says nothing, the darkest value becomes black and the brightest white.
    """
    return None if pixels is None else lambda: _image(pixels, _part(given.processor, video=video))


def assembled(tiles: Tensor, rows: int, columns: int) -> Tensor:
    """[rows * columns, 3, height, width] as one picture, [3, rows * height, columns * width]."""
    _, channels, height, width = tiles.shape
    grid_of_tiles = tiles.reshape(rows, columns, channels, height, width)
    return grid_of_tiles.permute(2, 0, 3, 1, 4).reshape(channels, rows * height, columns * width)


def of_patches(flat: Tensor, rows: int, columns: int) -> Tensor:
    """Patches row by row, [rows * columns, side * side * 3], colours last, as [3, rows * side, columns * side]."""
    side = isqrt(flat.shape[-1] // 3)
    check(len(flat) == rows * columns and flat.shape[-1] == 3 * side * side)
    patches = flat.reshape(rows, columns, side, side, 3)
    return patches.permute(4, 0, 2, 1, 3).reshape(3, rows * side, columns * side)


def stacked(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Pictures of one size as one tensor; None if nobody kept their pixels, UnplacedError if sizes differ."""
    there = [part for part in parts if part is not None]
    check(len({part.shape for part in there}) <= 1)
    return torch.stack(there) if there else None


def _part(processor: Any, *, video: bool) -> Any:
    """The part of a processor that made the pixels."""
    image = getattr(processor, "image_processor", processor)
    return (getattr(processor, "video_processor", None) or image) if video else image


def _image(pixels: Tensor, part: Any) -> Image.Image:
    values = pixels.detach().float().cpu().numpy()
    if getattr(part, "image_mean", None) is None or getattr(part, "image_std", None) is None:
        low, high = float(values.min()), float(values.max())
        values = (values - low) * (255 / (high - low or 1.0))
    else:
        if getattr(part, "do_normalize", True):
            values = values * _channels(part.image_std) + _channels(part.image_mean)
        if getattr(part, "do_rescale", True):
            values = values / getattr(part, "rescale_factor", 1 / 255)
        elif values.max() <= 1:
            # Whoever did not want them rescaled had done it.
            values = values * 255
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def _channels(value: Any) -> Any:
    return np.array(value, dtype=np.float32).reshape(-1, 1, 1)
