"""Pictures that were cut into tiles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from madakv.inspection.places import views
from madakv.modality import prompt_modality
from tests.families import zoo
from tests.families.zoo import IMAGE
from tests.inspection.local import (
    PLACES,
    Box,
    Call,
    check,
    clear,
    flat,
    model_of,
    picture,
    prompt,
    tower,
    with_image_processor,
)
from tests.inspection.words import tokenizer

hf: Any = transformers
SIZES = [(60, 90), (30, 20), (90, 40)]
TAGS = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]


def idefics3(side: int = 32) -> Any:
    words = tokenizer("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *TAGS)
    image_processor = hf.Idefics3ImageProcessorPil(
        size={"longest_edge": 96}, max_image_size={"longest_edge": side}, do_image_splitting=True
    )
    return hf.Idefics3Processor(image_processor, words, image_seq_len=16)


def named_call(name: str, sizes: list[tuple[int, int]], changed: int, square: Box) -> Call:
    model, processor = model_of(name), idefics3()

    def made(with_square: bool) -> Any:
        drawn = [picture(*s, square if with_square and n == changed else None) for n, s in enumerate(sizes)]
        return dict(processor(text="look at this " + "<image> " * len(sizes), images=[drawn], return_tensors="pt"))

    without, having = made(False), made(True)

    def features(given: Any) -> Any:
        taken = {name: given[name] for name in ("pixel_values", "pixel_attention_mask")}
        return flat(model.model.get_image_features(**taken).pooler_output)

    ids = without["input_ids"]
    return Call(model.config, processor, ids, without, clear(without, having), features)


@pytest.mark.parametrize("square", PLACES[1:3])
@pytest.mark.parametrize("name", ["idefics3", "smolvlm"])
def test_named_tiles_are_put_together(name: str, square: Box) -> None:
    for changed, title in enumerate(["picture 1", "picture 2", "picture 3"]):
        call = named_call(name, SIZES, changed, square)
        check(call, title, square)
        check(call, f"{title}, whole", square)


def looked_call(name: str, processor: Any, ids_of: Any, changed: int, square: Box) -> Call:
    """Of a family whose pictures go through GotOcr2's image processor; `ids_of` makes a prompt from tile counts."""
    model = model_of(name)

    def made(with_square: bool) -> Any:
        drawn = [picture(*s, square if with_square and n == changed else None) for n, s in enumerate(SIZES)]
        return dict(processor.image_processor(drawn, return_tensors="pt", crop_to_patches=True, max_patches=6))

    without, having = made(False), made(True)

    def features(given: Any) -> Any:
        return flat(model.model.get_image_features(pixel_values=given["pixel_values"]).pooler_output)

    counts = [int(count) for count in without["num_patches"]]
    assert max(counts) > 4
    return Call(model.config, processor, ids_of(counts), without, clear(without, having), features)


def got_ocr2(words: Any = None) -> Any:
    return with_image_processor(hf.GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}), words)


def internvl_prompt(counts: list[int]) -> Any:
    return prompt(*[16 * count for count in counts])


def cohere2_prompt(counts: list[int]) -> Any:
    tile = [IMAGE] * 16 + [15]
    return torch.tensor([[5, *[one for count in counts for one in [13, *tile * count, 14]], 6]])


AYA_WORDS = tokenizer("<image>", "TILE_GLOBAL", *[f"TILE_{number}" for number in range(1, 9)])


def aya_prompt(counts: list[int]) -> Any:
    ids = []
    for count in counts:
        for name in [*[f"TILE_{number}" for number in range(1, count)], "TILE_GLOBAL"]:
            ids += [AYA_WORDS.convert_tokens_to_ids(name), *[IMAGE] * 16]
    return torch.tensor([[5, *ids, 6]])


LOOKED = {
    "internvl": (got_ocr2(), internvl_prompt),
    "cohere2_vision": (got_ocr2(), cohere2_prompt),
    "aya_vision": (got_ocr2(AYA_WORDS), aya_prompt),
}


@pytest.mark.parametrize("square", PLACES[1:3])
@pytest.mark.parametrize("name", LOOKED)
def test_tiles_whose_order_is_not_told_are_put_together_by_their_look(name: str, square: Box) -> None:
    for changed, title in enumerate(["picture 1", "picture 2", "picture 3"]):
        call = looked_call(name, *LOOKED[name], changed, square)
        if SIZES[changed] != (30, 20):
            assert f"{title}, whole" in [view.title for view in call.views(call.without)]
        check(call, title, square)


def test_tiles_that_look_the_same_in_any_order_are_shown_one_by_one() -> None:
    processor, ids_of = LOOKED["internvl"]
    call = looked_call("internvl", processor, ids_of, 0, PLACES[0])
    grey = {"pixel_values": 0.5 + zoo.noise(0, *call.without["pixel_values"].shape) / 1000}
    titles = [view.title for view in call.views(grey)]
    assert titles[:3] == ["picture 1, tile 1", "picture 1, tile 2", "picture 1, tile 3"]
    assert "picture 1, whole" in titles
    assert "picture 1" not in titles


