"""Pictures as rows of patches, padded to the longest."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from madakv.inspection.places import views
from tests.families.listed import LISTED
from tests.families.zoo import FAMILIES, IMAGE
from tests.inspection.local import (
    PLACES,
    Box,
    Call,
    call_of,
    check,
    clear,
    flat,
    localised,
    model_of,
    picture,
    tower,
    with_image_processor,
)
from tests.inspection.words import tokenizer

hf: Any = transformers


@cache
def gemma4() -> Any:
    config = FAMILIES["gemma4"].build().config
    config.vision_config.position_embedding_size = 64
    return localised(hf.Gemma4ForConditionalGeneration(config).eval())


@pytest.mark.parametrize("square", PLACES[1:3])
def test_pictures_of_gemma4_stand_where_the_tower_hears_them(square: Box) -> None:
    part = with_image_processor(hf.Gemma4ImageProcessorPil(patch_size=4, max_soft_tokens=70, pooling_kernel_size=2))
    sizes = [(48, 64), (90, 30), (64, 64)]
    for changed in range(3):
        call = call_of("gemma4", part, sizes, changed, square, model=gemma4())
        found = call.views(call.without)
        assert [view.title for view in found] == ["picture 1", "picture 2", "picture 3"]
        assert found[0].picture is not None
        # As high as wide makes 3 to 4 of it, in tokens of 8 pixels.
        assert found[0].picture.size == (56, 72)
        check(call, f"picture {changed + 1}", square)


def test_patches_in_another_order_are_not_guessed_at() -> None:
    inputs = FAMILIES["gemma4"].prompt(0)
    kinds = inputs["mm_token_type_ids"]
    assert all(view.known for view in views(gemma4().config, None, inputs["input_ids"], kinds, inputs))
    inputs["image_position_ids"][0, [0, 1]] = inputs["image_position_ids"][0, [1, 0]]
    assert not any(view.known for view in views(gemma4().config, None, inputs["input_ids"], kinds, inputs))


NAMES = [f"<|img_row_{row}_col_{column}|>" for row in range(1, 5) for column in range(1, 5)]
LFM2 = tokenizer("<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>", *NAMES)


def lfm2_patches(shown: Tensor) -> Tensor:
    """[3, height, width] as the processor's convert_image_to_patches has it."""
    _, height, width = shown.shape
    return shown.reshape(3, height // 4, 4, width // 4, 4).permute(1, 3, 2, 4, 0).reshape(-1, 48)


def lfm2_text(rows: int, columns: int, *, per: int, whole: int) -> str:
    """As the processor's _build_image_tokens."""
    parts = ["<|image_start|>"]
    if rows * columns > 1:
        for row in range(rows):
            for column in range(columns):
                parts += [f"<|img_row_{row + 1}_col_{column + 1}|>", *["<image>"] * per]
        parts.append("<|img_thumbnail|>")
    return " ".join([*parts, *["<image>"] * whole, "<|image_end|>"])


def lfm2_call(changed: int, square: Box, *, names: bool = True) -> Call:
    """Three pictures: 2 x 3 tiles of 16 pixels and a whole of 16 x 24, one of 24 x 16, and 2 x 1 tiles."""
    model = model_of("lfm2_vl")
    part = hf.SiglipImageProcessorPil(do_resize=False)
    grids, wholes = [(2, 3), (1, 1), (2, 1)], [(16, 24), (24, 16), (24, 16)]

    def made(with_square: bool) -> Any:
        rows: list[Tensor] = []
        shapes = []
        for number, ((down, across), (height, width)) in enumerate(zip(grids, wholes, strict=True)):
            own = square if with_square and number == changed else None
            shown = [picture(width, height, own)]
            if down * across > 1:
                large = picture(16 * across, 16 * down, own)
                cells = [(16 * x, 16 * y, 16 * x + 16, 16 * y + 16) for y in range(down) for x in range(across)]
                shown = [*[large.crop(cell) for cell in cells], *shown]
            for each in shown:
                rows.append(lfm2_patches(part([each], return_tensors="pt")["pixel_values"][0]))
                shapes.append([each.height // 4, each.width // 4])
        longest = max(len(own) for own in rows)
        padded = [torch.nn.functional.pad(own, (0, 0, 0, longest - len(own))) for own in rows]
        mask = torch.tensor([[int(n < len(own)) for n in range(longest)] for own in rows])
        return {
            "pixel_values": torch.stack(padded),
            "spatial_shapes": torch.tensor(shapes),
            "pixel_attention_mask": mask,
        }

    without, having = made(False), made(True)
    per, sizes = 4, [height * width // 64 for height, width in wholes]
    texts = [lfm2_text(*grid, per=per, whole=whole) for grid, whole in zip(grids, sizes, strict=True)]
    text = " look ".join(texts)
    if not names:
        text = text.replace("<|img_thumbnail|>", "look")
    ids = LFM2(text, return_tensors="pt")["input_ids"]

    def features(given: Any) -> Any:
        return flat(tower(model).get_image_features(**given).pooler_output)

    return Call(model.config, with_image_processor(part, LFM2), ids, without, clear(without, having), features)


@pytest.mark.parametrize("square", PLACES[1:3])
def test_tiles_of_lfm2_are_put_together(square: Box) -> None:
    for changed, parts in enumerate((["", ", whole"], [""], ["", ", whole"])):
        call = lfm2_call(changed, square)
        for part in parts:
            check(call, f"picture {changed + 1}{part}", square, off=0.08)
    sizes = [view.picture.size for view in lfm2_call(0, square).views(call.without) if view.picture]
    assert sizes == [(48, 32), (24, 16), (16, 24), (16, 32), (16, 24)]


def test_sizes_that_are_not_those_of_the_prompt_are_not_believed() -> None:
    inputs = LISTED["lfm2_vl"].prompt(0)
    names = with_image_processor(None, LFM2)
    for order, known in (([0, 1], True), ([1, 0], False)):
        texts = [lfm2_text(1, 1, per=0, whole=(8, 6)[n]) for n in order]
        ids = LFM2(" look ".join(texts), return_tensors="pt")["input_ids"]
        found = views(model_of("lfm2_vl").config, names, ids, (ids == IMAGE).long(), inputs)
        assert [view.known for view in found] == [known] * 2


def test_tiles_of_lfm2_without_names_are_shown_one_by_one() -> None:
    call = lfm2_call(0, PLACES[0], names=False)
    found = call.views(call.without)
    assert [view.title for view in found] == [f"tile {number}" for number in range(1, 12)]
    assert all(view.known for view in found)


def test_lfm2_reads_tiles_through_its_own_processor() -> None:
    pytest.importorskip("torchvision")
    part = hf.Lfm2VlImageProcessor(
        encoder_patch_size=4, tile_size=16, max_image_tokens=8, min_image_tokens=4, max_pixels_tolerance=1.0
    )
    processor = hf.Lfm2VlProcessor(part, LFM2)
    shown = [picture(64, 32), picture(16, 16)]
    made = processor(text="<image> look <image>", images=[shown], return_tensors="pt")
    found = views(model_of("lfm2_vl").config, processor, made["input_ids"], (made["input_ids"] == IMAGE).long(), made)
    assert [view.title for view in found] == ["picture 1", "picture 1, whole", "picture 2"]
    assert found[0].picture is not None
    assert found[0].picture.width == 2 * found[0].picture.height
