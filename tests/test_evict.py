"""`madakv.evict` from end to end on tiny real models."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import madakv
from madakv.attention import attend
from madakv.attention.tiles import tiles_of
from madakv.hf.cache import RaggedCache
from madakv.hf.layer import RaggedLayer
from madakv.scoring import LayerView
from tests import tiny
from tests.tolerance import assert_same, relative_rms

EVEN = {"safeguard": 1.0}
COMPETING = {"safeguard": 0.2}
"""Options under which heads keep different numbers of entries."""
UNEVEN = {"method": "madakv-paper", "theta": 0.5}
"""Options under which layers do, too."""
READINGS = [{"method": "madakv-paper", "compensation": reading} for reading in ("demand", "signal")]


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("lengths", [(50,), (50, 31), (1,), (40, 40, 7)])
def test_budget_one_changes_nothing(lengths: tuple[int, ...]) -> None:
    model, (tokens, mask) = tiny.llama(), tiny.ids(*lengths)
    inputs = {"input_ids": tokens, "attention_mask": mask}
    options = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 16, "do_sample": False}
    want = model.generate(**inputs, **options)
    with madakv.evict(model, "madakv", budget=1.0) as run:
        got = model.generate(**inputs, **options)
    assert torch.equal(got.sequences, want.sequences)
    assert_same(torch.stack(got.logits), torch.stack(want.logits), 1e-4)
    assert run.last is not None
    assert run.last.kept_share == 1.0


@pytest.mark.parametrize("options", [EVEN, COMPETING, UNEVEN, *READINGS])
@pytest.mark.parametrize("budget", [0.05, 0.2, 0.5, 7])
def test_the_account_holds(budget: float | int, options: dict[str, Any]) -> None:
    tokens, mask = tiny.ids(60, 44)
    with madakv.evict(tiny.llama(), budget=budget, **options) as run:
        tiny.greedy(tiny.llama(), {"input_ids": tokens, "attention_mask": mask})
    assert run.last is not None
    for row, n in enumerate((60, 44)):
        average = budget if isinstance(budget, int) else int(budget * n)
        kept = int(run.last.counts[:, row].sum())
        assert 0 < kept <= average * 2 * 3
        if options in (EVEN, COMPETING):
            assert kept == average * 2 * 3


@dataclass(frozen=True, kw_only=True)
class Recording(madakv.MadaKV):
    """MadaKV that notes the scores it was asked to decide on."""

    def weigh(self, attention: Tensor, view: LayerView) -> Tensor:
        psi = super().weigh(attention, view)
        RECORDED.append(psi)
        return psi


RECORDED: list[Tensor] = []


@pytest.mark.parametrize(
    "options", [EVEN, COMPETING, *({"shape": shape, **COMPETING} for shape in ("layers-even", "heads-even"))]
)
def test_the_cache_executes_the_plans_of_allocate(options: dict[str, Any]) -> None:
    RECORDED.clear()
    model, inputs = tiny.llava(), tiny.document()
    full = DynamicCache(config=model.config.get_text_config())
    model(**inputs, past_key_values=full)
    # What is recorded is psi before it is weighed by values.
    weights = madakv.MadaKV.Weights(values=False, context=0)
    method = Recording(budget=0.3, echo=0, weights=weights, **options)
    with madakv.evict(model, method) as run:
        cache = model(**inputs).past_key_values
    assert run.last is not None
    modality = torch.where(inputs["input_ids"] == tiny.IMAGE_TOKEN, 1, 0)
    assert torch.equal(run.last.modality, modality)
    plans = madakv.allocate(RECORDED, modality, "madakv", budget=0.3, **options)
    assert len(plans) == len(cache.layers) == 3
    for layer, plan in enumerate(plans):
        stored: RaggedLayer = cache.layers[layer]
        assert stored.memory.entries is not None
        for h in range(2):
            kept = plan.indices[0][h]
            assert torch.equal(run.last.plans[layer].indices[0][h], kept)
            start = int(stored.memory.entries.starts[0, h])
            rows = slice(start, start + len(kept))
            assert_same(stored.memory.entries.keys[rows], full.layers[layer].keys[0, h, kept])
            assert_same(stored.memory.entries.values[rows], full.layers[layer].values[0, h, kept])


def test_psi_is_the_attention_the_model_really_pays() -> None:
    """Scores equal the eager model's own attention weights: RoPE, scaling and groups included."""
    RECORDED.clear()
    model, inputs = tiny.llava(), tiny.document()
    with madakv.evict(model, Recording(budget=0.5)):
        model(**inputs)
    model.set_attn_implementation("eager")
    try:
        weights = model(**inputs, output_attentions=True).attentions
    finally:
        model.set_attn_implementation("sdpa")
    assert len(RECORDED) == len(weights) == 3
    for psi, alpha in zip(RECORDED, weights, strict=True):
        question = alpha[:, :, -10:].sum(2)
        assert_same(psi, question.unflatten(1, (2, 4)).mean(2), 1e-4)


