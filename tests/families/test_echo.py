"""An echo in every model family: what it heard counts, and what follows is as if it had never been."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import madakv
from madakv.hf.layer import RaggedLayer
from tests.families.zoo import FAMILIES, Inputs, left_padded

STEPS = 6
NEXT_TO_NOTHING = 1e-30
"""A weight under which an echo is read, and decides nothing."""


def answer(model: Any, inputs: Inputs, **options: Any) -> tuple[Any, Any]:
    """What `generate` returns, and the run."""
    with madakv.evict(model, budget=12, **options) as run:
        out = model.generate(
            **inputs, max_new_tokens=STEPS, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    return out, run.last


@pytest.mark.parametrize("name", FAMILIES)
def test_an_echo_counts_and_leaves_nothing_behind(name: str) -> None:
    family = FAMILIES[name]
    model, inputs = family.model(), family.prompt(0)
    plain, without = answer(model, inputs, echo=0)
    out, unheard = answer(model, inputs, echo="all", echo_weight=NEXT_TO_NOTHING)
    _, heard = answer(model, inputs, echo="all", echo_weight=100.0)
    positions = [torch.cat([plan.positions for plan in one.plans]) for one in (without, unheard, heard)]
    assert torch.equal(positions[0], positions[1])
    assert not torch.equal(positions[0], positions[2])
    assert torch.equal(out.sequences, plain.sequences)
    for got, want in zip(out.logits, plain.logits, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["gemma3", "gpt_oss", "qwen3_5", "aya_vision"])
def test_states_that_are_not_evicted_are_put_back_bit_for_bit(name: str) -> None:
    family = FAMILIES[name]
    model, inputs = family.model(), family.prompt(0)
    states = []
    for echo in (0, 7):
        with madakv.evict(model, budget=12, echo=echo), torch.no_grad():
            cache = model(**inputs).past_key_values
        others = [layer for layer in cache.layers if not isinstance(layer, RaggedLayer)]
        assert others
        assert int(cache.get_seq_length()) == inputs["input_ids"].shape[1]
        states.append([tensors(vars(layer)) for layer in others])
    for before, after in zip(*states, strict=True):
        assert before.keys() == after.keys()
        assert before
        for key in before:
            assert torch.equal(before[key], after[key])


@pytest.mark.parametrize("name", ["gemma3", "qwen3_5"])
def test_a_prompt_may_be_read_with_gradients(name: str) -> None:
    """States that gradients go through are put back, too, and the gradients are those without an echo."""
    family = FAMILIES[name]
    model, inputs = family.model(), family.prompt(0)
    told = []
    for echo in (0, 7):
        with madakv.evict(model, budget=12, echo=echo):
            out = model(**inputs)
        model.zero_grad()
        out.logits.square().mean().backward()
        told.append([weight.grad.clone() for weight in model.parameters() if weight.grad is not None])
    assert told[0]
    for before, after in zip(*told, strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("name", ["llava", "gemma2", "gemma3", "gpt_oss", "paligemma", "qwen2_5_vl"])
def test_a_padded_row_hears_what_it_hears_alone(name: str) -> None:
    family = FAMILIES[name]
    model, rows = family.model(), [family.prompt(number) for number in (0, 1)]
    lengths = [row["input_ids"].shape[1] for row in rows]
    assert lengths[0] != lengths[1]
    _, both = answer(model, left_padded(rows), echo=7, echo_weight=100.0, safeguard=0.0)
    for number, row in enumerate(rows):
        _, alone = answer(model, row, echo=7, echo_weight=100.0, safeguard=0.0)
        padding = max(lengths) - lengths[number]
        for together, own in zip(both.plans, alone.plans, strict=True):
            for kept, wanted in zip(together.indices[number], own.indices[0], strict=True):
                assert (kept - padding).tolist() == wanted.tolist()


def tensors(held: dict[Any, Any], prefix: str = "") -> dict[str, torch.Tensor]:
    found = {}
    for key, value in held.items():
        if isinstance(value, torch.Tensor):
            found[f"{prefix}{key}"] = value
        elif isinstance(value, dict):
            found |= tensors(value, f"{prefix}{key}.")
    return found
