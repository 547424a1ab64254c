"""Which modality a token has."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

import madakv
from madakv import ConfigurationError, InputError, UnsupportedModelError, known_families, register_family
from madakv.modality import Modality, families, placeholder_ids, prompt_modality


@pytest.fixture(autouse=True)
def _table(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(families, "_FAMILIES", dict(families._FAMILIES))


def advised(error: UnsupportedModelError) -> str:
    """The call that a message ends with, as a user would paste it."""
    call = re.search(r"madakv\.register_family\(.*\)$", str(error))
    assert call is not None, str(error)
    return call.group()


def follow_advice(config: object) -> str:
    """Do what the message about a config says, which is enough; returns it."""
    with pytest.raises(UnsupportedModelError) as refusal:
        placeholder_ids(config)
    call = advised(refusal.value)
    exec(call, {"madakv": madakv})
    return call


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
    with pytest.raises(UnsupportedModelError, match=r'family\("brand_new_vlm", image="image_token_id", video="vi'):
        prompt_modality(unknown, IDS)
    follow_advice(unknown)
    assert "brand_new_vlm" in known_families()
    assert int((prompt_modality(unknown, IDS) == 1).sum()) == 4


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


def part(**fields: object) -> SimpleNamespace:
    return SimpleNamespace(model_type="part", **fields)


def test_sound_is_not_counted_as_text() -> None:
    """Registered for its pictures alone, a model that hears had its sounds scored, and reported, as text."""
    hears = config("hears", audio_token_id=9, video_token_id=None)
    register_family("hears", image="image_token_id")
    with pytest.raises(UnsupportedModelError, match="placeholders that its family does not name: 'audio_token_id'"):
        prompt_modality(hears, IDS)
    assert follow_advice(hears) == ('madakv.register_family("hears", image="image_token_id", audio="audio_token_id")')
    ids = torch.tensor([[5, 7, 9, 9, 5]])
    assert prompt_modality(hears, ids).tolist() == [[0, 1, 3, 3, 0]]


def test_the_advice_names_what_the_config_has() -> None:
    hears = SimpleNamespace(model_type="hears", audio_token_index=9, audio_config=part(hidden_size=3))
    assert follow_advice(hears) == 'madakv.register_family("hears", audio="audio_token_index")'
    assert placeholder_ids(hears) == {Modality.AUDIO: (9,)}


def test_placeholders_in_sub_configs() -> None:
    both = SimpleNamespace(
        model_type="both",
        text_config=part(vocab_size=8),
        vision_config=part(image_token_id=7),
        audio_config=part(encoder=part(audio_token_id=9)),
    )
    assert follow_advice(both) == (
        'madakv.register_family("both", image="vision_config.image_token_id", '
        'audio="audio_config.encoder.audio_token_id")'
    )
    assert placeholder_ids(both) == {Modality.IMAGE: (7,), Modality.AUDIO: (9,)}


def test_sub_configs_that_are_dicts() -> None:
    """As models have them that are loaded with their own code."""
    plain = SimpleNamespace(model_type="plain", vision_config={"image_token_id": 7, "hidden_size": 3})
    follow_advice(plain)
    assert placeholder_ids(plain) == {Modality.IMAGE: (7,)}


def test_several_ids_of_a_kind() -> None:
    several = SimpleNamespace(
        model_type="several", image_token_ids=[7, 8], crop=part(image_patch_id=6), audio_token_id=9
    )
    follow_advice(several)
    assert prompt_modality(several, torch.tensor([[5, 6, 7, 8, 9]])).tolist() == [[0, 1, 1, 1, 3]]
    register_family("several", image=["image_token_ids", "crop.image_patch_id"], audio="audio_token_id")
    assert placeholder_ids(several) == {Modality.IMAGE: (7, 8, 6), Modality.AUDIO: (9,)}


def test_ids_that_are_told_twice_are_named_once() -> None:
    twice = SimpleNamespace(model_type="twice", image_token_id=7, thinker_config=part(image_token_index=7))
    assert follow_advice(twice) == 'madakv.register_family("twice", image="image_token_id")'


def test_one_id_for_two_modalities() -> None:
    one = SimpleNamespace(model_type="one", image_token_id=7, video_token_id=7)
    register_family("one", image="image_token_id", video="video_token_id")
    with pytest.raises(UnsupportedModelError, match="token id 7 for image and for video"):
        placeholder_ids(one)
    assert follow_advice(one) == 'madakv.register_family("one", image="image_token_id")'
    assert placeholder_ids(one) == {Modality.IMAGE: (7,)}


def test_tokens_around_a_picture_are_text() -> None:
    around = config(
        vision_start_token_id=5, image_end_token_id=6, video_bos_token_id=4, visual_indicator_token_ids=[3]
    )
    assert prompt_modality(around, torch.tensor([[3, 4, 5, 7, 6, 8]])).tolist() == [[0, 0, 0, 1, 0, 2]]


def test_an_id_beyond_the_vocabulary_is_one() -> None:
    """Some models have no embedding for it, since none is ever looked up."""
    beyond = config(image_token_id=1000, text_config=part(vocab_size=100))
    assert prompt_modality(beyond, torch.tensor([[5, 1000, 8]])).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("value", [None, "7", True, [], [7, None], 7.0])
def test_what_is_no_id_is_refused_with_what_is_left(value: object) -> None:
    with pytest.raises(UnsupportedModelError, match="no integer 'image_token_id'") as refusal:
        placeholder_ids(config(image_token_id=value))
    assert advised(refusal.value) == 'madakv.register_family("qwen2_vl", video="video_token_id")'


def test_a_config_without_any_id_says_where_to_put_one() -> None:
    nothing = SimpleNamespace(model_type="nothing", audio_config=part())
    with pytest.raises(UnsupportedModelError, match=r"set model\.config\.audio_token_id to the id") as refusal:
        placeholder_ids(nothing)
    nothing.audio_token_id = 9
    exec(advised(refusal.value), {"madakv": madakv})
    assert placeholder_ids(nothing) == {Modality.AUDIO: (9,)}


@pytest.mark.parametrize("path", ["image_token", "vision_config.image_token_id", "image_token_id.deeper"])
def test_a_path_that_leads_nowhere(path: str) -> None:
    register_family("qwen2_vl", image=path, video="video_token_id")
    with pytest.raises(UnsupportedModelError, match="there is no such attribute"):
        placeholder_ids(config())


def test_what_is_registered_is_checked() -> None:
    for wrong in (7, ["image_token_id", 8], {"image_token_id": 7}, ""):
        with pytest.raises(ConfigurationError, match="image must be the name of a config attribute, or several; got"):
            register_family("wrong", image=wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="model_type must be"):
        register_family("", image="image_token_id")
    assert "wrong" not in known_families()


def test_what_a_config_says_is_never_markup() -> None:
    odd = config('a"b\n', vision_config=part())
    assert "\n" not in follow_advice(odd)
    assert placeholder_ids(odd) == {Modality.IMAGE: (7,), Modality.VIDEO: (8,)}


def test_advice_works_on_every_config_of_transformers() -> None:
    """Whatever names its placeholders is known, or becomes so by what the message says."""
    followed = 0
    for model_type in CONFIG_MAPPING_NAMES:
        try:
            made = CONFIG_MAPPING[model_type]()
        except Exception:
            continue
        try:
            placeholder_ids(made)
        except UnsupportedModelError as refusal:
            if "names no placeholder" not in str(refusal):
                exec(advised(refusal), {"madakv": madakv})
                assert placeholder_ids(made), model_type
                followed += 1
    assert followed > 20, transformers.__version__


def test_embeddings_are_as_many_as_their_kinds() -> None:
    kinds = torch.tensor([[0, 1, 1, 0]])
    embeds = torch.randn(1, 4, 3)
    assert prompt_modality(config(), None, mm_token_type_ids=kinds, inputs_embeds=embeds).tolist() == kinds.tolist()
    with pytest.raises(InputError, match=r"shape \(1, 4\), but inputs_embeds \(1, 3, 3\)"):
        prompt_modality(config(), None, mm_token_type_ids=kinds, inputs_embeds=embeds[:, :3])
