"""What is noted on the way is what attention did, and changes nothing of it."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

import madakv
from madakv.errors import ConfigurationError, UnsupportedOptionError
from madakv.scoring.proxies import proxy_mask
from tests.families.zoo import FAMILIES, left_padded
from tests.tiny import document, greedy, ids, llama, llava

SEEN = ["llama", "llava", "gemma3", "gpt_oss", "qwen2_5_vl"]
STEPS = 4


def eager(model: Any, inputs: dict[str, Tensor]) -> list[list[Tensor]]:
    """transformers' own attention, of each pass and layer [B, Hq, n, T]."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        out = model.generate(
            **inputs,
            max_new_tokens=STEPS,
            do_sample=False,
            output_attentions=True,
            return_dict_in_generate=True,
        )
    finally:
        model.set_attn_implementation(before)
    return [list(step) for step in out.attentions]


def recorded(model: Any, inputs: dict[str, Tensor], method: str = "snapkv", **options: Any) -> madakv.Run:
    with madakv.evict(model, method, record=True, **options) as run:
        model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)
    return run


def over_groups(weights: Tensor, heads: int) -> Tensor:
    """[B, Hq, T] -> [B, H, T]."""
    return weights.unflatten(1, (heads, -1)).mean(2)


def rows_of(name: str) -> tuple[Any, dict[str, Tensor]]:
    family = FAMILIES[name]
    return family.model(), left_padded([family.prompt(1), family.prompt(2)])


@pytest.mark.parametrize("name", SEEN)
@torch.no_grad()
def test_the_questions_attention_is_that_of_the_model(name: str) -> None:
    model, inputs = rows_of(name)
    run = recorded(model, inputs, budget=0.3)
    assert run.recording is not None
    assert run.last is not None
    whole = eager(model, inputs)[0]
    question = proxy_mask(run.last.modality).float()
    for layer, noted in zip(run.last.layers, run.recording.attention, strict=True):
        paid = (
            torch.einsum("bhqt,bq->bht", whole[layer].float().nan_to_num(0.0), question)
            / question.sum(-1)[:, None, None]
        )
        expected = over_groups(paid, noted.shape[1]) * (run.last.modality >= 0)[:, None]
        torch.testing.assert_close(noted.float(), expected, atol=2e-3, rtol=2e-2)


