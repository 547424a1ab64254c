"""Models that eviction does not fit as a whole, wrappers around models, and prompts of embeddings."""

from __future__ import annotations

import copy
import io
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import madakv
from madakv import ConfigurationError, InputError, UnsupportedModelError, UnsupportedOptionError
from madakv.modality import families
from tests import tiny
from tests.families.listed import LISTED
from tests.families.zoo import AUDIO, FAMILIES, IMAGE, VIDEO, Inputs

hf: Any = transformers


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


def fresh(make: Any) -> Any:
    """A model of its own, that a test may change."""
    return make.__wrapped__()


def _mllama() -> Any:
    text = dict(
        vocab_size=100, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, cross_attention_layers=[1], pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )  # fmt: skip
    vision = dict(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_global_layers=1, attention_heads=2,
        image_size=8, patch_size=4, intermediate_layers_indices=[0], max_num_tiles=1, vision_output_dim=32,
        supported_aspect_ratios=[[1, 1]],
    )  # fmt: skip
    return hf.MllamaForConditionalGeneration(hf.MllamaConfig(text_config=text, vision_config=vision))


def _blip_like(family: str) -> Any:
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    config = getattr(hf, f"{family}Config")(
        vision_config=sizes | dict(image_size=8, patch_size=4),
        qformer_config=sizes | dict(encoder_hidden_size=16, vocab_size=20),
        text_config=dict(
            model_type="opt", vocab_size=20, hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2,
            word_embed_proj_dim=16,
        ),
        image_token_index=7,
    )  # fmt: skip
    return getattr(hf, f"{family}ForConditionalGeneration")(config)


