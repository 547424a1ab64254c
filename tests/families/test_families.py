"""Every model family, as transformers implements it: what eviction promises holds for each.

The reference is the same model without madakv and with transformers' own cache, run before madakv touches it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicSlidingWindowLayer

import madakv
from madakv.hf.replay import ReadPrompt
from madakv.methods import resolve
from madakv.modality import Modality, families, placeholder_ids, prompt_modality
from tests.families.oracle import hidden_entries
from tests.families.zoo import AUDIO, FAMILIES, UNSUPPORTED, Family, Inputs, left_padded, prompt_tokens
from tests.tolerance import assert_same, relative_rms

STEPS = 16
FP32 = 1e-4
"""Relative RMS that separates rounding, which is 1e-6 here, from one token more or less, which is 1e-2."""

every_family = pytest.mark.parametrize("name", FAMILIES)
every_mrope_family = pytest.mark.parametrize("name", [name for name, one in FAMILIES.items() if one.mrope])
every_sliding_family = pytest.mark.parametrize("name", ["gemma3", "gemma4", "aya_vision", "gemma2", "gpt_oss"])


@dataclass(frozen=True)
class Output:
    """Greedy tokens [B, STEPS] and the logits that chose them [B, STEPS, V]."""

    tokens: Tensor
    logits: Tensor


def generate(model: Any, inputs: Inputs, **options: Any) -> Output:
    result = model.generate(
        **inputs, max_new_tokens=STEPS, do_sample=False, output_logits=True, return_dict_in_generate=True, **options
    )
    tokens, logits = result.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(result.logits, 1)
    assert tokens.shape[1] == logits.shape[1] == STEPS
    return Output(tokens, logits)


def assert_same_output(got: Output, want: Output) -> None:
    """The same numbers at every step, and so the same tokens."""
    for step in range(STEPS):
        assert_same(got.logits[:, step], want.logits[:, step], FP32)
    assert got.tokens.tolist() == want.tokens.tolist()


@dataclass(frozen=True)
class Case:
    """One family's model, two prompts, and what the unmodified model answers to them, alone and in a batch."""

    family: Family
    model: Any
    rows: list[Inputs]
    batch: Inputs
    alone: list[Output]
    together: Output


@cache
def case(name: str) -> Case:
    family = FAMILIES[name]
    model = family.model()
    rows = [family.prompt(0), family.prompt(1)]
    batch = left_padded(rows)
    alone = [generate(model, row) for row in rows]
    return Case(family, model, rows, batch, alone, generate(model, batch))


def implementations(model: Any) -> dict[str, str]:
    """The attention implementation of every config that any part of the model holds."""
    return {
        name: module.config._attn_implementation
        for name, module in model.named_modules()
        if hasattr(getattr(module, "config", None), "_attn_implementation")
    } | {
        f"config.{name}": part._attn_implementation
        for name in model.config.sub_configs
        if (part := getattr(model.config, name)) is not None
    }


def kept_per_row(kept: madakv.Kept) -> Tensor:
    """[B]: kept entries over all layers, heads and modalities."""
    return kept.counts.sum((0, 2, 3))


def own_cache(model: Any, inputs: Inputs) -> Any:
    """What transformers' own cache holds after the prompt."""
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    model(**inputs, past_key_values=cache, use_cache=True)
    return cache


def stored_bytes(cache: Any, layers: tuple[int, ...]) -> int:
    return sum(x.nbytes for i in layers for x in (cache.layers[i].keys, cache.layers[i].values))


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@every_family
def test_keeping_everything_changes_nothing(name: str) -> None:
    one = case(name)
    for inputs, want in zip([*one.rows, one.batch], [*one.alone, one.together], strict=True):
        with madakv.evict(one.model, budget=1.0) as run:
            assert_same_output(generate(one.model, inputs), want)
        assert run.last is not None
        assert run.last.kept_share == 1.0


