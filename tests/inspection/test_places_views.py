"""What holds of every layout: batches, what is missing, what does not fit, and pictures as they were."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from madakv import bundled
from madakv.errors import InputError
from madakv.inspection.places import views
from madakv.inspection.places.table import LAYOUTS
from madakv.modality import Modality, known_families, prompt_modality
from tests.families.listed import LISTED
from tests.families.zoo import FAMILIES, IMAGE, left_padded, prompt_tokens
from tests.inspection.local import picture

hf: Any = transformers
ALL = FAMILIES | LISTED
VISUAL = [name for name in ALL if {"image", "video"} & set(prompt_tokens(ALL[name].prompt(0)))]
KNOWN = [name for name in VISUAL if name.split()[0] in LAYOUTS]


def of(name: str, inputs: Any, processor: Any = None, **options: Any) -> Any:
    config = configs(name)
    return views(config, processor, inputs["input_ids"], modality(config, inputs), inputs, **options)


@cache
def configs(name: str) -> Any:
    return ALL[name].build().config


def modality(config: Any, inputs: Any) -> Any:
    return prompt_modality(
        config, inputs["input_ids"], attention_mask=inputs["attention_mask"],
        mm_token_type_ids=inputs.get("mm_token_type_ids"),
    )  # fmt: skip


@pytest.mark.parametrize("name", VISUAL)
def test_no_token_stands_twice_and_boxes_are_inside(name: str) -> None:
    for seed in range(3):
        inputs = ALL[name].prompt(seed)
        found = of(name, inputs)
        assert all(view.known == (name in KNOWN) for view in found)
        positions = np.concatenate([view.tokens for view in found])
        visual = ((modality(configs(name), inputs) > 0) & (modality(configs(name), inputs) < 3))[0].nonzero()[:, 0]
        assert len(set(positions.tolist())) == len(positions)
        assert set(positions.tolist()) <= set(visual.tolist())
        # Small pictures have many tokens that end a row.
        assert len(positions) >= (0.6 if name == "phi4_multimodal" else 0.75) * len(visual)
        for view in found:
            assert view.tokens.dtype == np.int64
            assert view.boxes.dtype == np.float32
            assert view.boxes.shape == (len(view.tokens), 4)
            assert (view.boxes >= 0).all()
            assert (view.boxes <= 1).all()
            assert (view.boxes[:, :2] < view.boxes[:, 2:]).all()
            assert (view.picture is not None) == view.known


def test_families_without_a_layout() -> None:
    """Whose tokens come from all of a picture, or from places that overlap."""
    audio = {"audioflamingo3", "granite_speech", "qwen2_audio", "voxtral"}
    assert set(known_families()) - set(LAYOUTS) - audio == {
        "aria", "got_ocr2", "idefics2",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl video", "mistral3", "smolvlm"])
def test_rows_of_a_batch_are_like_rows_alone(name: str) -> None:
    rows = [ALL[name].prompt(seed) for seed in (0, 3)]
    batch = left_padded(rows)
    for number, row in enumerate(rows):
        shift = batch["input_ids"].shape[1] - row["input_ids"].shape[1]
        for here, alone in zip(of(name, batch, row=number), of(name, row), strict=True):
            assert here.title == alone.title
            assert here.picture == alone.picture
            np.testing.assert_array_equal(here.tokens, alone.tokens + shift)
            np.testing.assert_array_equal(here.boxes, alone.boxes)


def test_a_row_without_the_rest_of_its_batch_is_not_guessed_at() -> None:
    batch = left_padded([FAMILIES["llava"].prompt(seed) for seed in (0, 3)])
    config = configs("llava")
    found = views(config, None, batch["input_ids"][1], modality(config, batch)[1], batch)
    assert not any(view.known for view in found)


def test_no_such_row() -> None:
    with pytest.raises(InputError, match="row 1 of a batch of 1"):
        of("llava", FAMILIES["llava"].prompt(0), row=1)


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(InputError, match=r"input_ids has shape \(3,\), and modality \(2,\)"):
        views(configs("llava"), None, torch.zeros(3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), {})


@pytest.mark.parametrize(
    "name", [name for name in KNOWN if not name.endswith("video") and name not in ("video_llava", "chameleon")]
)
def test_without_pixels_boxes_stay(name: str) -> None:
    inputs = ALL[name].prompt(1)
    bare = {key: value for key, value in inputs.items() if "pixel_values" not in key}
    whole, without = of(name, inputs), of(name, bare)
    assert [view.title for view in without] == [view.title for view in whole]
    for one, other in zip(without, whole, strict=True):
        assert one.picture is None
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.tokens, other.tokens)


def test_one_placeholder_too_many_is_no_wrong_overlay() -> None:
    inputs = FAMILIES["llava"].prompt(0)
    first = int((inputs["input_ids"][0] == IMAGE).nonzero()[0])
    inputs["input_ids"][0, first - 1] = IMAGE
    found = of("llava", inputs)
    assert [(view.title, view.known, view.picture) for view in found] == [
        ("visual tokens 1", False, None),
        ("visual tokens 2", False, None),
    ]
    assert [len(view.tokens) for view in found] == [17, 16]


def test_a_prompt_of_text_has_no_views() -> None:
    inputs = FAMILIES["llama"].prompt(0)
    assert of("llama", inputs) == []


def test_pictures_are_as_they_were() -> None:
    """Through the processor and back, to the pixel, where it neither scales nor crops."""
    model, processor = bundled.load()
    sample = bundled.sample()
    size = processor.image_processor.crop_size["height"]
    shown = [image.resize((size, size)) for image in sample.images]
    inputs = processor(text=sample.text, images=shown, return_tensors="pt")
    kinds = prompt_modality(model.config, inputs["input_ids"])
    found = views(model.config, processor, inputs["input_ids"][0], kinds[0], inputs)
    assert [view.title for view in found] == [f"picture {number}" for number in range(1, len(shown) + 1)]
    for view, image in zip(found, shown, strict=True):
        np.testing.assert_array_equal(np.asarray(view.picture), np.asarray(image))


def test_half_precision_pixels_are_nearly_as_they_were() -> None:
    model, processor = bundled.load()
    side = processor.image_processor.crop_size["height"]
    image = picture(side, side)
    inputs = processor(text="<image>", images=[image], return_tensors="pt")
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    kinds = prompt_modality(model.config, inputs["input_ids"])
    (view,) = views(model.config, processor, inputs["input_ids"][0], kinds[0], inputs)
    assert np.abs(np.asarray(view.picture).astype(int) - np.asarray(image)).max() <= 2


def test_without_a_processor_darkest_is_black_and_brightest_white() -> None:
    inputs = FAMILIES["llava"].prompt(0)
    for view in of("llava", inputs):
        values = np.asarray(view.picture)
        assert values.min() == 0
        assert values.max() == 255


def test_a_picture_of_one_colour_needs_no_contrast() -> None:
    inputs = FAMILIES["llava"].prompt(0)
    inputs["pixel_values"] = torch.full_like(inputs["pixel_values"], 0.25)
    assert all(isinstance(view.picture, Image.Image) for view in of("llava", inputs))


@pytest.mark.parametrize(
    "options", [{}, {"do_normalize": False}, {"do_rescale": False, "do_normalize": False}], ids=str
)
def test_each_step_of_a_processor_is_undone(options: dict[str, bool]) -> None:
    part = hf.SiglipImageProcessorPil(size={"height": 16, "width": 16}, **options)
    image = picture(16, 16, (0.2, 0.2, 0.6, 0.8))
    inputs = FAMILIES["llava"].prompt(0)
    made = part([image, image], return_tensors="pt")["pixel_values"].float()
    for view in of("llava", {**inputs, "pixel_values": made}, part):
        np.testing.assert_array_equal(np.asarray(view.picture), np.asarray(image))


def test_padding_is_no_picture() -> None:
    inputs = FAMILIES["llava"].prompt(0)
    inputs["attention_mask"][0, :3] = 0
    assert Modality.PADDING in modality(configs("llava"), inputs)
    assert all(view.known for view in of("llava", inputs))