@pytest.mark.parametrize("shape", ["layers-even", "heads-even", "ragged"])
def test_prefill_holds_the_kept_entries_and_one_full_layer(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (tokens, _) = tiny.llama(), tiny.ids(64)
    living: list[weakref.ref[Any]] = []
    peaks: list[int] = []
    update = RaggedLayer.update

    def watched(self: RaggedLayer, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        living.extend(weakref.ref(x) for x in (key, value))
        full = sum(x.numel() * x.element_size() for ref in living if (x := ref()) is not None)
        peaks.append(full + cache.nbytes)
        return update(self, key, value, *args, **kwargs)

    monkeypatch.setattr(RaggedLayer, "update", watched)
    gc.disable()
    try:
        with madakv.evict(model, budget=0.25, shape=shape, echo=0) as run:
            cache = RaggedCache(model.config, run.method)
            model(tokens, past_key_values=cache)
    finally:
        gc.enable()
    one_layer = 64 * 2 * 8 * 2 * 4
    assert cache.full_nbytes == 3 * one_layer
    assert cache.nbytes == cache.full_nbytes // 4
    if shape == "layers-even":
        assert peaks == [one_layer + done * one_layer // 4 for done in range(3)]
    else:
        assert max(peaks) <= one_layer + cache.nbytes


def test_memory_is_freed_without_the_garbage_collector() -> None:
    model, (tokens, _) = tiny.llama(), tiny.ids(40)
    gc.collect()
    gc.disable()
    try:
        with madakv.evict(model, budget=0.5):
            cache = model(tokens).past_key_values
            storage = weakref.ref(cache.layers[0].memory.entries.keys)
            assert storage() is not None
            del cache
            assert storage() is None
    finally:
        gc.enable()


def test_no_autograd_graph_keeps_evicted_entries_alive() -> None:
    model, (tokens, _) = tiny.llama(), tiny.ids(40)
    with madakv.evict(model, budget=0.5), torch.enable_grad():
        cache = model(tokens).past_key_values
        model(tokens[:, :1], past_key_values=cache)
    for layer in cache.layers:
        assert not layer.memory.entries.keys.requires_grad
        assert not layer.memory.tail.values.requires_grad


def test_kv_bytes_full_is_what_a_dynamic_cache_stores() -> None:
    model, inputs = tiny.llava(), tiny.document()
    full = model(**inputs).past_key_values
    stored = sum(x.untyped_storage().nbytes() for layer in full.layers for x in (layer.keys, layer.values))
    with madakv.evict(model, budget=0.2) as run:
        model(**inputs)
    assert run.last is not None
    assert run.last.kv_bytes_full == stored
    assert run.last.prompt_tokens == {"text": 40, "image": 12}
    assert run.last.kv_bytes <= 0.2 * stored + 3 * 2 * 8 * 2 * 4
    assert run.last.kept_share == pytest.approx(10 / 52)


def snapshot(model: Any) -> Any:
    implementations = [m.config._attn_implementation for m in model.modules() if hasattr(m, "config")]
    return implementations, set(model.__dict__), len(model._forward_hooks), len(model._forward_pre_hooks)


def test_the_model_is_restored() -> None:
    model, inputs = tiny.llava(), tiny.document()
    before, want = snapshot(model), tiny.greedy(model, inputs)
    with madakv.evict(model, budget=0.1):
        assert snapshot(model) != before
        evicted = tiny.greedy(model, inputs)
    assert snapshot(model) == before
    assert torch.equal(tiny.greedy(model, inputs), want)
    assert not torch.equal(evicted, want), "the case must be one where eviction changes something"


def test_the_model_is_restored_after_an_exception_within_generate() -> None:
    class Broken:
        def put(self, value: Tensor) -> None:
            if value.numel() == 1:
                raise KeyError("stop")

        def end(self) -> None:
            raise AssertionError

    model, inputs = tiny.llava(), tiny.document()
    before = snapshot(model)
    with pytest.raises(KeyError, match="stop"), madakv.evict(model, budget=0.2):
        model.generate(**inputs, max_new_tokens=4, streamer=Broken())
    assert snapshot(model) == before
    with madakv.evict(model, budget=0.2):
        pass
    assert snapshot(model) == before


def test_state_does_not_leak_from_one_prompt_to_the_next() -> None:
    model, first, second = tiny.llava(), tiny.document(10, 3), tiny.document(17, 2)
    with madakv.evict(model, budget=0.2) as run:
        a, kept_a = tiny.greedy(model, first), run.last
        b, kept_b = tiny.greedy(model, second), run.last
        again = tiny.greedy(model, first)
        assert torch.equal(again, a)
    with madakv.evict(model, budget=0.2) as run:
        assert torch.equal(tiny.greedy(model, second), b)
    assert kept_a is not None
    assert kept_b is not None
    assert kept_a.prompt_tokens != kept_b.prompt_tokens


@pytest.mark.parametrize("options", [EVEN, COMPETING, UNEVEN])
@pytest.mark.parametrize("budget", [0.15, 0.5])
def test_a_padded_row_gives_what_it_gives_alone(budget: float, options: dict[str, Any]) -> None:
    model, (tokens, mask) = tiny.llama(), tiny.ids(60, 38, 5)
    with madakv.evict(model, budget=budget, **options):
        together = tiny.greedy(model, {"input_ids": tokens, "attention_mask": mask})
        for row, n in enumerate((60, 38, 5)):
            alone = tiny.greedy(model, {"input_ids": tokens[row : row + 1, -n:]})
            assert torch.equal(together[row : row + 1], alone)


def test_a_forward_loop_gives_what_generate_gives() -> None:
    model, inputs = tiny.llava(), tiny.document()
    with madakv.evict(model, budget=0.2, **UNEVEN):
        want = tiny.greedy(model, inputs)
        out, got = model(**inputs), []
        for _ in range(16):
            got.append(out.logits[:, -1:].argmax(-1))
            out = model(input_ids=got[-1], past_key_values=out.past_key_values)
    assert torch.equal(torch.cat(got, 1), want)


@pytest.mark.parametrize("options", [EVEN, COMPETING, UNEVEN])
def test_many_tokens_after_the_prompt_are_causal_among_themselves(options: dict[str, Any]) -> None:
    """A second turn of 20 tokens at once gives what 20 single steps give."""
    model, (tokens, mask) = tiny.llama(), tiny.ids(50, 33)
    turn = torch.randint(5, 97, (2, 20))
    with madakv.evict(model, budget=0.3, **options):
        at_once = model(tokens, attention_mask=mask).past_key_values
        whole = torch.cat([mask, torch.ones_like(turn)], 1)
        got = model(turn, attention_mask=whole, past_key_values=at_once).logits
        cache = model(tokens, attention_mask=mask).past_key_values
        steps = []
        for i in range(20):
            seen = whole[:, : 51 + i]
            steps.append(model(turn[:, i : i + 1], attention_mask=seen, past_key_values=cache).logits)
    assert cache.get_seq_length() == 70
    assert_same(got, torch.cat(steps, 1), 1e-4)


def test_padding_in_a_second_turn_stays_hidden() -> None:
    """At budget 1.0 a conversation with padded turns equals the unmodified model's."""
    model, (tokens, mask) = tiny.llama(), tiny.ids(30, 22)
    turn, turn_mask = tiny.ids(9, 4)
    whole = torch.cat([mask, turn_mask, torch.ones(2, 1, dtype=torch.int64)], 1)
    step = torch.randint(5, 97, (2, 1))

    def converse() -> tuple[Tensor, Tensor]:
        cache = model(tokens, attention_mask=mask).past_key_values
        first = model(turn, attention_mask=whole[:, :-1], past_key_values=cache).logits
        return first[:, -1], model(step, attention_mask=whole, past_key_values=cache).logits

    want = converse()
    with madakv.evict(model, budget=1.0):
        got = converse()
    assert_same(got[0], want[0], 1e-4)
    assert_same(got[1], want[1], 1e-4)


def test_generate_continues_on_an_evicted_cache() -> None:
    model, (tokens, _) = tiny.llama(), tiny.ids(40)

    def converse() -> Tensor:
        out = model.generate(tokens, max_new_tokens=5, do_sample=False, return_dict_in_generate=True)
        longer = torch.cat([out.sequences, turn], 1)
        return model.generate(longer, past_key_values=out.past_key_values, max_new_tokens=8, do_sample=False)

    turn = torch.randint(5, 97, (1, 6))
    want = converse()
    with madakv.evict(model, budget=1.0):
        assert torch.equal(converse(), want)
    with madakv.evict(model, budget=0.2) as run:
        evicted = converse()
        assert run.last is not None
        assert run.last.prompt_tokens == {"text": 40}, "a second turn is no new prompt"
    assert evicted.shape == want.shape


@pytest.mark.parametrize(
    "options",
    [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 3}, {"do_sample": True, "num_return_sequences": 3}],
)
def test_beams_and_several_sequences(options: dict[str, Any]) -> None:
    model, (tokens, mask) = tiny.llama(), tiny.ids(40, 28)
    inputs = {"input_ids": tokens, "attention_mask": mask, "max_new_tokens": 10, **options}
    torch.manual_seed(7)
    want = model.generate(**inputs)
    with madakv.evict(model, budget=1.0):
        torch.manual_seed(7)
        assert torch.equal(model.generate(**inputs), want)
    with madakv.evict(model, budget=0.3, **UNEVEN):
        torch.manual_seed(7)
        assert model.generate(**inputs).shape == want.shape


def test_beams_follow_their_own_past() -> None:
    """Reordering by hand equals recomputing: rows of an uneven cache with a tail are really moved."""
    model, (tokens, mask) = tiny.llama(), tiny.ids(40, 28)
    step, order = torch.randint(5, 97, (2, 3)), torch.tensor([1, 0])
    with madakv.evict(model, budget=0.3, **UNEVEN):
        cache = model(tokens, attention_mask=mask).past_key_values
        model(step[:, :2], attention_mask=torch.nn.functional.pad(mask, (0, 2), value=1), past_key_values=cache)
        cache.reorder_cache(order)
        whole = torch.nn.functional.pad(mask[order], (0, 3), value=1)
        got = model(step[order, 2:], attention_mask=whole, past_key_values=cache).logits
        cache = model(tokens[order], attention_mask=mask[order]).past_key_values
        model(step[order, :2], attention_mask=whole[:, :-1], past_key_values=cache)
        want = model(step[order, 2:], attention_mask=whole, past_key_values=cache).logits
    assert_same(got, want, 1e-4)


def test_streamers_and_sampling() -> None:
    class Collect:
        def __init__(self) -> None:
            self.tokens: list[int] = []

        def put(self, value: Tensor) -> None:
            self.tokens += value.flatten().tolist()

        def end(self) -> None:
            self.tokens.append(-1)

    model, inputs, streamer = tiny.llava(), tiny.document(), Collect()
    with madakv.evict(model, budget=0.3):
        torch.manual_seed(3)
        out = model.generate(**inputs, max_new_tokens=6, do_sample=True, streamer=streamer)
    assert [*out[0].tolist(), -1] == streamer.tokens


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    """As near to fp32 as the full cache is: how near that is differs between CPUs."""
    model, inputs = tiny.llava(), tiny.document()
    step = torch.tensor([[7]])
    with torch.no_grad():
        exact = model(input_ids=step, past_key_values=model(**inputs).past_key_values).logits
    try:
        model.to(dtype)
        inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
        with torch.no_grad():
            prompt = model(**inputs)
            want = model(input_ids=step, past_key_values=prompt.past_key_values).logits
            with madakv.evict(model, budget=1.0) as run:
                cache = model(**inputs).past_key_values
                got = model(input_ids=step, past_key_values=cache).logits
    finally:
        model.to(torch.float32)
    assert got.dtype == dtype
    assert cache.layers[0].memory.entries.keys.dtype == dtype
    assert run.last is not None
    assert run.last.kv_bytes == 3 * 2 * 52 * 8 * 2 * 2
    assert_same(got.float(), exact, 1.5 * relative_rms(want.float(), exact))


@pytest.mark.parametrize("images", [0, 1])
@pytest.mark.parametrize("text", [0, 1, 3])
def test_degenerate_prompts(images: int, text: int) -> None:
    """One token, only an image, a prompt shorter than its proxies: all of them generate."""
    if not images and not text:
        return
    inputs = tiny.document(text, images)
    for budget in (0.01, 0.2, 1, 1.0):
        with madakv.evict(tiny.llava(), budget=budget) as run:
            assert tiny.greedy(tiny.llava(), inputs, 4).shape == (1, 4)
        assert run.last is not None
        assert sum(run.last.prompt_tokens.values()) == inputs["input_ids"].shape[1]


def test_embeddings_in_place_of_ids() -> None:
    model, (tokens, _) = tiny.llama(), tiny.ids(30)
    embeds = model.get_input_embeddings()(tokens)
    with madakv.evict(model, budget=0.3):
        want = tiny.greedy(model, {"input_ids": tokens})
        assert torch.equal(model.generate(inputs_embeds=embeds, max_new_tokens=16, do_sample=False), want)


def test_the_printed_record_names_its_rows() -> None:
    tokens, mask = tiny.ids(30, 20)
    with madakv.evict(tiny.llama(), budget=0.5) as run:
        tiny.llama()(tokens, attention_mask=mask)
        assert "25.0 of 50 text per head, 2 rows together" in str(run.last)
        tiny.llama()(tokens[:1])
        assert "15.0 of 30 text per head)" in str(run.last)


@pytest.mark.parametrize(
    ("factor", "says"),
    [(1e20, "layer 1 .* not finite.*float32"), (float("nan"), "layer 1 .* NaN .*another dtype would not help")],
)
def test_attention_that_is_not_finite_is_not_decided_on(factor: float, says: str) -> None:
    model, (tokens, _) = tiny.llama(), tiny.ids(20)
    attention = model.model.layers[1].self_attn
    weights = [attention.q_proj.weight, attention.k_proj.weight]
    before = [weight.clone() for weight in weights]
    try:
        for weight in weights:
            weight.mul_(factor)
        with madakv.evict(model), pytest.raises(madakv.InputError, match=says):
            model(tokens)
    finally:
        for weight, own in zip(weights, before, strict=True):
            weight.copy_(own)


def test_right_padding_and_holes_are_never_kept() -> None:
    model, (tokens, _) = tiny.llama(), tiny.ids(30)
    mask = torch.ones_like(tokens)
    mask[0, 12:15] = 0
    mask[0, 27:] = 0
    with madakv.evict(model, budget=0.5) as run:
        model(tokens, attention_mask=mask)
    assert run.last is not None
    for plan in run.last.plans:
        assert not set(plan.positions.tolist()) & {12, 13, 14, 27, 28, 29}
    assert sum(int(plan.counts.sum()) for plan in run.last.plans) == 24 * len(run.last.plans)


def test_a_decode_step_neither_copies_the_cache_nor_asks_the_device() -> None:
    """Traps 13, 20, 21 and 23: no copy and no repeat of the entries, no .item(), no loop over heads."""
    model, (tokens, padded) = tiny.llama(), tiny.ids(600, 500)
    calls: list[str] = []
    made = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal made
            out = func(*args, **(kwargs or {}))
            calls.append(str(func))
            known = {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)}
            if isinstance(out, Tensor) and out.untyped_storage().data_ptr() not in known:
                made = max(made, out.untyped_storage().nbytes())
            return out

    for options, mask in ((EVEN, torch.ones_like(padded)), (EVEN, padded), (UNEVEN, padded)):
        whole = torch.nn.functional.pad(mask, (0, 2), value=1)
        with madakv.evict(model, budget=0.5, **options):
            cache = model(tokens, attention_mask=mask).past_key_values
            step = tokens[:, :1]
            model(step, attention_mask=whole[:, :-1], past_key_values=cache)
            layer = cache.layers[1]
            query, sinks = torch.randn(2, 8, 1, 8), torch.randn(8)
            with Watch():
                # What is derived of the entries is made once.
                attend(query, layer.memory, scaling=1.0, sinks=sinks)
            calls.clear()
            made = 0
            with Watch():
                attend(query, layer.memory, scaling=1.0, mask=torch.ones(2, 1, 1, 1, dtype=torch.bool), sinks=sinks)
        kept = layer.memory.entries.keys.untyped_storage().nbytes()
        assert made < 0.6 * kept, f"a step made a tensor of {made} bytes beside keys of {kept}"
        assert not [call for call in calls if "_local_scalar_dense" in call or "nonzero" in call]
        assert len(calls) < 100


def test_rows_can_be_repeated() -> None:
    model, (tokens, mask) = tiny.llama(), tiny.ids(40, 28)
    step = torch.randint(5, 97, (2, 1))
    whole = torch.nn.functional.pad(mask, (0, 1), value=1)
    with madakv.evict(model, budget=0.3, **UNEVEN):
        want = model(step, attention_mask=whole, past_key_values=model(tokens, attention_mask=mask).past_key_values)
        cache = model(tokens, attention_mask=mask).past_key_values
        cache.batch_repeat_interleave(3)
        got = model(step.repeat_interleave(3, 0), attention_mask=whole.repeat_interleave(3, 0), past_key_values=cache)
        assert cache.prompt.modality.shape == (6, 40)
    assert_same(got.logits, want.logits.repeat_interleave(3, 0), 1e-4)


def test_a_reset_cache_reads_a_new_prompt() -> None:
    model, (first, _), (second, _) = tiny.llama(), tiny.ids(40), tiny.ids(20)
    with madakv.evict(model, budget=0.3) as run:
        want = model(second).logits
        cache = model(first).past_key_values
        cache.reset()
        assert cache.nbytes == 0
        assert torch.equal(model(second, past_key_values=cache).logits, want)
        assert cache.get_seq_length() == 20
    assert run.last is not None
    assert run.last.prompt_tokens == {"text": 20}


def test_the_cache_holds_on_to_nothing_but_entries() -> None:
    model, (tokens, _) = tiny.llama(), tiny.ids(200)
    with madakv.evict(model, budget=0.2) as run:
        cache = model(tokens).past_key_values
    assert run.last is not None
    for plan in run.last.plans:
        assert plan.positions.untyped_storage().nbytes() == plan.positions.nbytes
    assert not cache.reads_prompt, "plans and allocator are handed over"
    gc.collect()
    assert cache.reading is None
    held = {id(x) for x in gc.get_referents(cache) if isinstance(x, Tensor | madakv.KeepPlan)}
    assert not held, "nothing of a pass outlives it"


def test_autocast() -> None:
    model, (tokens, _) = tiny.llama(), tiny.ids(40)
    with torch.autocast("cpu", torch.bfloat16):
        want = model(tokens[:, -1:], past_key_values=model(tokens).past_key_values).logits
        with madakv.evict(model, budget=1.0):
            got = model(tokens[:, -1:], past_key_values=model(tokens).past_key_values).logits
    assert_same(got, want, 3e-2)


def test_a_users_own_generate_survives() -> None:
    model, (tokens, _) = tiny.llama(), tiny.ids(20)
    original = model.generate
    called = []

    def own(*args: Any, **kwargs: Any) -> Any:
        called.append(True)
        return original(*args, **kwargs)

    model.generate = own
    try:
        with madakv.evict(model, budget=0.5) as run:
            model.generate(tokens, max_new_tokens=2)
        assert model.generate is own
    finally:
        del model.generate
    assert called
    assert run.last is not None


def test_saving_inside_the_block_saves_the_models_own_settings(tmp_path: Any) -> None:
    with madakv.evict(tiny.llama()):
        tiny.llama().save_pretrained(tmp_path)
    for path in tmp_path.glob("*.json"):
        assert "madakv" not in path.read_text()


def test_a_layer_moves_between_devices() -> None:
    """The meta device stands in for a second one: it holds no data, but every tensor has to arrive there."""
    model, (tokens, _) = tiny.llama(), tiny.ids(40)
    with madakv.evict(model, budget=0.3, **UNEVEN):
        cache = model(tokens).past_key_values
        model(tokens[:, :1], past_key_values=cache)
    layer = cache.layers[1]
    want = attend(torch.ones(1, 8, 1, 8), layer.memory, scaling=1.0)
    layer.offload()
    layer.prefetch()
    assert torch.equal(attend(torch.ones(1, 8, 1, 8), layer.memory, scaling=1.0), want)
    assert layer.device.type == "cpu"
    layer.device = torch.device("meta")
    layer.prefetch()
    entries, tail = layer.memory.entries, layer.memory.tail
    held = [entries.keys, entries.values, entries.counts, tail.keys, tail.values]
    assert {tensor.device.type for tensor in held} == {"meta"}
    assert layer.memory.entries.once(tiles_of).mask.device.type == "meta"
    assert cache.layers[0].memory.entries.keys.device.type == "cpu"
