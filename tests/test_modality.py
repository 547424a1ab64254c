"""Which modality a token has."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from madakv import InputError, UnsupportedModelError, known_families, register_family
from madakv.modality import _FAMILIES, prompt_modality


def config(model_type: str = "qwen2_vl", **fields: object) -> SimpleNamespace:
    return SimpleNamespace(model_type=model_type, **{"image_token_id": 7, "video_token_id": 8, **fields})


IDS = torch.tensor([[0, 0, 5, 7, 7, 6, 8, 5], [5, 7, 5, 7, 8, 8, 5, 5]])
MASK = (IDS != 0).long()


def test_from_token_ids_with_padding() -> None:
    got = prompt_modality(config(), IDS, attention_mask=MASK)
    assert got.tolist() == [[-1, -1, 0, 1, 1, 0, 2, 0], [0, 1, 0, 1, 2, 2, 0, 0]]


def test_the_processors_own_types_are_trusted_first() -> None:
    types = torch.tensor([[0, 0, 0, 3, 3, 0, 0, 0]])
    got = prompt_modality(config(), IDS[:1], attention_mask=MASK[:1], mm_token_type_ids=types)
    assert got.tolist() == [[-1, -1, 0, 3, 3, 0, 0, 0]]
    assert types.min() == 0, "the input is not written to"


def test_a_four_dimensional_mask_is_not_padding() -> None:
    mask = torch.zeros(2, 1, 8, 8)
    assert (prompt_modality(config(), IDS, attention_mask=mask) >= 0).all()


def test_embeddings_without_ids() -> None:
    with pytest.raises(InputError, match="mm_token_type_ids"):
        prompt_modality(config(), None)


def test_embeddings_of_a_text_only_model() -> None:
    embeds = torch.randn(2, 5, 3)
    assert prompt_modality(SimpleNamespace(model_type="llama"), None, inputs_embeds=embeds).tolist() == [[0] * 5] * 2
    with pytest.raises(InputError, match="mm_token_type_ids"):
        prompt_modality(config(), None, inputs_embeds=embeds)


def test_an_unknown_family_says_how_to_add_it() -> None:
    unknown = config("brand_new_vlm", vision_config=object())
    with pytest.raises(UnsupportedModelError, match=r'register_family\("brand_new_vlm", image="image_token_id"\)'):
        prompt_modality(unknown, IDS)
    register_family("brand_new_vlm", image="image_token_id")
    try:
        assert "brand_new_vlm" in known_families()
        assert int((prompt_modality(unknown, IDS) == 1).sum()) == 4
    finally:
        del _FAMILIES["brand_new_vlm"]


def test_a_config_without_its_token_id() -> None:
    with pytest.raises(UnsupportedModelError, match="no integer 'image_token_id'"):
        prompt_modality(config(image_token_id=None), IDS)


def test_text_only_models_have_one_modality() -> None:
    assert prompt_modality(SimpleNamespace(model_type="llama"), IDS).abs().max() == 0


def test_types_that_nobody_knows_are_refused() -> None:
    with pytest.raises(InputError, match=r"holds \[4, 9\]"):
        prompt_modality(config(), None, mm_token_type_ids=torch.tensor([[0, 4, 9, 1]]))
    with pytest.raises(InputError, match=r"shape \(1, 3\), but input_ids \(2, 8\)"):
        prompt_modality(config(), IDS, mm_token_type_ids=torch.zeros(1, 3))
    with pytest.raises(InputError, match=r"attention_mask has shape \(2, 9\)"):
        prompt_modality(config(), IDS, attention_mask=torch.ones(2, 9))
