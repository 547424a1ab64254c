"""A picture cut into crops, whose tokens are read row by row over all of them; then the whole: Phi-4-multimodal."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from madakv.inspection.places.pixels import assembled, picture
from madakv.inspection.places.sheet import Given, Sheet, check, no_pixels, pair, rows_of, sizes


def crops_then_whole(given: Given) -> list[Sheet]:
    """Pictures [n, 1 + crops, 3, side, side], the whole first; four patches make a token, and each row has an end."""
    pixels = given.inputs.get("image_pixel_values")
    mask = given.inputs.get("image_attention_mask")
    vision = given.config.vision_config
    side, cell = pair(vision.crop_size)[0], 2 * pair(vision.patch_size)[0]
    check(side % cell == 0 and (pixels is None or pixels.shape[-2:] == (side, side)))
    per = side // cell
    sheets = []
    for number, (height, width) in enumerate(sizes(given.tensor("image_sizes", 2), 2)):
        down, across = height // side, width // side
        rows, columns = down * per, across * per
        if mask is not None:
            # What pads a picture at its right and below it has no tokens.
            rows, columns = _useful(mask[number, 1 : 1 + down * across], down, across)
        shown = whole = None
        if pixels is not None:
            whole = pixels[number, 0]
            crops = assembled(pixels[number, 1 : 1 + down * across], down, across)
            shown = crops[:, : rows * cell, : columns * cell]
        boxes = np.concatenate([rows_of(rows, columns, 1), no_pixels(1)])
        sheets.append(Sheet("picture", number, "", picture(given, shown), boxes))
        sheets.append(Sheet("picture", number, "whole", picture(given, whole), rows_of(per, per, 1)))
    return sheets


def _useful(mask: Tensor, down: int, across: int) -> tuple[int, int]:
    """Rows and columns of tokens that are no padding, from a mask of patches [crops, n, n]."""
    check(len(mask) == down * across > 0)
    every = assembled(mask[:, None, ::2, ::2], down, across)[0]
    return int(every[:, 0].sum()), int(every[0].sum())
