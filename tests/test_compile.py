"""Steps that can be captured: compiled once, at fixed addresses, without a wait, and with the same answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CompileConfig, GenerationConfig

import madakv
from madakv import UnsupportedOptionError, backend
from madakv.cache import FixedTail, Tail
from madakv.hf.cache import RaggedCache
from tests import tiny
from tests.families.zoo import FAMILIES, left_padded
from tests.tolerance import assert_same

STEPS = 10
CAPTURED = STEPS - 2
"""Steps that are compiled: the prompt gives the first token, and one step makes tables."""

STATIC = {"cache_implementation": "static"}
WAITS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Graphs:
    """A backend that runs what it is given, and counts how often that was."""

    def __init__(self) -> None:
        self.compiled = 0
        self.runs = 0

    def __call__(self, graph: torch.fx.GraphModule, _inputs: Any) -> Callable[..., Any]:
        self.compiled += 1

        def run(*inputs: Any) -> Any:
            self.runs += 1
            return graph.forward(*inputs)

        return run

    def __deepcopy__(self, _memo: Any) -> Graphs:
        return self


def compiling(graphs: Graphs | str) -> CompileConfig:
    config = CompileConfig(backend=graphs, fullgraph=True, mode=None)  # type: ignore[arg-type]
    config._compile_all_devices = True  # type: ignore[assignment]
    return config


def answer(model: Any, inputs: Any, **options: Any) -> Any:
    return model.generate(
        **inputs, max_new_tokens=STEPS, do_sample=False, return_dict_in_generate=True, output_logits=True, **options
    )


def assert_same_answer(got: Any, want: Any) -> None:
    assert torch.equal(got.sequences, want.sequences)
    assert_same(torch.stack(got.logits), torch.stack(want.logits), 1e-5)


def prompts(kind: str) -> tuple[Any, list[Any]]:
    """A model, and prompts of other lengths for it; of each as many rows."""
    if kind == "llama, padded":
        batches = [tiny.ids(*lengths) for lengths in ((30, 17), (24, 33))]
        return tiny.llama(), [{"input_ids": ids, "attention_mask": mask} for ids, mask in batches]
    if kind == "llava":
        return tiny.llava(), [tiny.document(), tiny.document(text=13, images=2)]
    family = FAMILIES["qwen2_5_vl"]
    return family.model(), [left_padded([family.prompt(seed) for seed in seeds]) for seeds in ((0, 1), (2, 0))]


@pytest.mark.parametrize("kind", ["llama, padded", "llava", "qwen2.5-vl, padded"])
def test_steps_are_compiled_once_and_answer_as_before(kind: str) -> None:
    """For any prompt and any budget: what is kept, and of which head, is no part of what is compiled."""
    torch.manual_seed(0)
    model, some = prompts(kind)
    graphs = Graphs()
    uneven = False
    for inputs in some:
        for budget in (0.2, 0.6, 7):
            with madakv.evict(model, budget=budget, safeguard=0.2) as run:
                want = answer(model, inputs)
                assert graphs.runs % CAPTURED == 0
                got = answer(model, inputs, **STATIC, compile_config=compiling(graphs))
            assert_same_answer(got, want)
            assert run.last is not None
            entries = run.last.counts.sum(-1)
            uneven |= bool((entries != entries[..., :1]).any())
    assert uneven
    assert graphs.compiled == 1
    assert graphs.runs == len(some) * 3 * CAPTURED


def test_bfloat16_steps_are_compiled_whole() -> None:
    """Products by a kernel of our own are for steps that run as they are."""
    model, inputs = deepcopy(tiny.llava()).to(torch.bfloat16), tiny.document()
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    graphs = Graphs()
    with madakv.evict(model, budget=0.5):
        answer(model, inputs, **STATIC, compile_config=compiling(graphs))
    assert (graphs.compiled, graphs.runs) == (1, CAPTURED)


def test_steps_that_are_not_compiled_after_all_count_once() -> None:
    """Where torch.compile gives up, the model runs as it is, hooks and all."""
    model, inputs = tiny.llava(), tiny.document()
    with madakv.evict(model, budget=0.4, safeguard=0.2):
        want = answer(model, inputs)
        with torch.compiler.set_stance("force_eager"):
            got = answer(model, inputs, **STATIC, compile_config=compiling(Graphs()))
    assert_same_answer(got, want)


def test_nothing_moves() -> None:
    model, inputs = tiny.llava(), tiny.document()
    places = []

    def look(*_: Any, **__: Any) -> Tensor:
        tails = [layer.memory.tail for layer in cache.ragged_layers]
        states = [x for tail in tails if isinstance(tail, FixedTail) for x in (*tail.buffers, tail.count)]
        places.append([x.data_ptr() for x in states])
        return torch.tensor([False])

    with madakv.evict(model, budget=0.3, safeguard=0.2) as run:
        cache = RaggedCache(model.config, run.method)
        config = compiling(Graphs())
        answer(model, inputs, **STATIC, past_key_values=cache, stopping_criteria=[look], compile_config=config)
    assert len(places) == STEPS
    assert len(places[0]) == 3 * 3
    assert all(place == places[0] for place in places)
    assert [layer.memory.tail.written()[0].shape[2] for layer in cache.ragged_layers] == [STEPS - 1] * 3


class NoWaiting(TorchDispatchMode):
    """Fails where the host would wait for a device to tell what lies in a tensor."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in WAITS, f"{func} in a decode step"
        return func(*args, **(kwargs or {}))