@every_family
def test_the_account_is_true(name: str) -> None:
    one = case(name)
    inputs, want = one.rows[0], one.alone[0]
    with madakv.evict(one.model, budget=0.2, safeguard=0.2) as run:
        got = generate(one.model, inputs)
    kept = run.last
    assert kept is not None
    assert kept.layers == one.family.full_layers
    assert kept.prompt_tokens == prompt_tokens(inputs)

    full = own_cache(one.model, inputs)
    _, H, N, _ = full.layers[kept.layers[0]].keys.shape
    L = len(kept.layers)
    assert kept.counts.shape[:3] == (L, 1, H)
    assert 0.1 * N * H * L < kept_per_row(kept).item() <= int(0.2 * N) * H * L

    assert kept.kv_bytes_full == stored_bytes(full, kept.layers)
    assert kept.kv_bytes == kept_per_row(kept).item() * kept.kv_bytes_full // (N * H * L)

    # The first token comes out of the prefill, before anything is missing; the later ones must feel the loss.
    assert_same(got.logits[:, 0], want.logits[:, 0], FP32)
    assert relative_rms(got.logits[:, 1], want.logits[:, 1]) > 100 * FP32
    assert torch.isfinite(got.logits).all()


@every_family
def test_evicted_is_the_same_as_hidden(name: str) -> None:
    one = case(name)
    with madakv.evict(one.model, budget=0.2, safeguard=0.2) as run:
        got = generate(one.model, one.batch)
    assert run.last is not None
    with hidden_entries(one.model, run.last):
        want = generate(one.model, one.batch)
    assert_same_output(got, want)


@every_family
def test_no_state_outlives_its_prompt(name: str) -> None:
    one = case(name)
    before = implementations(one.model)
    with madakv.evict(one.model, budget=0.2, safeguard=0.2):
        within = implementations(one.model)
        assert "madakv" in within.values()
        towers = [part for part in within if any(word in part for word in ("vision", "visual", "audio"))]
        assert all(within[part] == before[part] for part in towers)
        first = generate(one.model, one.rows[0])
        other = generate(one.model, one.rows[1])
        assert_same_output(generate(one.model, one.rows[0]), first)
    assert implementations(one.model) == before
    assert "madakv" not in before.values()
    assert_same_output(generate(one.model, one.rows[0]), one.alone[0])
    with madakv.evict(one.model, budget=0.2, safeguard=0.2):
        assert_same_output(generate(one.model, one.rows[1]), other)
        assert_same_output(generate(one.model, one.rows[0]), first)
    assert_same_output(generate(one.model, one.batch), one.together)


@every_family
def test_a_padded_row_gives_what_it_gives_alone(name: str) -> None:
    one = case(name)
    # Some models do not keep this promise by themselves; then there is nothing to hold madakv to.
    for row, unmodified in enumerate(one.alone):
        assert_same(one.together.logits[row], unmodified.logits[0], FP32)
    with madakv.evict(one.model, budget=0.3, safeguard=0.2) as run:
        alone, kept = [], []
        for inputs in one.rows:
            alone.append(generate(one.model, inputs))
            assert run.last is not None
            kept.append(run.last)
        together = generate(one.model, one.batch)
    assert run.last is not None
    for row, want in enumerate(alone):
        assert_same_output(Output(together.tokens[row : row + 1], together.logits[row : row + 1]), want)
        assert torch.equal(run.last.counts[:, row], kept[row].counts[:, 0])
    assert run.last.prompt_tokens == prompt_tokens(one.batch)
    assert (run.last.modality == Modality.PADDING).sum() == (one.batch["attention_mask"] == 0).sum() > 0


@every_family
def test_a_plain_forward_loop_works_too(name: str) -> None:
    one = case(name)

    def loop() -> Output:
        out = one.model(**one.rows[0], use_cache=True)
        tokens, logits = [], [out.logits[:, -1]]
        for _ in range(STEPS - 1):
            tokens.append(logits[-1].argmax(-1, keepdim=True))
            out = one.model(input_ids=tokens[-1], past_key_values=out.past_key_values, use_cache=True)
            logits.append(out.logits[:, -1])
        return Output(torch.cat([*tokens, logits[-1].argmax(-1, keepdim=True)], 1), torch.stack(logits, 1))

    want = loop()
    with madakv.evict(one.model, budget=1.0):
        assert_same_output(loop(), want)
    with madakv.evict(one.model, budget=0.2, safeguard=0.2) as run:
        got = loop()
    assert run.last is not None
    with hidden_entries(one.model, run.last):
        assert_same_output(got, loop())