LLAMA4 = tokenizer(
    "<|patch|>", "<|image_start|>", "<|image_end|>", "<|tile_x_separator|>", "<|tile_y_separator|>", "<|image|>"
)
OVIS2 = tokenizer("<IMG_ATOM>", "<IMG_START>", "<IMG_END>", "<IMG_GRID>", "<IMG_ROW>", "<IMG_COL>")


def llama4_text(rows: int, columns: int, tile: str) -> str:
    # As the processor's _prompt_split_image.
    row = "<|tile_x_separator|>".join([tile] * columns) + "<|tile_y_separator|>"
    return f"<|image_start|>{row * rows if rows * columns > 1 else ''}<|image|>{tile}<|image_end|>"


def ovis2_text(rows: int, columns: int, tile: str) -> str:
    # As the processor's replace_image_token.
    tiles = "<IMG_ROW>".join(["<IMG_COL>".join([tile] * columns)] * rows) if rows * columns > 1 else ""
    return f"<IMG_START>{tile}<IMG_GRID>{tiles}<IMG_END>"


@pytest.mark.parametrize(
    ("name", "words", "text", "whole_first"), [("llama4", LLAMA4, llama4_text, 0), ("ovis2", OVIS2, ovis2_text, 1)]
)
def test_tiles_between_marks_are_put_together(name: str, words: Any, text: Any, whole_first: bool) -> None:
    model = model_of(name)
    side = model.config.vision_config.image_size
    grids = [(2, 3), (1, 1), (3, 1), (2, 2)]
    counts = [rows * columns + (rows * columns > 1) for rows, columns in grids]
    without = {"pixel_values": zoo.noise(3, sum(counts), 3, side, side) / 8}

    def features(given: Any) -> Any:
        made = tower(model).get_image_features(**given)
        return flat(made.last_hidden_state if name == "llama4" else made.pooler_output)

    with torch.no_grad():
        per = len(features(without)) // sum(counts)
    prompt_text = " look ".join(text(*grid, words.convert_ids_to_tokens(IMAGE) * per) for grid in grids)
    ids = words(prompt_text, return_tensors="pt")["input_ids"]
    processor = with_image_processor(hf.SiglipImageProcessorPil(), words)
    for tile, shown in ((whole_first + 4, "picture 1"), (sum(counts) - 2, "picture 4")):
        having = {"pixel_values": without["pixel_values"].clone()}
        having["pixel_values"][tile, :, 1:3, side - 2 :] += 0.4
        call = Call(model.config, processor, ids, without, having, features)
        names = [view.title for view in call.views(without) if not view.title.endswith("whole")]
        assert names == ["picture 1", "picture 2", "picture 3", "picture 4"]
        check(call, shown)
        # In (2, 3), tile 4 is in the second row and second column.
        if shown == "picture 1":
            view = next(view for view in call.views(having) if view.title == shown)
            assert view.picture is not None
            assert view.picture.size == (3 * side, 2 * side)


def test_tiles_without_a_tokenizer_are_shown_one_by_one() -> None:
    call = named_call("smolvlm", SIZES[:1], 0, PLACES[0])
    modality = prompt_modality(call.config, call.ids)[0]
    alone = views(call.config, call.processor.image_processor, call.ids[0], modality, call.without)
    assert [view.title for view in alone] == [f"tile {number}" for number in range(1, len(alone) + 1)]
    assert all(view.known for view in alone)
    together = call.views(call.without)
    assert sum(len(view.tokens) for view in alone) == sum(len(view.tokens) for view in together)


@pytest.mark.parametrize("name", ["idefics3", "smolvlm"])
def test_named_tiles_are_put_together_as_they_were(name: str) -> None:
    sizes = [(96, 64), (32, 96)]
    call = named_call(name, sizes, 0, PLACES[0])
    shown = {view.title: view.picture for view in call.views(call.without)}
    for number, size in enumerate(sizes):
        assert shown[f"picture {number + 1}"] == picture(*size)


def test_names_of_tiles_are_no_visual_tokens_though_the_processor_says_so() -> None:
    call = named_call("idefics3", SIZES, 0, PLACES[0])
    drawn = [picture(*size) for size in SIZES]
    made = call.processor(
        text="<image> <image> <image>", images=[drawn], return_tensors="pt", return_mm_token_type_ids=True
    )
    ids, kinds = made["input_ids"], made["mm_token_type_ids"]
    assert int(kinds.sum()) > int((ids == IMAGE).sum())
    found = views(call.config, call.processor, ids, kinds, made)
    assert all(view.known for view in found)
    assert sorted(token for view in found for token in view.tokens) == (ids[0] == IMAGE).nonzero()[:, 0].tolist()
