"""Picture files, and pictures of every kind that Pillow opens, as the RGB pictures that processors take."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageMath, ImageOps, TiffImagePlugin, UnidentifiedImageError

from madakv.errors import InputError

_LINK = re.compile(r"(?i)(?:[a-z][a-z0-9+.-]+:/|data:)")
"""How a link begins; a path of Windows has a single letter before its colon."""

_MOST_SHOWN = 80


def open_images(paths: Sequence[Path]) -> list[Image.Image]:
    """Read pictures as RGB, the right way up; of an animation or a file of many pages, the first.

    Raises:
        InputError: a file that is missing, is no picture, is broken or too large, or whose greys have no known range;
            the message names it.
    """
    return [_open(path) for path in paths]


def _open(path: Path) -> Image.Image:
    name = str(path)
    if _LINK.match(name):
        # A path has lost one of the two slashes.
        name = re.sub(r"^(?!file)([^:/]+):/(?!/)", r"\1://", name)
        shown = name if len(name) <= _MOST_SHOWN else f"{name[:_MOST_SHOWN]}..."
        raise InputError(f"links are not fetched: {shown}; save the picture and give its path")
    try:
        with Image.open(path) as opened:
            return as_rgb(opened)
    except FileNotFoundError:
        raise InputError(f"no such image file: {path}") from None
    except IsADirectoryError:
        raise InputError(f"not an image file but a folder: {path}") from None
    except UnidentifiedImageError:
        raise InputError(f"not an image that Pillow can read: {path}") from None
    except Image.DecompressionBombError as error:
        raise InputError(f"the image is too large: {path} ({_first_clause(error)}); make it smaller") from None
    except InputError as error:
        raise InputError(f"{error}: {path}") from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            # Of the system, not of a decoder.
            raise InputError(f"the image file cannot be read: {path} ({error.strerror})") from None
        # Pillow's decoders raise whatever broken bytes lead to: struct.error, zlib.error, KeyError, ...
        raise InputError(f"the image file is broken: {path} ({error})") from None


def _first_clause(error: Exception) -> str:
    return str(error).partition(",")[0]


def as_rgb(image: Image.Image) -> Image.Image:
    """An RGB picture that looks like the given one: the right way up, greys of more bits scaled, transparency white.

    Args:
        image: as Pillow opened or made it, of any mode. Modes `I;16*` have the range of their bits. Mode `I` has the
            range that its file declares (PGM, tags of TIFF), mode `F` as well, or else from 0 to 1.

    Raises:
        InputError: mode `I` or `F` of an unknown range, or greys outside of it.
    """
    # Asked before the picture is turned: a copy knows nothing of its file.
    limits, inverted = _limits(image), _is_negative(image)
    image = ImageOps.exif_transpose(image)
    if limits is not None:
        return _eight_bits(image, *limits, inverted=inverted).convert("RGB")
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    key = image.info.get("transparency")
    if isinstance(key, tuple) and max(key) > 255:
        # Of a picture of 16 bits per colour, which Pillow has cut to 8 without their key.
        image.info["transparency"] = tuple(value >> 8 for value in key)
    if "A" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")


def _limits(image: Image.Image) -> tuple[float, float] | None:
    """Black and white of a picture with more than 8 bits of grey; None for any other.

    Raises:
        InputError: nothing says where they are.
    """
    if image.mode != "F" and not image.mode.startswith("I"):
        return None
    tags: Any = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    if image.mode.startswith("I;16"):
        return 0, 2 ** _first(tags.get(TiffImagePlugin.BITSPERSAMPLE, 16)) - 1
    if _SMIN_SAMPLE_VALUE in tags and _SMAX_SAMPLE_VALUE in tags:
        return float(_first(tags[_SMIN_SAMPLE_VALUE])), float(_first(tags[_SMAX_SAMPLE_VALUE]))
    if image.mode == "F":
        return 0, 1
    if image.format == "PPM":
        # Pillow has scaled the file's greys to this, whatever their largest.
        return 0, 65535
    raise InputError("32-bit greys without a declared range cannot be shown: save the picture with 8 or 16 bits")


_SMIN_SAMPLE_VALUE, _SMAX_SAMPLE_VALUE = 340, 341
"""Tags of TIFF."""


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value


def _is_negative(image: Image.Image) -> bool:
    """Whether a TIFF counts greys from white; Pillow turns those of 8 bits alone."""
    tagged = isinstance(image, TiffImagePlugin.TiffImageFile)
    return tagged and image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0  # type: ignore[attr-defined]


def _eight_bits(image: Image.Image, low: float, high: float, *, inverted: bool) -> Image.Image:
    """Greys from `low` to `high` as mode L, rounded; a transparent grey is white."""
    grey = image.convert("F" if image.mode == "F" else "I")
    values = torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.float32 if image.mode == "F" else torch.int32)
    least, most = values.min().item(), values.max().item()
    if not low <= least <= most <= high or low == high:
        raise InputError(
            f"greys from {least:g} to {most:g} are outside of the range from {low:g} to {high:g}: save the picture "
            "with 8 or 16 bits"
        )
    scale = 255 / (high - low)
    # The conversion to L cuts fractions off.
    shown = grey.point(lambda value: value * scale + (0.5 - low * scale)).convert("L")
    if inverted:
        shown = ImageOps.invert(shown)
    key = image.info.get("transparency")
    if isinstance(key, int):
        mask = ImageMath.lambda_eval(lambda names: names["convert"]((names["grey"] == key) * 255, "L"), grey=grey)
        shown.paste(255, mask=mask)
    return shown