@every_family
def test_a_second_turn_sees_the_first(name: str) -> None:
    one = case(name)
    question = torch.randint(5, 80, (1, 9), generator=torch.Generator().manual_seed(3))

    def two_turns() -> Output:
        first = one.model.generate(
            **one.rows[0], max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
        ids = torch.cat([first.sequences, question], 1)
        second: Inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        for kind in ("token_type_ids", "mm_token_type_ids"):
            if kind in one.rows[0]:
                known = one.rows[0][kind]
                second[kind] = torch.nn.functional.pad(known, (0, ids.shape[1] - known.shape[1]))
        return generate(one.model, second, past_key_values=first.past_key_values)

    want = two_turns()
    with madakv.evict(one.model, budget=1.0):
        assert_same_output(two_turns(), want)
    with madakv.evict(one.model, budget=0.2, safeguard=0.2) as run:
        got = two_turns()
    assert run.last is not None
    with hidden_entries(one.model, run.last):
        assert_same_output(got, two_turns())


@every_family
def test_the_decoder_reads_one_config(name: str) -> None:
    model = case(name).model
    text = model.config.get_text_config(decoder=True)
    parts = [part.config for part in model.get_decoder().modules() if hasattr(part, "config")]
    assert len(parts) > FAMILIES[name].layers
    assert all(part is text for part in parts)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_a_model_without_its_head_is_evicted_alike(name: str) -> None:
    one = case(name)
    with madakv.evict(one.model, budget=0.2, safeguard=0.2) as run:
        one.model(**one.rows[0])
    with madakv.evict(one.model.model, budget=0.2, safeguard=0.2) as headless:
        one.model.model(**one.rows[0])
    assert run.last is not None
    assert headless.last is not None
    for plan, other in zip(run.last.plans, headless.last.plans, strict=True):
        assert torch.equal(plan.positions, other.positions)


@every_family
def test_a_draft_leaves_no_trace(name: str) -> None:
    """At budget 1.0 the prompt that was read a second time is the prompt; where that cannot be, it is refused."""
    one = case(name)
    with madakv.evict(one.model, "madakv", budget=1.0, draft=3):
        with_video = one.family.mrope and "pixel_values_videos" in one.rows[0]
        prefix_sees_all = "token_type_ids" in one.rows[0]
        if with_video or prefix_sees_all or len(one.family.full_layers) < one.family.layers:
            with pytest.raises(madakv.UnsupportedOptionError, match="draft"):
                one.model.generate(**one.rows[0], max_new_tokens=STEPS, do_sample=False)
            return
        tokens = one.model.generate(**one.batch, max_new_tokens=STEPS, do_sample=False)
    assert torch.equal(tokens[:, one.batch["input_ids"].shape[1] :], one.together.tokens)


@every_family
def test_an_echo_leaves_no_trace(name: str) -> None:
    """At budget 1.0 nothing changes, and it scores as reading the same text later would."""
    one = case(name)
    with madakv.evict(one.model, budget=1.0, echo=6):
        tokens = one.model.generate(**one.batch, max_new_tokens=STEPS, do_sample=False)
    assert torch.equal(tokens[:, one.batch["input_ids"].shape[1] :], one.together.tokens)
    if len(one.family.full_layers) < one.family.layers:
        return
    method = resolve("madakv", budget=0.3, echo=6)
    with madakv.evict(one.model, method) as run:
        one.model.generate(**one.rows[0], max_new_tokens=1)
    read, later = run.last, ReadPrompt.of(one.model, one.rows[0])
    with madakv.evict(one.model, method) as run:
        later.evicted(one.model, run)
    assert read is not None
    assert run.last is not None
    for plan, other in zip(read.plans, run.last.plans, strict=True):
        assert torch.equal(plan.positions, other.positions)


@every_mrope_family
def test_mrope_positions_are_those_of_the_images(name: str) -> None:
    one = case(name)
    # Were it plain counting, the tests above would pass on a model whose positions never differ.
    inputs = one.rows[0]
    positions, deltas = one.model.model.get_rope_index(**inputs)
    assert not torch.equal(positions[1], positions[2])
    assert deltas.item() != 0
    with madakv.evict(one.model, budget=0.2, safeguard=0.2) as run:
        generate(one.model, inputs)
    assert run.last is not None
    by_config = prompt_modality(one.model.config, inputs["input_ids"])
    assert torch.equal(run.last.modality, by_config)


@every_sliding_family
def test_sliding_layers_stay_as_they_are(name: str) -> None:
    one = case(name)
    inputs = one.rows[0]
    others = [i for i in range(one.family.layers) if i not in one.family.full_layers]
    own = own_cache(one.model, inputs)
    with madakv.evict(one.model, budget=0.2, safeguard=0.2) as run:
        cache = one.model(**inputs, use_cache=True).past_key_values
    assert run.last is not None
    assert run.last.layers == one.family.full_layers
    for i in others:
        assert type(cache.layers[i]) is type(own.layers[i]) is DynamicSlidingWindowLayer
        assert cache.layers[i].keys.shape == own.layers[i].keys.shape
        assert cache.layers[i].get_seq_length() == inputs["input_ids"].shape[1]
    stored = [x for i in others for x in (own.layers[i].keys, own.layers[i].values)]
    assert run.last.other_bytes == sum(x.untyped_storage().nbytes() for x in stored) > 0


def test_linear_layers_are_counted() -> None:
    one = case("qwen3_5")
    own = own_cache(one.model, one.rows[0])
    states = [own.layers[i] for i in range(one.family.layers) if i not in one.family.full_layers]
    stored = [x for layer in states for x in (*layer.conv_states.values(), *layer.recurrent_states.values())]
    with madakv.evict(one.model, budget=0.2, safeguard=0.2) as run:
        one.model(**one.rows[0])
    assert run.last is not None
    assert run.last.other_bytes == sum(x.nbytes for x in stored) > 0


def test_an_evicted_cache_is_refused_outside_its_block() -> None:
    one = case("llama")
    with madakv.evict(one.model, budget=1.0):
        cache = one.model(**one.rows[0]).past_key_values
    # Nothing but madakv's attention finds the prompt in it, so any other would answer as if there were none.
    with pytest.raises(madakv.MadaKVError):
        one.model(input_ids=one.rows[0]["input_ids"][:, :1], past_key_values=cache)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_cannot_be_evicted_is_refused(name: str) -> None:
    family = UNSUPPORTED[name]
    model, inputs = family.model(), family.prompt(0)
    want, before = generate(model, inputs), implementations(model)
    with pytest.raises(madakv.UnsupportedModelError), madakv.evict(model, budget=0.5):
        generate(model, inputs)
    assert implementations(model) == before
    assert_same_output(generate(model, inputs), want)


@pytest.mark.parametrize("before", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "smolvlm", "qwen3"])
def test_any_implementation_may_come_before(name: str, before: str) -> None:
    family = FAMILIES[name]
    model, batch = family.model(), left_padded([family.prompt(0), family.prompt(1)])
    model.set_attn_implementation(before)
    want = generate(model, batch)
    with madakv.evict(model, budget=1.0):
        assert_same_output(generate(model, batch), want)
    assert set(implementations(model).values()) == {before}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "gpt_oss"])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    model = FAMILIES[name].model(dtype)
    batch = left_padded([FAMILIES[name].prompt(0), FAMILIES[name].prompt(1)])
    batch = {key: x.to(dtype) if x.is_floating_point() else x for key, x in batch.items()}
    with madakv.evict(model, budget=0.2, safeguard=0.2) as run:
        got = generate(model, batch)
    assert torch.isfinite(got.logits).all()
    assert run.last is not None
    in_fp32 = own_cache(case(name).model, case(name).batch)
    assert 2 * run.last.kv_bytes_full == stored_bytes(in_fp32, run.last.layers)