def test_a_step_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does what generate prepares for it; the first step makes tables. The CPU kernel, which has none, is out."""
    monkeypatch.setattr("madakv.attention.cpu.chosen", lambda _: "torch")
    model, (ids, mask) = tiny.llama(), tiny.ids(20, 12)
    with madakv.evict(model, budget=0.3, safeguard=0.2) as run, torch.no_grad():
        cache = RaggedCache(model.config, run.method, room=3)
        model(ids, attention_mask=mask, past_key_values=cache)
        for steps in range(1, 4):
            seen = torch.nn.functional.pad(mask, (0, steps), value=1)
            options = {"next_sequence_length": 1, "attention_mask": seen, "position_ids": seen.cumsum(-1) - 1}
            with NoWaiting() if steps > 1 else nullcontext():
                longer = torch.cat([ids, ids[:, :steps]], 1)
                inputs = model.prepare_inputs_for_generation(longer, past_key_values=cache, **options)
                model(**inputs)
            assert inputs["input_ids"].shape == (2, 1)
            assert inputs["attention_mask"].shape == (2, 1, 1, 3)
        with pytest.raises(AssertionError, match="in a decode step"), NoWaiting():
            cache.ragged_layers[0].memory.tail.written()


def test_the_kernel_runs_in_a_captured_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the length that lies on the device."""
    pytest.importorskip("triton")
    model, (ids, mask) = tiny.llama(), tiny.ids(20, 12)
    options = {"max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    with madakv.evict(model, budget=0.3, safeguard=0.2):
        want = model.generate(ids, attention_mask=mask, **options)
        monkeypatch.setenv(backend.VARIABLE, "triton")
        backend.chosen.cache_clear()
        try:
            config = compiling(graphs := Graphs())
            got = model.generate(ids, attention_mask=mask, **options, **STATIC, compile_config=config)
        finally:
            monkeypatch.delenv(backend.VARIABLE)
            backend.chosen.cache_clear()
    assert (graphs.compiled, graphs.runs) == (1, 3)
    assert torch.equal(got.sequences, want.sequences)
    assert_same(torch.stack(got.logits), torch.stack(want.logits), 1e-4)


@pytest.mark.parametrize("options", [{"lookahead": 3}, {"draft": 3}], ids=["lookahead", "draft"])
def test_methods_that_read_ahead(options: dict[str, int]) -> None:
    """What scores the prompt runs as it is; what comes after is compiled."""
    model, inputs = tiny.llava(), tiny.document()
    graphs = Graphs()
    with madakv.evict(model, budget=0.3, safeguard=0.2, **options):
        want = tiny.greedy(model, inputs)
        got = tiny.greedy(model, inputs, **STATIC, compile_config=compiling(graphs))
    assert torch.equal(got, want)
    assert graphs.compiled > 0
    assert graphs.runs >= 11


def test_the_next_turn_goes_on_with_either_kind() -> None:
    model, (ids, _) = tiny.llama(), tiny.ids(24)
    turn = torch.randint(5, 97, (1, 6))
    for first, second in ((STATIC, STATIC), ({}, STATIC), (STATIC, {})):
        found = []
        for options in (({}, {}), (first, second)):
            with madakv.evict(model, budget=0.4, safeguard=0.2):
                begun = answer(model, {"input_ids": ids}, **options[0])
                cache = begun.past_key_values
                whole = torch.cat([begun.sequences, turn], 1)
                found.append(answer(model, {"input_ids": whole}, past_key_values=cache, **options[1]))
            assert all(isinstance(layer.memory.tail, FixedTail) == bool(options[1]) for layer in cache.ragged_layers)
        assert_same_answer(*reversed(found))


def test_a_loop_of_ones_own_gets_the_compiled_step() -> None:
    """Without masks and positions, and with a mask that only says what is padding."""
    model, (ids, mask) = tiny.llama(), tiny.ids(20, 12)
    for padding in (None, mask):
        logits = []
        graphs = Graphs()
        for room in (None, 4):
            with madakv.evict(model, budget=0.3, safeguard=0.2) as run, torch.no_grad():
                cache = RaggedCache(model.config, run.method, room=room)
                model(ids, attention_mask=padding, past_key_values=cache)
                step = model if room is None else model.get_compiled_call(compiling(graphs))
                for number in range(1, 5):
                    seen = None if padding is None else torch.nn.functional.pad(mask, (0, number), value=1)
                    out = step(input_ids=ids[:, number, None], attention_mask=seen, past_key_values=cache)
                    logits.append(out.logits)
        assert_same(torch.cat(logits[4:]), torch.cat(logits[:4]))
        assert (graphs.compiled, graphs.runs) == (1, 3)


def test_more_tokens_than_room_are_refused_by_number() -> None:
    model, (ids, _) = tiny.llama(), tiny.ids(20)
    with madakv.evict(model, budget=0.3, safeguard=0.2) as run, torch.no_grad():
        cache = RaggedCache(model.config, run.method, room=5)
        model(ids, past_key_values=cache)
        model(ids[:, :4], past_key_values=cache)
        with pytest.raises(
            UnsupportedOptionError, match="room for 5 tokens after the prompt; 4 were read, and 2 more"
        ):
            model(ids[:, :2], past_key_values=cache)
        model(ids[:, :1], past_key_values=cache)
        with pytest.raises(UnsupportedOptionError, match="5 were read, and 1 more"):
            model(ids[:, :1], past_key_values=cache)


def test_room_is_what_generate_may_write() -> None:
    model, (ids, _) = tiny.llama(), tiny.ids(20)
    with madakv.evict(model, budget=0.3, safeguard=0.2):
        config = GenerationConfig(**STATIC, max_new_tokens=7)
        for options in ({**STATIC, "max_new_tokens": 7}, {**STATIC, "max_length": 27}, {"generation_config": config}):
            out = model.generate(ids, return_dict_in_generate=True, **options)
            assert out.sequences.shape[1] == 27
            assert [layer.memory.tail.length for layer in out.past_key_values.ragged_layers] == [6] * 3
        assert config.cache_implementation == "static"
        out = model.generate(ids, max_new_tokens=1, return_dict_in_generate=True, **STATIC)
        assert out.sequences.shape[1] == 21


def test_what_cannot_be_captured_is_refused() -> None:
    model, (ids, _) = tiny.llama(), tiny.ids(20)
    with madakv.evict(model), pytest.raises(UnsupportedOptionError, match="^num_beams=2 .*cache_implementation"):
        model.generate(ids, num_beams=2, max_new_tokens=2, **STATIC)
    family = FAMILIES["gemma2"]
    model, inputs = family.model(), family.prompt(0)
    with madakv.evict(model), pytest.raises(UnsupportedOptionError, match="^cache_implementation='static'.*Sliding"):
        model.generate(**inputs, max_new_tokens=2, **STATIC)


def test_the_model_is_as_before_afterwards() -> None:
    """Its own static cache compiles as ever, and eviction after that, too."""
    model, (ids, _) = tiny.llama(), tiny.ids(20)
    inputs, graphs = {"input_ids": ids}, Graphs()
    want = tiny.greedy(model, inputs)
    before = set(vars(model))
    for _ in range(2):
        with madakv.evict(model, budget=0.3, safeguard=0.2):
            expected = tiny.greedy(model, inputs)
            got = tiny.greedy(model, inputs, **STATIC, compile_config=compiling(graphs))
            assert torch.equal(got, expected)
        assert torch.equal(tiny.greedy(model, inputs, **STATIC, compile_config=compiling(graphs)), want)
    assert set(vars(model)) - before <= {"_compiled_call", "_last_compile_config", "_previous_max_cache_length"}


def rectangle(length: int, rows: int = 2) -> Tensor:
    return torch.randn(rows, 3, length, 4)


def test_a_fixed_tail_holds_what_a_growing_one_does() -> None:
    first, second = rectangle(5), rectangle(1)
    old = Tail()
    old.append(first, -first, 0)
    tail = FixedTail.following(old, like=(first, first), owners=(2, 3), room=4, span=0)
    assert tail.length == 9
    place = tail.keys.data_ptr()
    for growing in (old, tail):
        growing.append(second, -second, 0)
    assert tail.keys.data_ptr() == place
    for got, want in zip(tail.written(), old.written(), strict=True):
        assert torch.equal(got, want)
    for got, want in zip(tail.newest(), old.newest(), strict=True):
        assert torch.equal(got, want.to(got.dtype))
    assert torch.equal(tail.visible(2)[0, 0].int().sum(-1), torch.tensor([5, 6]))
    assert not tail.keys[:, :, 6:].any()
    tail.select_rows(torch.tensor([1]))
    assert torch.equal(tail.growing().keys, old.keys[1:])


@pytest.mark.slow
def test_the_default_compiler() -> None:
    """Inductor, once for several prompts."""
    model, some = prompts("llama, padded")
    torch._dynamo.utils.counters.clear()
    for inputs in some:
        with madakv.evict(model, budget=0.3, safeguard=0.2):
            want = answer(model, inputs)
            assert_same_answer(answer(model, inputs, **STATIC, compile_config=compiling("inductor")), want)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
