"""Pictures and frames of one size, whose tokens tile them row by row."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from tests.inspection.local import PLACES, Box, call_of, check, with_image_processor

hf: Any = transformers


def processor(name: str) -> Any:
    size = {"height": 16, "width": 16}
    made: dict[str, Any] = {
        "llava": lambda: hf.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=size),
        "vipllava": lambda: hf.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=size),
        "paligemma": lambda: hf.SiglipImageProcessorPil(size=size),
        "deepseek_vl": lambda: hf.DeepseekVLImageProcessorPil(size=size, min_size=4),
        "janus": lambda: hf.JanusImageProcessorPil(size=size, min_size=4),
        "gemma3": lambda: hf.Gemma3ImageProcessorPil(size={"height": 32, "width": 32}),
        "got_ocr2": lambda: hf.GotOcr2ImageProcessorPil(size={"height": 64, "width": 64}),
    }
    return with_image_processor(made[name]())


@pytest.mark.parametrize("square", PLACES)
@pytest.mark.parametrize("name", ["llava", "vipllava", "paligemma", "deepseek_vl", "janus", "gemma3"])
def test_tokens_stand_where_the_tower_hears_them(name: str, square: Box) -> None:
    call = call_of(name, processor(name), [(40, 40), (50, 50)], 1, square)
    assert [view.title for view in call.views(call.without)] == ["picture 1", "picture 2"]
    check(call, "picture 2", square)


@pytest.mark.parametrize("square", PLACES)
@pytest.mark.parametrize("name", ["mistral3", "lighton_ocr"])
def test_pictures_of_unlike_sizes_are_seen_without_their_padding(name: str, square: Box) -> None:
    pixtral = hf.PixtralImageProcessorPil(size={"longest_edge": 32}, patch_size=8)
    call = call_of(name, with_image_processor(pixtral), [(32, 24), (18, 30)], 1, square)
    assert [view.picture.size for view in call.views(call.without) if view.picture] == [(32, 24), (24, 32)]
    check(call, "picture 2", square)
