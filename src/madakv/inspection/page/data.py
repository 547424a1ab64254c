"""The data of a page: JSON, with arrays as base64 of their compressed bytes."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from madakv.errors import InputError
from madakv.inspection.page.shrinking import data_urls
from madakv.inspection.report import Report, Side, View

_SEEN = 4096
"""Most prompt tokens whose share of attention is told per token of the answer: the largest ones."""

_STEPS = 255
_LEAST = 1e-5
"""Shares of attention are told in 255 steps of one ratio, from a hundred-thousandth of the largest to the largest."""

_MARKUP = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def embedded(report: Report) -> str:
    """A report as JSON of ASCII letters that no HTML parser takes for markup.

    Raises:
        InputError: parts of the report do not fit together; says which.
    """
    _check(report)
    urls = data_urls([view.picture for view in report.views])
    data = {
        "model": report.model,
        "tokens": report.tokens,
        "modality": _array("i8", report.modality),
        "views": [_view(view, url) for view, url in zip(report.views, urls, strict=True)],
        # Of all views, one after another: hundreds of small arrays would take long to read.
        "view_tokens": _array("i32", np.concatenate([np.zeros(0), *(view.tokens for view in report.views)])),
        "view_boxes": _array("f32", np.concatenate([np.zeros((0, 4)), *(view.boxes for view in report.views)])),
        "preference": None if report.preference is None else _array("f32", report.preference),
        "sides": [_side(side) for side in report.sides],
    }
    return json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":")).translate(_MARKUP)


def _view(view: View, url: str | None) -> Mapping[str, Any]:
    width, height = (1, 1) if view.picture is None else view.picture.size
    return {
        "title": view.title,
        "url": url,
        "width": width,
        "height": height,
        "known": view.known,
        "size": int(view.tokens.size),
    }


def _side(side: Side) -> Mapping[str, Any]:
    return {
        "label": side.label,
        "method": side.method,
        "budget": side.budget,
        "of_all": isinstance(side.budget, float),
        "layers": [int(layer) for layer in side.layers],
        "kept": _array("bits", np.packbits(side.kept, axis=-1, bitorder="little"), side.kept.shape),
        "asked": None if side.asked is None else _array("i32", side.asked),
        "stays": None if side.stays is None else _array("f32", side.stays),
        "answer": side.answer,
        "recorded": side.looked is not None,
        "looked": _looked(side),
        "bytes": side.kv_bytes,
        "bytes_full": side.kv_bytes_full,
        "rows": side.rows,
    }


def _looked(side: Side) -> Mapping[str, Any] | None:
    """What was recorded for tokens of the answer, whose indices are in `of`; None if nothing was."""
    if side.looked is None:
        return None
    # The first token may come from the prompt's own pass, and then has no place in the list.
    first = len(side.answer) - len(side.looked)
    there = [(first + i, glance) for i, glance in enumerate(side.looked) if glance is not None]
    if not there:
        return None
    largest, steps = zip(*(_steps(glance.mean) for _, glance in there), strict=True)
    return {
        "of": [index for index, _ in there],
        "prompt": [float(np.nan_to_num(glance.mean).sum()) for _, glance in there],
        "largest": [float(each) for each in largest],
        "mean": _array("u8", np.stack(steps)),
        "best": _array("i32", np.stack([glance.best for _, glance in there])),
        "weight": _array("u16", np.stack([_whole(glance.weight) for _, glance in there])),
        "answer": _array("u16", np.stack([_whole(glance.answer) for _, glance in there])),
    }


def _steps(share: NDArray[np.float32]) -> tuple[float, NDArray[np.uint8]]:
    """The largest share, and all as steps below it: 255 is the largest, 0 is none, or too small to tell."""
    share = np.nan_to_num(share)
    largest = float(share.max(initial=0.0))
    if largest <= 0:
        return 0.0, np.zeros(share.shape, np.uint8)
    ratio = np.log(np.maximum(share / largest, _LEAST / 10)) / np.log(_LEAST)
    steps = np.round(_STEPS - ratio * (_STEPS - 1)).clip(0, _STEPS).astype(np.uint8)
    if share.size > _SEEN:
        steps[share < np.partition(share, -_SEEN)[-_SEEN]] = 0
    return largest, steps


def _whole(share: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Shares from 0 to 1 in steps of 1 / 65535."""
    return np.round(np.nan_to_num(share).clip(0, 1) * 65535).astype(np.uint16)


_TYPES = {"bits": "u1", "u8": "u1", "i8": "i1", "u16": "<u2", "i32": "<i4", "f32": "<f4"}


def _array(kind: str, values: NDArray[Any], shape: tuple[int, ...] | None = None) -> Mapping[str, Any]:
    """An array as the page's script reads it: zlib's format, base64."""
    raw = np.ascontiguousarray(values, dtype=_TYPES[kind]).tobytes()
    return {
        "type": kind,
        "shape": [int(size) for size in (values.shape if shape is None else shape)],
        "data": base64.b64encode(zlib.compress(raw, 6)).decode(),
    }


def _check(report: Report) -> None:
    """Raise InputError unless all parts are of one prompt, and of the same layers and heads."""
    if not 1 <= len(report.sides) <= 2:
        raise InputError(f"a report has one or two sides, not {len(report.sides)}")
    tokens = len(report.tokens)
    layers, heads = report.sides[0].kept.shape[:2]
    shapes = [
        ("modality", report.modality.shape, (tokens,)),
        *((f"boxes of {view.title!r}", view.boxes.shape, (view.tokens.size, 4)) for view in report.views),
    ]
    if report.preference is not None:
        shapes.append(("preference", report.preference.shape, (layers, heads, 4)))
    for side in report.sides:
        shapes.append((f"kept of {side.label!r}", side.kept.shape, (layers, heads, tokens)))
        shapes.append((f"layers of {side.label!r}", side.layers.shape, (layers,)))
        for name, values in (("asked", side.asked), ("stays", side.stays)):
            if values is not None:
                shapes.append((f"{name} of {side.label!r}", values.shape, (layers, heads)))
        if side.looked is not None and len(side.answer) - len(side.looked) not in (0, 1):
            raise InputError(
                f"{side.label!r} has an answer of {len(side.answer)} tokens and {len(side.looked)} glances; "
                "expected as many, or one fewer"
            )
        for glance in filter(None, side.looked or ()):
            shapes.append((f"a glance of {side.label!r}", glance.mean.shape, (tokens,)))
    for name, shape, expected in shapes:
        if shape != expected:
            raise InputError(f"{name} is of shape {list(shape)}; expected {list(expected)}")
    for view in report.views:
        if view.tokens.size and not (view.tokens.min() >= 0 and view.tokens.max() < tokens):
            raise InputError(f"{view.title!r} has tokens outside the prompt's {tokens}")
