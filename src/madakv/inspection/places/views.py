"""From the inputs of a call to what a report shows of its pictures and videos."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from madakv.errors import InputError
from madakv.inspection.places.sheet import Given, Sheet, UnplacedError, grid
from madakv.inspection.places.table import LAYOUTS
from madakv.inspection.report import View
from madakv.modality import Modality, placeholder_ids

_KINDS = (Modality.IMAGE, Modality.VIDEO)


def views(
    config: Any, processor: Any, input_ids: Tensor, modality: Tensor, inputs: Mapping[str, Tensor], *, row: int = 0
) -> list[View]:
    """The pictures and frames of a prompt as the model saw them, and where its visual tokens stand in them.

    Tokens that stand for no pixels, such as those that end a row, are in no view. Where a family's layout is not
    known, or does not account for every placeholder, each run of visual tokens is a view without a picture that is
    not `known`.

    Args:
        config: the model's top-level config.
        processor: the model's; None if there is none: pictures are then scaled from their darkest to their brightest
            value, and tiles whose order is told in words are shown one by one.
        input_ids: [N] or [B, N] int64, of all rows that `inputs` is about, placeholders expanded.
        modality: like `input_ids`, of `Modality` values.
        inputs: what the processor made, by name: pixels, grids, sizes. Without pixels, views have no picture.
        row: of the batch.

    Returns:
        In reading order.

    Raises:
        InputError: shapes that do not fit, or no such row.
        UnsupportedModelError: see `placeholder_ids`.
    """
    ids, kinds = (torch.atleast_2d(tensor).cpu() for tensor in (input_ids, modality))
    if ids.dim() != 2 or ids.shape != kinds.shape:
        raise InputError(
            f"input_ids has shape {tuple(input_ids.shape)}, and modality {tuple(modality.shape)}; both must be [N] "
            "or [B, N]"
        )
    if not 0 <= row < len(ids):
        raise InputError(f"row {row} of a batch of {len(ids)}")
    known = placeholder_ids(config)
    all_visual = torch.tensor([one for kind in _KINDS for one in known.get(kind, ())], dtype=ids.dtype)
    placeholders = torch.isin(ids, all_visual)
    found = []
    for kind in _KINDS:
        at = (placeholders & (kinds == kind)).flatten().nonzero()[:, 0]
        if len(at):
            found += _of_kind(Given(config, processor, ids, at, inputs), kind, row)
    return sorted(found, key=lambda view: int(view.tokens.min()))


def _of_kind(given: Given, kind: Modality, row: int) -> list[View]:
    layout = LAYOUTS.get(str(given.config.model_type), {}).get(kind)
    try:
        if layout is None:
            raise UnplacedError
        sheets = layout(given)
        return _placed(given, sheets, row)
    except UnplacedError:
        return _unplaced(given, kind, row)


def _placed(given: Given, sheets: list[Sheet], row: int) -> list[View]:
    """Views of a row, once the placeholders of all rows are dealt out to sheets, as models do.

    Raises:
        UnplacedError: there are more or fewer placeholders than tokens, or a sheet's lie in two rows.
    """
    length = given.ids.shape[1]
    at = given.at.numpy()
    if sum(len(sheet.boxes) for sheet in sheets) != len(at):
        raise UnplacedError
    found = []
    numbers: dict[tuple[str, int], int] = {}
    start = 0
    for sheet in sheets:
        mine = at[start : start + len(sheet.boxes)]
        start += len(sheet.boxes)
        rows = np.unique(mine // length)
        if len(rows) != 1:
            raise UnplacedError
        if rows[0] != row:
            continue
        number = numbers.setdefault((sheet.name, sheet.number), 1 + sum(name == sheet.name for name, _ in numbers))
        title = f"{sheet.name} {number}" + (f", {sheet.part}" if sheet.part else "")
        real = ~np.isnan(sheet.boxes[:, 0])
        picture = None if sheet.picture is None else sheet.picture()
        found.append(View(title, picture, mine[real] - row * length, sheet.boxes[real]))
    return found


def _unplaced(given: Given, kind: Modality, row: int) -> list[View]:
    """Runs of visual tokens, as near to squares as they go."""
    length = given.ids.shape[1]
    found: list[View] = []
    for run in given.runs():
        if run.start // length != row:
            continue
        first = run.start - row * length
        columns = math.ceil(math.sqrt(run.length))
        boxes = grid(math.ceil(run.length / columns), columns)[: run.length]
        name = "visual tokens" if kind == Modality.IMAGE else "tokens of a video"
        title = f"{name} {len(found) + 1}"
        found.append(View(title, None, np.arange(first, first + run.length), boxes, known=False))
    return found
