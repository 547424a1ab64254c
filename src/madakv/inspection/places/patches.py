"""Pictures and videos of any size, as flat patches, blocks of which make a token: Qwen2-VL and those after it."""

from __future__ import annotations

from torch import Tensor

from madakv.inspection.places.pixels import picture
from madakv.inspection.places.sheet import Given, Layout, Sheet, check, grid, pair, sizes
from madakv.modality import Modality


def patches(
    kind: Modality, *, merge: str = "spatial_merge_size", blocks: bool = True, moments: str | None = None
) -> Layout:
    """Patches [n, 3 * frames * side * side] or [n, 3, side, side], and `image_grid_thw` or `video_grid_thw`.

    Args:
        kind: pictures or videos.
        merge: the attribute of the vision config that says how many patches wide and high a token is; or the input
            that says it for each picture.
        blocks: whether the patches of a token follow each other, or patches go row by row.
        moments: the attribute of the vision config that says how many steps in time a token lasts, if more than one.
    """
    name = "video" if kind == Modality.VIDEO else "image"
    pixels_name = "pixel_values_videos" if kind == Modality.VIDEO else "pixel_values"

    def layout(given: Given) -> list[Sheet]:
        grids = sizes(given.tensor(f"{name}_grid_thw", 2), 3)
        flat = given.inputs.get(pixels_name)
        if flat is not None:
            flat = flat.flatten(1)
            check(len(flat) == sum(times * rows * columns for times, rows, columns in grids))
        side = pair(given.config.vision_config.patch_size)[0]
        lasts = getattr(given.config.vision_config, moments) if moments else 1
        sheets = []
        start = 0
        for number, (times, rows, columns) in enumerate(grids):
            by = _merge(given, merge, number)
            check(by > 0 and rows % by == 0 and columns % by == 0)
            for time in range(times):
                mine = None if flat is None else flat[start : start + rows * columns]
                start += rows * columns
                if time % lasts:
                    continue
                shown = None if mine is None else _frames(mine, rows, columns, by if blocks else 1, side)
                part = _part(time // lasts, lasts * (1 if shown is None else len(shown))) if name == "video" else ""
                made = picture(given, None if shown is None else shown[0], video=name == "video")
                title = "video" if name == "video" else "picture"
                sheets.append(Sheet(title, number, part, made, grid(rows // by, columns // by)))
        return sheets

    return layout


def _merge(given: Given, name: str, number: int) -> int:
    told = given.inputs.get(name)
    if told is not None:
        check(told.numel() > number)
        return int(told.flatten()[number])
    value = getattr(given.config.vision_config, name, None)
    check(isinstance(value, int))
    return int(value or 0)


def _part(time: int, frames: int) -> str:
    """What a step in time shows, each lasting so many frames."""
    first = time * frames + 1
    return f"frame {first}" if frames == 1 else f"frames {first} to {first + frames - 1}"


def _frames(flat: Tensor, rows: int, columns: int, block: int, side: int) -> Tensor:
    """Patches of one step in time, [rows * columns, values], as its frames [frames, 3, height, width]."""
    check(flat.shape[1] % (3 * side * side) == 0)
    blocks = flat.reshape(rows // block, columns // block, block, block, 3, -1, side, side)
    return blocks.permute(5, 4, 0, 2, 6, 1, 3, 7).reshape(-1, 3, rows * side, columns * side)
