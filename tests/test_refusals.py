"""What cannot be combined with eviction is refused by name, and nothing silently runs uncompressed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    QuantizedCache,
    StaticCache,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.generation import GenerationMode

import madakv
from madakv import ConfigurationError, NestedEvictionError, UnsupportedModelError, UnsupportedOptionError
from madakv.hf.attention import attention
from madakv.hf.cache import RaggedCache
from tests import tiny

REFUSED: dict[str, Any] = {
    "assistant_model": tiny.llama,
    "assistant_early_exit": lambda: 1,
    "use_mtp": lambda: True,
    "negative_prompt_ids": lambda: torch.ones(1, 3, dtype=torch.int64),
    "prompt_lookup_num_tokens": lambda: 3,
    "penalty_alpha": lambda: 0.6,
    "dola_layers": lambda: "high",
    "custom_generate": lambda: lambda model, **_: None,
    "prefill_chunk_size": lambda: 8,
    "guidance_scale": lambda: 1.5,
    "output_attentions": lambda: True,
    "use_cache": lambda: False,
    "cache_implementation": lambda: "offloaded_static",
}


@pytest.mark.parametrize("name", REFUSED)
def test_generation_options_are_refused_by_name(name: str) -> None:
    model, (tokens, _) = tiny.llama(), tiny.ids(20)
    with madakv.evict(model), pytest.raises(UnsupportedOptionError, match=f"^{name}="):
        model.generate(tokens, max_new_tokens=2, **{name: REFUSED[name]()})


@pytest.mark.parametrize("name", ["prompt_lookup_num_tokens", "cache_implementation", "use_cache"])
def test_they_are_refused_in_a_generation_config_too(name: str) -> None:
    model, (tokens, _) = tiny.llama(), tiny.ids(20)
    config = GenerationConfig(max_new_tokens=2, **{name: REFUSED[name]()})
    with madakv.evict(model), pytest.raises(UnsupportedOptionError, match=f"^{name}="):
        model.generate(tokens, config)


def test_every_way_to_assist_is_known() -> None:
    """A new generation mode in transformers must be looked at before it runs under eviction."""
    assert {mode.name for mode in GenerationMode} == {
        "CONTRASTIVE_SEARCH",
        "GREEDY_SEARCH",
        "SAMPLE",
        "ASSISTED_GENERATION",
        "DOLA_GENERATION",
        "BEAM_SEARCH",
        "BEAM_SAMPLE",
        "CONSTRAINED_BEAM_SEARCH",
        "GROUP_BEAM_SEARCH",
    }


@pytest.mark.parametrize("kind", ["dynamic", "static", "quantized"])
@pytest.mark.parametrize("how", ["generate", "forward"])
def test_caches_of_the_user_are_refused(kind: str, how: str) -> None:
    model, (tokens, _) = tiny.llama(), tiny.ids(20)
    cache: Any
    if kind == "dynamic":
        cache = DynamicCache(config=model.config)
    elif kind == "static":
        cache = StaticCache(config=model.config, max_cache_len=32)
    else:
        cache = object.__new__(QuantizedCache)
    with madakv.evict(model):
        call = model if how == "forward" else model.generate
        with pytest.raises(UnsupportedOptionError, match="^past_key_values="):
            call(tokens, past_key_values=cache)


def test_a_models_own_default_cache_implementation_gives_way() -> None:
    model, (tokens, _) = tiny.llama(), tiny.ids(20)
    want = tiny.greedy(model, {"input_ids": tokens})
    model.generation_config.cache_implementation = "static"
    try:
        with madakv.evict(model, budget=1.0) as run:
            assert torch.equal(tiny.greedy(model, {"input_ids": tokens}), want)
        assert model.generation_config.cache_implementation == "static"
    finally:
        model.generation_config.cache_implementation = None
    assert run.last is not None


def test_forward_options_are_refused() -> None:
    model, (tokens, _) = tiny.llama(), tiny.ids(20)
    with madakv.evict(model):
        with pytest.raises(UnsupportedOptionError, match="^use_cache="):
            model(tokens, use_cache=False)
        with pytest.raises(UnsupportedOptionError, match="^output_attentions="):
            model(tokens, output_attentions=True)
        with pytest.raises(UnsupportedOptionError, match="^generate_batch"):
            model.generate_batch([[1, 2, 3]])
        cache = model(tokens).past_key_values
        with pytest.raises(UnsupportedOptionError, match="^crop"):
            cache.crop(-1)


def test_training_mode_is_refused() -> None:
    model, (tokens, _) = tiny.llama(), tiny.ids(20)
    model.train()
    try:
        with pytest.raises(UnsupportedOptionError, match=r"model\.eval\(\)"), madakv.evict(model):
            pass
    finally:
        model.eval()
    with madakv.evict(model):
        model.train()
        try:
            with pytest.raises(UnsupportedOptionError, match=r"model\.eval\(\)"):
                model(tokens)
        finally:
            model.eval()


def test_nested_use_is_refused_and_leaves_the_outer_block_working() -> None:
    model, (tokens, _) = tiny.llama(), tiny.ids(30)
    with madakv.evict(model, budget=0.2) as run:
        with pytest.raises(NestedEvictionError, match="already inside"), madakv.evict(model, budget=0.5):
            pass
        model.generate(tokens, max_new_tokens=2)
    assert run.last is not None
    assert "budget=0.2" in run.last.method
    with madakv.evict(model, budget=0.5):
        pass


def test_two_models_can_be_evicted_at_once() -> None:
    llama, llava = tiny.llama(), tiny.llava()
    with madakv.evict(llama, budget=0.2) as one, madakv.evict(llava, budget=0.5) as two:
        llama.generate(tiny.ids(30)[0], max_new_tokens=2)
        llava.generate(**tiny.document(), max_new_tokens=2)
    assert one.last is not None
    assert two.last is not None
    assert one.last.kept_share < two.last.kept_share


def test_what_is_not_a_model_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="PreTrainedModel; got Linear"), madakv.evict(torch.nn.Linear(1, 1)):
        pass


def test_attention_that_bypasses_the_interface_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (tokens, _) = tiny.llama(), tiny.ids(20)
    attention = model.model.layers[1].self_attn

    def own_attention(hidden_states: Any, past_key_values: Any, **_: Any) -> tuple[Any, None]:
        heads = hidden_states.view(*hidden_states.shape[:-1], 8, 8).transpose(1, 2)
        past_key_values.update(heads[:, :2].clone(), heads[:, :2].clone(), 1)
        return hidden_states, None

    monkeypatch.setattr(attention, "forward", own_attention)
    with madakv.evict(model), pytest.raises(UnsupportedModelError, match=r"layers \[1\]"):
        model(tokens)


def test_models_whose_layers_share_entries_are_refused() -> None:
    model = tiny.llama()
    model.config.num_kv_shared_layers = 1
    try:
        with pytest.raises(UnsupportedModelError, match="num_kv_shared_layers"), madakv.evict(model):
            pass
    finally:
        del model.config.num_kv_shared_layers


@pytest.mark.parametrize("budget", [0, 0.0, 1.5, -1, -0.2, True, "abc", float("nan"), float("inf")])
def test_bad_budgets(budget: Any) -> None:
    with pytest.raises(ConfigurationError, match="budget must be"), madakv.evict(tiny.llama(), budget=budget):
        pass


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("madakw", {}, "did you mean 'madakv'"),
        ("madakv", {"ekko": 9}, "no option 'ekko'; its options: budget, lookahead, draft, echo"),
        ("madakv-paper", {"theta": 0.0}, "theta must be"),
        ("madakv-paper", {"compensation": "other"}, "compensation must be one of"),
        ("madakv", {"groups": "median"}, "groups must be one of"),
        ("madakv", {"proxies": "answer"}, "proxies must be"),
        ("madakv", {"text_pooling": 4}, "text_pooling must be odd"),
        ("madakv", {"max_proxies": 0}, "max_proxies must be"),
        ("full", {"budget": 0.5}, "keeps everything"),
        (3, {}, "method must be a name"),
    ],
)
def test_bad_methods_and_options(method: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message), madakv.evict(tiny.llama(), method, **options):
        pass


def test_options_override_a_method_object() -> None:
    with madakv.evict(tiny.llama(), madakv.MadaKV(budget=0.5, safeguard=0.7), budget=0.1) as run:
        pass
    assert run.method == madakv.MadaKV(budget=0.1, safeguard=0.7)


def test_an_evicted_cache_is_of_no_use_outside_its_block() -> None:
    """Any other attention would find only the newest token in it, and answer as if there had been no prompt."""
    model, (tokens, _) = tiny.llama(), tiny.ids(20)
    with madakv.evict(model, budget=1.0):
        cache = model(tokens).past_key_values
    with pytest.raises(UnsupportedOptionError, match="^past_key_values="):
        model(tokens[:, :1], past_key_values=cache)
    with madakv.evict(model, budget=0.1):
        model(tokens[:, :1], past_key_values=cache)


def test_parts_of_the_model_cannot_be_called_past_it() -> None:
    model, inputs = tiny.llava(), tiny.document()
    with madakv.evict(model):
        for call in (model.forward, model.model, model.model.forward):
            with pytest.raises(UnsupportedOptionError, match="call the model that was given"):
                call(**inputs)


def test_copying_the_model_inside_the_block_is_refused() -> None:
    model = tiny.llama()
    with madakv.evict(model), pytest.raises(UnsupportedOptionError, match="deepcopy"):
        copy.deepcopy(model)
    assert copy.deepcopy(model).config._attn_implementation == "sdpa"


def test_masks_that_change_their_mind_about_the_prompt_are_refused() -> None:
    model, (tokens, mask) = tiny.llama(), tiny.ids(20, 12)
    turn = torch.randint(5, 97, (2, 3))
    whole = torch.nn.functional.pad(mask, (0, 3), value=1)
    with madakv.evict(model):
        cache = model(tokens, attention_mask=mask).past_key_values
        other = whole.clone()
        other[0, 4] = 0
        with pytest.raises(UnsupportedOptionError, match="hides other prompt tokens"):
            model(turn, attention_mask=other, past_key_values=cache)
        with pytest.raises(UnsupportedOptionError, match="covers 22 tokens, but 20 were seen and 3 are new"):
            model(turn, attention_mask=whole[:, 1:], past_key_values=cache)
        with pytest.raises(UnsupportedOptionError, match=r"attention_mask of shape \(2, 1, 3, 23\)"):
            model(turn, attention_mask=torch.ones(2, 1, 3, 23, dtype=torch.bool), past_key_values=cache)
        model(turn, attention_mask=whole, past_key_values=cache)
        cache.reorder_cache(torch.tensor([1, 0]))
        whole = torch.nn.functional.pad(mask.flip(0), (0, 6), value=1)
        model(turn, attention_mask=whole, past_key_values=cache)


def test_an_interrupted_prefill_is_not_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (tokens, _) = tiny.llama(), tiny.ids(20)
    with madakv.evict(model) as run:
        cache = RaggedCache(model.config, run.method)
        with monkeypatch.context() as broken:
            broken.setattr(model.model.layers[1].mlp, "forward", lambda _: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                model(tokens, past_key_values=cache)
        with pytest.raises(UnsupportedOptionError, match="interrupted"):
            model(tokens, past_key_values=cache)
        cache.reset()
        model(tokens, past_key_values=cache)
    assert run.last is not None


def test_attentions_asked_for_in_the_config_are_refused() -> None:
    model, (tokens, _) = tiny.llama(), tiny.ids(20)
    model.set_attn_implementation("eager")
    model.config.output_attentions = True
    try:
        with madakv.evict(model), pytest.raises(UnsupportedOptionError, match="^output_attentions="):
            model(tokens)
    finally:
        model.config.output_attentions = False
        model.set_attn_implementation("sdpa")


def test_position_biases_are_refused() -> None:
    layer = RaggedCache(tiny.llama().config, madakv.MadaKV()).layers[0]
    key = torch.randn(1, 2, 5, 8)
    key._madakv_layer = layer  # type: ignore[attr-defined]
    with pytest.raises(UnsupportedOptionError, match="Linear adds a position_bias"):
        attention(torch.nn.Linear(1, 1), key, key, key, None, position_bias=torch.zeros(1))


def test_encoder_decoders_are_refused() -> None:
    config = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    with (
        pytest.raises(UnsupportedModelError, match="encoder-decoder"),
        madakv.evict(T5ForConditionalGeneration(config).eval()),
    ):
        pass
