"""AnyRes: the whole, and tiles whose padding was cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from tests.families import zoo
from tests.families.zoo import VIDEO
from tests.inspection.local import (
    PLACES,
    Box,
    Call,
    call_of,
    check,
    flat,
    model_of,
    picture,
    prompt,
    with_image_processor,
)

hf: Any = transformers
SIZES = [(60, 30), (20, 64), (44, 40), (64, 20)]
NEXT = with_image_processor(
    hf.LlavaNextImageProcessorPil(size={"shortest_edge": 16}, crop_size=16, image_grid_pinpoints=zoo._PINPOINTS)
)
ONEVISION = with_image_processor(
    hf.LlavaOnevisionImageProcessorPil(size={"height": 16, "width": 16}, image_grid_pinpoints=zoo._PINPOINTS)
)


@pytest.mark.parametrize("square", PLACES[1:3])
@pytest.mark.parametrize("name", ["llava_next", "llava_next_video"])
def test_tokens_of_llava_next_stand_where_the_tower_hears_them(name: str, square: Box) -> None:
    for changed in range(len(SIZES)):
        call = call_of(name, NEXT, SIZES, changed, square)
        titles = [view.title for view in call.views(call.without)]
        assert titles == [title for n in range(1, 5) for title in (f"picture {n}, whole", f"picture {n}")]
        check(call, f"picture {changed + 1}, whole", square)
        check(call, f"picture {changed + 1}", square, off=0.12)


@pytest.mark.parametrize("square", PLACES[1:3])
@pytest.mark.parametrize("size", SIZES)
def test_one_picture_of_llava_onevision_is_tiled(size: tuple[int, int], square: Box) -> None:
    call = call_of("llava_onevision", ONEVISION, [size], 0, square)
    check(call, "picture 1, whole", square)
    check(call, "picture 1", square, off=0.12)


def test_several_pictures_of_llava_onevision_are_not_tiled() -> None:
    processed = {"batch_num_images": torch.tensor([2])}
    call = call_of("llava_onevision", ONEVISION, SIZES[:2], 1, PLACES[2], **processed)
    assert [view.title for view in call.views(call.without)] == ["picture 1", "picture 2"]
    check(call, "picture 2", PLACES[2])


@pytest.mark.parametrize("name", ["llava_next_video", "llava_onevision"])
def test_frames_are_views(name: str) -> None:
    model = model_of(name)
    without = {"pixel_values_videos": zoo.noise(0, 2, 3, 3, 16, 16) / 8}
    having = {"pixel_values_videos": without["pixel_values_videos"].clone()}
    having["pixel_values_videos"][1, 2, :, 1:3, 13:15] += 0.4

    def features(given: Any) -> Tensor:
        return flat(model.get_video_features(**given).pooler_output)

    counts = [3 * 4 + (name == "llava_onevision")] * 2
    call = Call(model.config, ONEVISION, prompt(*counts, token=VIDEO), without, having, features, token=VIDEO)
    assert [view.title for view in call.views(without)] == [
        f"video {v}, frame {f}" for v in (1, 2) for f in (1, 2, 3)
    ]
    check(call, "video 2, frame 3", (13 / 16, 1 / 16, 15 / 16, 3 / 16))
    # The second video's third frame, and in it the second of two tokens in the first of two rows.
    assert call.heard() == {7 + counts[0] + 3 + 2 * 4 + 1}


@pytest.mark.parametrize(("name", "part"), [("llava_next", NEXT), ("llava_onevision", ONEVISION)])
def test_tiles_are_put_together_as_they_were(name: str, part: Any) -> None:
    call = call_of(name, part, [(32, 32)], 0, PLACES[0])
    shown = {view.title: view for view in call.views(part.image_processor([picture(32, 32)], return_tensors="pt"))}
    assert shown["picture 1"].picture == picture(32, 32)
