"""Pictures and frames of one size, whose tokens tile them row by row."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from madakv.inspection.places import views
from tests.families import zoo
from tests.families.listed import LISTED
from tests.families.zoo import VIDEO
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
    prompt,
    tower,
    with_image_processor,
)

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
    }
    return with_image_processor(made[name]())


@pytest.mark.parametrize("square", PLACES[1:3])
@pytest.mark.parametrize("name", ["llava", "vipllava", "paligemma", "deepseek_vl", "janus", "gemma3"])
def test_tokens_stand_where_the_tower_hears_them(name: str, square: Box) -> None:
    call = call_of(name, processor(name), [(40, 40), (50, 50)], 1, square)
    assert [view.title for view in call.views(call.without)] == ["picture 1", "picture 2"]
    check(call, "picture 2", square)


def hybrid_call(square: Box, name: str) -> Call:
    """DeepSeek-VL's two towers, of which one, that of `name`, sees the square."""
    part = hf.DeepseekVLHybridImageProcessorPil(
        size={"height": 16, "width": 16}, high_res_size={"height": 32, "width": 32}, min_size=4
    )
    call = call_of("deepseek_vl_hybrid", with_image_processor(part), [(40, 40), (50, 50)], 1, square)
    return replace(call, having={**call.without, name: call.having[name]})


@pytest.mark.parametrize("square", PLACES[1:3])
def test_a_hybrids_tokens_stand_where_both_of_its_towers_hear_them(square: Box) -> None:
    check(hybrid_call(square, "pixel_values"), "picture 2", square)
    # The other one is of convolutions, which hear around a cell.
    call = hybrid_call(square, "high_res_pixel_values")
    with torch.no_grad():
        before, behind = call.features(call.without), call.features(call.having)
    weight = (before - behind).norm(dim=-1).numpy() ** 2
    first, second = call.views(call.without)
    assert weight[: len(first.tokens)].max() == 0
    own = weight[len(first.tokens) :]
    x, y = ((second.boxes[:, [0, 1]] + second.boxes[:, [2, 3]]) / 2 * own[:, None]).sum(0) / own.sum()
    wanted = (square[0] + square[2]) / 2, (square[1] + square[3]) / 2
    assert max(abs(x - wanted[0]), abs(y - wanted[1])) < 1 / 4