def _kosmos2() -> Any:
    text = dict(vocab_size=20, embed_dim=16, layers=1, ffn_dim=16, attention_heads=2)
    vision = dict(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    return hf.Kosmos2ForConditionalGeneration(
        hf.Kosmos2Config(text_config=text, vision_config=vision, latent_query_num=2)
    )


UNFIT: dict[str, tuple[Callable[[], Any], str]] = {
    "mllama": (_mllama, "cross-attention layers"),
    "blip-2": (lambda: _blip_like("Blip2"), "a model inside it"),
    "instructblip": (lambda: _blip_like("InstructBlip"), "a model inside it"),
    "kosmos-2": (_kosmos2, "a model inside it"),
}


@pytest.mark.parametrize("name", UNFIT)
@pytest.mark.parametrize("registered", [False, True])
def test_models_that_do_not_fit_are_refused_by_name(
    name: str, registered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To follow advice that was printed for them ended in an AttributeError or a TypeError."""
    build, why = UNFIT[name]
    model = build().eval()
    monkeypatch.setattr(families, "_FAMILIES", dict(families._FAMILIES))
    if registered:
        madakv.register_family(name, image="image_token_index")
    with pytest.raises(UnsupportedModelError, match=f"{name}.*{why}") as refusal, madakv.evict(model, budget=0.5):
        pass
    assert "register_family" not in str(refusal.value)


def test_a_compiled_model_is_refused_and_says_how_to_undo_it() -> None:
    """Its prompt went by unannounced, into a RuntimeError."""
    model, (tokens, _) = fresh(tiny.llama), tiny.ids(20)
    want = tiny.greedy(model, {"input_ids": tokens}, 3)
    model.compile(backend="eager")
    with pytest.raises(UnsupportedOptionError, match=r"^model\.compile\(\) cannot") as refusal, madakv.evict(model):
        pass
    undo = next(part for part in str(refusal.value).split("; ")[1].split(", ") if "_compiled_call_impl" in part)
    exec(undo.removeprefix("undo it with "), {"model": model})
    with madakv.evict(model, budget=1.0):
        assert torch.equal(tiny.greedy(model, {"input_ids": tokens}, 3), want)
        with pytest.raises(UnsupportedOptionError, match=r"^model\.compile\(\) cannot"):
            model.compile(backend="eager")
    model.compile(backend="eager")


@pytest.mark.parametrize("how", ["deepcopy", "copy", "pickle", "torch.save"])
def test_a_model_inside_its_block_is_not_copied(how: str) -> None:
    model = fresh(tiny.llama)
    ways: dict[str, Callable[[Any], Any]] = {
        "deepcopy": copy.deepcopy,
        "copy": copy.copy,
        "pickle": pickle.dumps,
        "torch.save": lambda it: torch.save({"model": it}, io.BytesIO()),
    }
    with madakv.evict(model), pytest.raises(UnsupportedOptionError, match="inside `madakv.evict`"):
        ways[how](model)
    ways[how](model)


def test_weights_are_saved_inside_the_block_as_outside(tmp_path: Path) -> None:
    model = fresh(tiny.llama)
    want = {name: weight.clone() for name, weight in model.state_dict().items()}
    with madakv.evict(model):
        model.save_pretrained(tmp_path)
        assert list(model.state_dict()) == list(want)
    again = type(model).from_pretrained(tmp_path)
    assert again.config._attn_implementation == "sdpa"
    assert all(torch.equal(weight, want[name]) for name, weight in again.state_dict().items())


class _Pipeline:
    def __init__(self, model: Any) -> None:
        self.model = model


def test_wrappers_say_where_the_model_is() -> None:
    model = fresh(tiny.llama)
    with pytest.raises(ConfigurationError, match=r"got _Pipeline\. Pass the model inside, \.model$"):
        madakv.evict(_Pipeline(model)).__enter__()
    with pytest.raises(ConfigurationError, match=r"got OptimizedModule\. .*model\._orig_mod"):
        madakv.evict(torch.compile(model, backend="eager")).__enter__()


def _adapted(kind: str) -> Any:
    peft: Any = pytest.importorskip("peft")
    configs = {
        "LoRA": lambda: peft.LoraConfig(
            task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False
        ),
        "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    }
    return peft.get_peft_model(fresh(tiny.llama), configs[kind]()).eval()


@pytest.mark.parametrize("kind", ["LoRA", "prompt"])
def test_peft_models_are_evicted_by_the_model_inside(kind: str) -> None:
    model, inputs = _adapted(kind), {"input_ids": tiny.ids(20)[0]}
    want = tiny.greedy(model, inputs, 4)
    with pytest.raises(ConfigurationError, match=r"got PeftModelForCausalLM\. .*pass model\.get_base_model\(\)"):
        madakv.evict(model).__enter__()
    with madakv.evict(model.get_base_model(), budget=1.0) as run:
        assert torch.equal(tiny.greedy(model, inputs, 4), want)
    assert run.last is not None
    assert run.last.prompt_tokens == {"text": 20 + 3 * (kind == "prompt")}


def test_prefix_tuning_is_refused() -> None:
    """Its entries would be in the cache before the prompt; it ended in an AttributeError."""
    model, inputs = _adapted("prefix"), {"input_ids": tiny.ids(20)[0]}
    with madakv.evict(model.get_base_model()):
        with pytest.raises(
            UnsupportedOptionError, match=r"PEFT's PREFIX_TUNING cannot .* past_key_values of its own"
        ):
            tiny.greedy(model, inputs, 4)
        with pytest.raises(UnsupportedOptionError, match="past_key_values"):
            model(**inputs)
    assert "peft" in sys.modules


def _embedded(model: Any, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Embeddings [1, N, D] of a prompt with its media in their places, and the kinds [1, N] of its tokens."""
    seen: list[Tensor] = []

    def look(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["inputs_embeds"])

    hook = model.get_decoder().register_forward_pre_hook(look, with_kwargs=True)
    model(**inputs)
    hook.remove()
    ids = inputs["input_ids"]
    return seen[0], sum(kind * (ids == token).long() for kind, token in ((1, IMAGE), (2, VIDEO), (3, AUDIO)))


@pytest.mark.parametrize("name", ["llava", "mistral3", "qwen2_audio", "qwen2_5_vl"])
def test_a_prompt_of_embeddings_is_told_by_kinds(name: str) -> None:
    """The message named two remedies, and `generate` took neither."""
    model, inputs = FAMILIES[name].model(), FAMILIES[name].prompt(0)
    embeds, kinds = _embedded(model, inputs)
    given: dict[str, Any] = {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"]}
    options = {"max_new_tokens": 5, "do_sample": False}
    want = model.generate(**given, **options)
    with madakv.evict(model, budget=0.3) as run:
        with pytest.raises(InputError, match="pass mm_token_type_ids"):
            model.generate(**given, **options)
        plain = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
        by_ids = run.last
        got = model.generate(**given, mm_token_type_ids=kinds, **options)
        by_kinds = run.last
        assert by_ids is not None
        assert by_kinds is not None
        if name != "qwen2_5_vl":  # which gives embeddings other positions than ids
            assert torch.equal(got, plain)
            for plan, other in zip(by_kinds.plans, by_ids.plans, strict=True):
                assert torch.equal(plan.positions, other.positions)
        assert by_kinds.prompt_tokens == by_ids.prompt_tokens
        model.generate(**given, mm_token_type_ids=kinds, num_beams=2, **options)
        model.generate(**given, mm_token_type_ids=kinds, cache_implementation="static", **options)
        model(**given, mm_token_type_ids=kinds)
        assert run.last is not None
        assert run.last.prompt_tokens == by_ids.prompt_tokens
    with madakv.evict(model, budget=1.0):
        assert torch.equal(model.generate(**given, mm_token_type_ids=kinds, **options), want)


def test_an_echo_leaves_pictures_in_their_places() -> None:
    """A decoder that is given ids puts pictures in by itself; the echo gave it embeddings of bare placeholders."""
    model, inputs = LISTED["phi4_multimodal"].model(), LISTED["phi4_multimodal"].prompt(0)
    want = model(**inputs).logits
    with madakv.evict(model, budget=0.5, echo=6) as run:
        got = model(**inputs).logits
    assert run.last is not None
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"])
def test_a_drafted_start_of_a_sound_has_no_sound_behind_it(name: str) -> None:
    """These models look for one behind every such token, and in a prompt with the draft behind it found none."""
    model, inputs = LISTED[name].model(), LISTED[name].prompt(0)
    start, N = model.config.audio_start_token_id, inputs["input_ids"].shape[1]

    def say_start(ids: Tensor, scores: Tensor) -> Tensor:
        return scores.index_fill(1, torch.tensor([start]), 1e4) if ids.shape[1] == N + 1 else scores

    options = {"max_new_tokens": 6, "do_sample": False, "logits_processor": [say_start]}
    want = model.generate(**inputs, **options)
    assert want[0, N + 1] == start
    with madakv.evict(model, budget=1.0, draft=3):
        assert torch.equal(model.generate(**inputs, **options), want)