@pytest.mark.parametrize("name", SEEN)
@torch.no_grad()
def test_what_answers_look_at_is_what_the_model_attends_to(name: str) -> None:
    model, inputs = rows_of(name)
    run = recorded(model, inputs, budget=1.0)
    assert run.recording is not None
    assert run.last is not None
    steps = eager(model, inputs)[1:]
    assert sorted(run.recording.steps) == list(range(1, STEPS))
    N = run.last.modality.shape[1]
    for t, looked in run.recording.steps.items():
        for layer, plan, own in zip(run.last.layers, run.last.plans, looked, strict=True):
            heads = plan.counts.shape[1]
            weights = over_groups(steps[t - 1][layer][:, :, 0].float(), heads)
            owner = plan.owners()
            expected = weights[owner // heads, owner % heads, plan.positions]
            torch.testing.assert_close(own.entries.float(), expected, atol=2e-3, rtol=2e-2)
            torch.testing.assert_close(own.answer, weights[:, :, N:].sum(-1), atol=2e-3, rtol=2e-2)


@torch.no_grad()
def test_what_was_evicted_is_not_looked_at() -> None:
    model, inputs = llava(), document()
    run = recorded(model, inputs, budget=0.3)
    assert run.recording is not None
    assert run.last is not None
    weights = eager(model, inputs)[1][0][:, :, 0].float()
    plan, own = run.last.plans[0], run.recording.steps[1][0]
    B, H = plan.counts.shape
    Hq, N = weights.shape[1], run.last.modality.shape[1]
    owner = plan.owners()
    stays = torch.zeros(B, H, weights.shape[-1], dtype=torch.bool)
    stays[owner // H, owner % H, plan.positions] = True
    stays[:, :, N:] = True
    left = weights * stays.repeat_interleave(Hq // H, 1)
    expected = over_groups(left / left.sum(-1, keepdim=True), H)
    torch.testing.assert_close(
        own.entries.float(), expected[owner // H, owner % H, plan.positions], atol=1e-3, rtol=1e-2
    )
    assert int(stays[:, :, :N].sum()) < stays[:, :, :N].numel() // 2


@pytest.mark.parametrize(
    "options", [{}, {"method": "madakv"}, {"method": "madakv", "draft": 2}, {"method": "adakv", "lookahead": 2}]
)
@torch.no_grad()
def test_answers_stay_the_same(options: dict[str, Any]) -> None:
    model, inputs = llava(), document()
    outs = []
    for record in (False, True):
        with madakv.evict(model, **{"method": "snapkv", "budget": 0.3, "record": record} | options) as run:
            outs.append(greedy(model, inputs, 8))
    assert torch.equal(*outs)
    assert run.exchange is not None
    assert run.recording is not None
    assert torch.equal(run.exchange.answer, outs[1])
    heard = options.get("lookahead", 0)
    assert max(run.recording.steps) == 7
    assert min(run.recording.steps) == heard + 1


def test_nothing_is_noted_unless_asked_for() -> None:
    model, inputs = llava(), document()
    with madakv.evict(model, budget=0.3) as run:
        greedy(model, inputs, 2)
    assert run.recording is None
    assert run.exchange is not None
    assert torch.equal(run.exchange.input_ids, inputs["input_ids"])  # type: ignore[arg-type]


@pytest.mark.parametrize("record", [False, True])
def test_pictures_are_held_if_asked_for(record: bool) -> None:
    model, inputs = llava(), document()
    pixels = weakref.ref(inputs["pixel_values"])
    with madakv.evict(model, budget=0.3, record=record) as run:
        greedy(model, inputs, 2)
    assert run.exchange is not None
    assert run.exchange.inputs["pixel_values"] is inputs["pixel_values"]
    inputs.pop("pixel_values")
    gc.collect()
    assert (pixels() is not None) == record
    assert ("pixel_values" in run.exchange.inputs) == record


def test_the_first_call_on_a_cache_is_the_exchange() -> None:
    model, (first, mask) = llama(), ids(12)
    with madakv.evict(model, budget=0.5, record=True) as run:
        out = model.generate(
            first, attention_mask=mask, max_new_tokens=3, return_dict_in_generate=True, do_sample=False
        )
        model.generate(
            torch.cat([out.sequences, first[:, :4]], 1), past_key_values=out.past_key_values, max_new_tokens=2
        )
    assert run.exchange is not None
    assert run.recording is not None
    assert torch.equal(run.exchange.input_ids, first)  # type: ignore[arg-type]
    assert torch.equal(run.exchange.answer, out.sequences[:, 12:])
    # The second turn is read in one pass, which is not noted; the token behind it is.
    assert sorted(run.recording.steps) == [1, 2, 8]


def test_embeddings_and_full_caches_leave_an_exchange_too() -> None:
    model, (tokens, mask) = llama(), ids(9)
    embedded = model.get_input_embeddings()(tokens).detach()
    with madakv.evict(model, budget=0.5) as run:
        out = model.generate(inputs_embeds=embedded, attention_mask=mask, max_new_tokens=3)
    assert run.exchange is not None
    assert run.exchange.input_ids is None
    assert torch.equal(run.exchange.answer, out)
    with madakv.evict(model, "full") as run:
        out = model.generate(tokens, attention_mask=mask, max_new_tokens=3)
    assert run.exchange is not None
    assert torch.equal(run.exchange.answer, out[:, 9:])


@pytest.mark.parametrize(
    ("options", "words"),
    [({"num_beams": 2}, "beam search"), ({"cache_implementation": "static"}, "static")],
)
def test_what_moves_rows_or_is_captured_is_refused(options: dict[str, Any], words: str) -> None:
    model, (tokens, mask) = llama(), ids(9)
    with madakv.evict(model, budget=0.5, record=True), pytest.raises(UnsupportedOptionError, match=words):
        model.generate(tokens, attention_mask=mask, max_new_tokens=3, **options)


def test_a_full_cache_is_not_looked_at() -> None:
    with pytest.raises(ConfigurationError, match=r"budget=1\.0"), madakv.evict(llama(), "full", record=True):
        pass
