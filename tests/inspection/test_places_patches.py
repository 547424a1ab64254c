"""Flat patches of pictures and videos of any size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from madakv.inspection.places import views
from tests.families.zoo import VIDEO, Inputs
from tests.inspection.local import (
    PLACES,
    Box,
    Call,
    call_of,
    check,
    clear,
    flat,
    model_of,
    picture,
    prompt,
    with_image_processor,
)

hf: Any = transformers
SIZES = [(48, 32), (30, 61), (64, 40)]
QWEN = [
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_vl_moe",
    "qwen3_5",
    "qwen3_5_moe",
    "glm4v",
    "glm4v_moe",
    "glm46v",
]


def processor(name: str) -> Any:
    area: dict[str, Any] = dict(size={"shortest_edge": 64, "longest_edge": 4096}, patch_size=4, merge_size=2)
    if name.startswith("glm"):
        return with_image_processor(hf.Glm4vImageProcessorPil(**area))
    if name == "ernie4_5_vl_moe":
        return with_image_processor(hf.Ernie4_5_VLMoeImageProcessorPil(**area))
    if name == "paddleocr_vl":
        return with_image_processor(hf.PaddleOCRVLImageProcessorPil(**area, temporal_patch_size=1))
    if name == "video_llama_3":
        return with_image_processor(hf.VideoLlama3ImageProcessorPil(**area))
    return with_image_processor(hf.Qwen2VLImageProcessorPil(**area))


OTHERS = ["ernie4_5_vl_moe", "paddleocr_vl", "video_llama_3", "qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"]


@pytest.mark.parametrize("square", PLACES[1:2])
@pytest.mark.parametrize("name", [*QWEN, *OTHERS])
def test_tokens_stand_where_the_tower_hears_them(name: str, square: Box) -> None:
    for changed in range(3):
        call = call_of(name, processor(name), SIZES, changed, square)
        check(call, f"picture {changed + 1}", square)


def frames_in_patches(frames: int, size: tuple[int, int], square: Box | None, step: int) -> Inputs:
    """A video of pictures, one with a square, in Qwen's order of patches."""
    area: dict[str, Any] = dict(size={"shortest_edge": 64, "longest_edge": 4096}, patch_size=4, merge_size=2)
    one = hf.Qwen2VLImageProcessorPil(**area, temporal_patch_size=1)
    made = one([picture(*size, square if number == step else None) for number in range(frames)], return_tensors="pt")
    _, rows, columns = made["image_grid_thw"][0].tolist()
    # Two frames make a patch: [steps, frames, patches, 3, 4 * 4].
    patches = made["pixel_values"].reshape(frames // 2, 2, rows * columns, 3, 16).permute(0, 2, 3, 1, 4)
    return {
        "pixel_values_videos": patches.reshape(-1, 3 * 2 * 16),
        "video_grid_thw": torch.tensor([[frames // 2, rows, columns]]),
    }


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_each_step_of_a_video_is_a_view(name: str) -> None:
    model = model_of(name)

    def features(given: Any) -> Tensor:
        return flat(model.get_video_features(**given).pooler_output)

    for step in (0, 4):
        without = frames_in_patches(6, (40, 24), None, step)
        having = clear(without, frames_in_patches(6, (40, 24), PLACES[1], step), "pixel_values_videos")
        call = Call(model.config, processor(name), prompt(45, token=VIDEO), without, having, features, token=VIDEO)
        titles = [view.title for view in call.views(without)]
        assert titles == [f"video 1, frames {first} to {first + 1}" for first in (1, 3, 5)]
        check(call, f"video 1, frames {step + 1} to {step + 2}", PLACES[1])


@pytest.mark.parametrize("name", [*QWEN, *OTHERS])
def test_pictures_are_as_they_were(name: str) -> None:
    sizes = [(48, 32), (32, 64)]
    call = call_of(name, processor(name), sizes, 0, PLACES[0])
    for view, size in zip(call.views(call.without), sizes, strict=True):
        assert view.picture == picture(*size)


def test_a_step_of_a_video_shows_its_first_frame() -> None:
    video = frames_in_patches(6, (40, 24), PLACES[0], 2)
    config = model_of("qwen3_vl").config
    ids = prompt(45, token=VIDEO)
    found = views(config, processor("qwen3_vl"), ids, 2 * (ids == VIDEO), video)
    assert [view.picture for view in found] == [picture(40, 24), picture(40, 24, PLACES[0]), picture(40, 24)]