def test_a_prompt_that_grows_inside_the_model_is_refused() -> None:
    # One placeholder per sound, as old processors wrote it, becomes as many tokens as the sound has.
    inputs = dict(case("qwen2_audio").rows[0])
    ids = inputs["input_ids"]
    first = (ids != AUDIO) | (ids.roll(1) != AUDIO)
    inputs |= {"input_ids": ids[first][None], "attention_mask": torch.ones_like(ids[first][None])}
    with pytest.raises(madakv.MadaKVError), madakv.evict(case("qwen2_audio").model, budget=0.2):
        case("qwen2_audio").model(**inputs)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("ChameleonConfig", "no integer 'image_token_id'"),
        ("Emu3Config", "no integer 'image_token_id'"),
        ("Qwen2_5OmniConfig", "unknown multimodal family"),
    ],
)
def test_images_are_never_taken_for_text(kind: str, why: str) -> None:
    with pytest.raises(madakv.UnsupportedModelError, match=why):
        placeholder_ids(getattr(hf, kind)())


class RenamedConfig(hf.LlavaConfig):
    model_type = "renamed_llava"


def test_an_unknown_family_can_be_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    known = case("llava").model
    settings = known.config.to_dict()
    del settings["model_type"]
    model = hf.LlavaForConditionalGeneration(RenamedConfig(**settings)).eval()
    model.load_state_dict(known.state_dict())
    model.generation_config = known.generation_config
    with pytest.raises(madakv.UnsupportedModelError, match=r"renamed_llava.*madakv\.register_family"):
        madakv.evict(model, budget=0.2).__enter__()
    assert "madakv" not in implementations(model).values()

    monkeypatch.setattr(families, "_FAMILIES", dict(families._FAMILIES))
    madakv.register_family("renamed_llava", image="image_token_id")
    inputs = case("llava").rows[0]
    with madakv.evict(known, budget=0.2):
        want = generate(known, inputs)
    with madakv.evict(model, budget=0.2) as run:
        assert_same_output(generate(model, inputs), want)
    assert run.last is not None
    assert run.last.prompt_tokens == {"text": 31, "image": 32}


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "gpt_oss"])
def test_beam_search_follows_the_cache(name: str) -> None:
    one = case(name)
    options = {"max_new_tokens": 8, "num_beams": 3, "num_return_sequences": 2, "do_sample": False}
    want = one.model.generate(**one.batch, **options)
    with madakv.evict(one.model, budget=1.0):
        assert one.model.generate(**one.batch, **options).tolist() == want.tolist()


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_rows_with_and_without_images(name: str) -> None:
    one = case(name)
    images = one.rows[0]
    ids = torch.randint(5, 80, (1, 30), generator=torch.Generator().manual_seed(4))
    per_token = [key for key in images if images[key].shape == images["input_ids"].shape]
    words = {key: torch.zeros_like(ids) for key in per_token}
    words |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch = images | left_padded([{key: images[key] for key in per_token}, words])
    want = generate(one.model, batch)
    with madakv.evict(one.model, budget=1.0):
        assert_same_output(generate(one.model, batch), want)
    with madakv.evict(one.model, budget=0.3, safeguard=0.2) as run:
        alone = [generate(one.model, row) for row in (images, words)]
        assert run.last is not None
        assert run.last.prompt_tokens == {"text": 30}
        together = generate(one.model, batch)
    for row, wanted in enumerate(alone):
        assert_same_output(Output(together.tokens[row : row + 1], together.logits[row : row + 1]), wanted)


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "gemma4", "glm4v"])
def test_a_norm_behind_the_projection_takes_its_scale_out_of_the_scores(name: str) -> None:
    """Where what attention adds is normalised, a larger projection moves nothing, and must win its layer nothing."""
    one = case(name)
    layers = [layer for layer in one.model.get_decoder().layers if hasattr(layer, "self_attn")]
    weight = layers[one.family.full_layers[0]].self_attn.o_proj.weight
    plans = []
    for scale in (1.0, 30.0):
        with torch.no_grad():
            weight.mul_(scale)
        try:
            with madakv.evict(one.model, budget=0.4, echo=0) as run:
                one.model.generate(**one.rows[0], max_new_tokens=1)
        finally:
            with torch.no_grad():
                weight.div_(scale)
        assert run.last is not None
        plans.append([plan.counts.tolist() for plan in run.last.plans])
    assert plans[0] == plans[1]