@pytest.mark.parametrize("square", PLACES[1:3])
def test_lines_of_fuyu(square: Box) -> None:
    """Patches, with no tower: each is a token."""
    model = LISTED["fuyu"].model()
    part = hf.FuyuImageProcessorPil(size={"height": 24, "width": 32}, patch_size={"height": 4, "width": 4})
    # As many columns in both, so that only the text between them tells them apart.
    sizes = [(32, 18), (32, 24)]

    def made(with_square: bool) -> Any:
        rows = []
        for number, size in enumerate(sizes):
            image = picture(*size, square if with_square and number else None)
            one = part([image], return_tensors="pt")
            height, width = (int(one[f"image_unpadded_{way}s"][0][0]) for way in ("height", "width"))
            shown = one["images"][0][..., : -(-height // 4) * 4, : -(-width // 4) * 4]
            rows.append(part.patchify_image(shown[0].numpy(), part.patch_size))
        return {"pixel_values": torch.cat([torch.as_tensor(each) for each in rows])}

    without, having = made(False), made(True)

    def features(given: Any) -> Any:
        return flat(tower(model).get_image_features(**given).last_hidden_state)

    # As the processor's replace_image_token, with "|NEWLINE|" behind each line.
    pieces = [torch.arange(5, 12)]
    for rows in (5, 6):
        pieces += [torch.tensor([*[zoo.IMAGE] * 8, zoo.VISION_END] * rows), torch.arange(20, 23)]
    ids = torch.cat(pieces)[None]
    call = Call(model.config, with_image_processor(part), ids, without, clear(without, having), features)
    assert [view.picture.size for view in call.views(without) if view.picture] == [(32, 20), (32, 24)]
    check(call, "picture 2", square)
    old = Call(model.config, None, ids, {"image_patches": without["pixel_values"]}, {}, features)
    assert [view.title for view in old.views(old.without)] == ["picture 1", "picture 2"]


@pytest.mark.parametrize("square", PLACES[1:3])
@pytest.mark.parametrize("name", ["mistral3", "lighton_ocr"])
def test_pictures_of_unlike_sizes_are_seen_without_their_padding(name: str, square: Box) -> None:
    pixtral = hf.PixtralImageProcessorPil(size={"longest_edge": 32}, patch_size=8)
    call = call_of(name, with_image_processor(pixtral), [(32, 24), (18, 30)], 1, square)
    assert [view.picture.size for view in call.views(call.without) if view.picture] == [(32, 24), (24, 32)]
    check(call, "picture 2", square)


def test_pictures_and_frames_of_video_llava() -> None:
    """Frames keep the token that stands for all of one, pictures lose it."""
    model = model_of("video_llava")
    part = with_image_processor(hf.CLIPImageProcessorPil())
    still, moving = zoo.noise(1, 2, 3, 16, 16) / 8, zoo.noise(2, 1, 3, 3, 16, 16) / 8
    without = {"pixel_values": still, "pixel_values_videos": moving}
    having = {"pixel_values": still.clone(), "pixel_values_videos": moving.clone()}
    having["pixel_values"][1, :, 5:7, 13:15] += 0.4
    having["pixel_values_videos"][0, 2, :, 13:15, 5:7] += 0.4
    ids = torch.cat([prompt(16, 16), prompt(3 * 17, token=VIDEO)], dim=1)

    def pictures(given: Any) -> Any:
        return flat(tower(model).get_image_features(pixel_values=given["pixel_values"]).pooler_output)

    def frames(given: Any) -> Any:
        return flat(tower(model).get_video_features(given["pixel_values_videos"]).pooler_output)

    titles = ["picture 1", "picture 2", *[f"video 1, frame {number}" for number in (1, 2, 3)]]
    asked = Call(model.config, part, ids, without, having | {"pixel_values_videos": moving}, pictures)
    assert [view.title for view in asked.views(without)] == titles
    check(asked, "picture 2", (13 / 16, 5 / 16, 15 / 16, 7 / 16))
    seen = Call(model.config, part, ids, without, having | {"pixel_values": still}, frames, token=VIDEO)
    check(seen, "video 1, frame 3", (5 / 16, 13 / 16, 7 / 16, 15 / 16))
    older = {"pixel_values_images": still, "pixel_values_videos": moving}
    assert [view.title for view in asked.views(older)] == titles


def test_a_tower_whose_patches_do_not_fill_its_pictures_never_sees_the_rest() -> None:
    config = hf.LlavaConfig(
        text_config=hf.LlamaConfig(**zoo.text_sizes()),
        vision_config=hf.SiglipVisionConfig(**zoo.vision_sizes(image_size=18, vision_use_head=False)),
        image_token_index=zoo.IMAGE,
        vision_feature_select_strategy="full",
    )
    model = localised(hf.LlavaForConditionalGeneration(config).eval())
    part = with_image_processor(hf.SiglipImageProcessorPil(size={"height": 18, "width": 18}))
    without = dict(part.image_processor([picture(18, 18)], return_tensors="pt"))
    having = {"pixel_values": without["pixel_values"].clone()}
    having["pixel_values"][0, :, 13:15, 9:11] += 0.4

    def features(given: Any) -> Any:
        return flat(tower(model).get_image_features(**given).pooler_output)

    call = Call(config, part, prompt(16), without, having, features)
    (view,) = call.views(without)
    assert view.picture is not None
    assert view.picture.size == (16, 16)
    check(call, "picture 1", (9 / 16, 13 / 16, 11 / 16, 15 / 16))


def test_a_token_that_stands_for_all_of_a_picture_is_in_no_view() -> None:
    model = model_of("llava")
    config = copy.deepcopy(model.config)
    config.vision_feature_select_strategy = "full"
    pixels = {"pixel_values": zoo.noise(0, 1, 3, 16, 16)}
    kept = tower(model).get_image_features(**pixels, vision_feature_select_strategy="full").pooler_output
    ids = prompt(len(flat(kept)))
    (view,) = views(config, None, ids[0], (ids[0] == zoo.IMAGE).long(), pixels)
    assert view.known
    assert view.tokens.tolist() == list(range(8, 24))


@pytest.mark.parametrize("square", PLACES[1:2])
def test_pixtral_in_llava(square: Box) -> None:
    """As mistral-community's conversion, whose rows are set apart by tokens of text."""
    config = hf.LlavaConfig(
        text_config=hf.MistralConfig(**zoo.text_sizes(head_dim=8, sliding_window=None)),
        vision_config=hf.PixtralVisionConfig(**zoo.vision_sizes(image_size=32)),
        image_token_index=zoo.IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    model = localised(hf.LlavaForConditionalGeneration(config).eval())
    part = with_image_processor(hf.PixtralImageProcessorPil(size={"longest_edge": 32}, patch_size=4))

    def made(square: Box | None) -> Any:
        drawn = [picture(32, 24), picture(20, 28, square)]
        return dict(part.image_processor(drawn, return_tensors="pt"))

    without, having = made(None), made(square)

    def features(given: Any) -> Any:
        return flat(tower(model).get_image_features(**given).pooler_output)

    rows = [8] * 6 + [5] * 7
    call = Call(config, part, prompt(*rows), without, clear(without, having), features)
    assert [len(view.tokens) for view in call.views(without)] == [48, 35]
    check(call, "picture 2", square)


@pytest.mark.parametrize("name", ["chameleon", "emu3"])
def test_convolutions_hear_around_the_middle_of_a_box(name: str) -> None:
    """A token of a quantizer hears of its neighbours' pixels too, as much on one side as on the other."""
    model = model_of(name)
    encoder = tower(model).vqmodel.encoder
    inputs = {"pixel_values": zoo.noise(5, 1, 3, 16, 16), "image_sizes": torch.tensor([[16, 16]])}
    ids = torch.full((1, 64 + (8 if name == "emu3" else 0)), zoo.IMAGE)
    (view,) = views(model.config, None, ids, (ids == zoo.IMAGE).long(), inputs)
    assert view.known
    assert len(view.tokens) == 64
    moved = []
    for number in range(24):
        row, column = torch.randint(2, 13, (2,), generator=torch.Generator().manual_seed(number)).tolist()
        pixels = inputs["pixel_values"].clone()
        pixels[..., row : row + 2, column : column + 2] += 4
        still = [inputs["pixel_values"], pixels]
        # Emu3 reads a picture as a video that stands still.
        frames = still if name == "chameleon" else [one[:, None].repeat(1, 4, 1, 1, 1) for one in still]
        with torch.no_grad():
            before, behind = (encoder(one) for one in frames)
        changed = (before - behind).norm(dim=-3).reshape(-1).numpy() ** 2
        boxes = view.boxes * 16
        middle = np.stack([boxes[:, [0, 2]].mean(1), boxes[:, [1, 3]].mean(1)], axis=-1)
        heard = (middle * changed[:, None]).sum(0) / changed.sum()
        moved.append(np.abs(heard - [column + 1, row + 1]))
        if abs(row - column) > 3:
            # Nearer to where it is than to where it would be if rows were columns.
            assert moved[-1].sum() < np.abs(heard - [row + 1, column + 1]).sum()
    assert (np.median(moved, axis=0) < 16 / 8).all()
