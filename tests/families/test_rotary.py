"""Queries turned back to before RoPE, and keys as the next positions meet them, in every family's own code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

import madakv
from madakv import UnsupportedModelError
from madakv.methods.keydiff import KeyDiff
from madakv.scoring import LayerView, Rotary
from tests import tiny
from tests.families.zoo import FAMILIES, Inputs
from tests.tolerance import assert_same

FP32 = 1e-4
OF_THEIR_OWN = ("aya_vision", "gemma4")
"""Families some of whose layers do not turn, or which turn queries and keys apart."""


@dataclass(frozen=True, kw_only=True)
class Recording(KeyDiff):
    """KeyDiff that notes the views it was asked to score."""

    def score(self, view: LayerView) -> Tensor:
        VIEWS.append(view)
        return super().score(view)


VIEWS: list[LayerView] = []


def watch(model: Any, monkeypatch: pytest.MonkeyPatch, calls: list[tuple[Tensor, Tensor]]) -> None:
    """Note the queries before and after RoPE of every call that the decoder makes from now on."""
    files = {type(part).__module__ for part in model.get_decoder().modules()}
    for file in (sys.modules[name] for name in files):
        if (own := getattr(file, "apply_rotary_pos_emb", None)) is None:
            continue

        def noting(query: Tensor, key: Tensor, *args: Any, _own: Any = own, **kwargs: Any) -> Any:
            told = _own(query, key, *args, **kwargs)
            if key.shape[1]:
                calls.append((query, told[0]))
            return told

        monkeypatch.setattr(file, "apply_rotary_pos_emb", noting)


def assert_turns(model: Any, inputs: Inputs, layers: Sequence[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt's queries, and one step's logits, in the given layers."""
    VIEWS.clear()
    calls: list[tuple[Tensor, Tensor]] = []
    watch(model, monkeypatch, calls)
    with madakv.evict(model, Recording(budget=0.5)):
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert len(VIEWS) == len(layers)
    prefill, step = calls[: len(calls) // 2], calls[len(calls) // 2 :]
    # Layers of linear attention turn nothing.
    numbers: Sequence[int] = range(len(prefill)) if len(prefill) == len(VIEWS) else layers
    for view, number in zip(VIEWS, numbers, strict=True):
        assert view.rotary is not None
        before, after = prefill[number]
        assert_same(view.query, after, FP32)
        assert_same(view.rotary.turned_back(view.query), before, FP32)
        # The first token behind the prompt, turned by its position, and its logits.
        before, after = step[number]
        key = view.key.repeat_interleave(before.shape[1] // view.key.shape[1], 1)
        assert_same(before @ view.rotary.met_ahead(key, 1).mT, after @ key.mT, FP32)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in OF_THEIR_OWN])
@torch.no_grad()
def test_a_family_turns_as_it_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family = FAMILIES[name]
    assert_turns(family.model(), family.prompt(0), family.full_layers, monkeypatch)


def of_rope(**rope: Any) -> LlamaForCausalLM:
    return LlamaForCausalLM(tiny.text_config(rope_parameters={"rope_theta": 10000.0, **rope})).eval()


@torch.no_grad()
def test_a_rotation_that_scales_is_undone_with_its_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    model = of_rope(rope_type="yarn", factor=8.0)
    assert model.model.rotary_emb.attention_scaling > 1.1
    assert_turns(model, {"input_ids": tiny.ids(30)[0]}, range(3), monkeypatch)


@torch.no_grad()
def test_frequencies_that_change_with_the_prompt_are_refused() -> None:
    model = of_rope(rope_type="dynamic", factor=2.0)
    with (
        madakv.evict(model, "expected_attention"),
        pytest.raises(UnsupportedModelError, match="RoPE of the kind 'dynamic'"),
    ):
        model(tiny.ids(30)[0])


def test_text_behind_a_picture_goes_on_behind_its_farthest_axis() -> None:
    """M-RoPE, with the plain count of tokens before the axes; the picture is the prompt's end."""
    count, time, height, width = [0, 1, 2, 3, 4], [0, 1, 1, 1, 1], [0, 1, 1, 2, 2], [0, 1, 3, 1, 3]
    asked: list[Tensor] = []

    def waves(positions: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(positions)
        return torch.ones(1, positions.shape[-1], 4), torch.zeros(1, positions.shape[-1], 4)

    rotary = Rotary(
        lambda states, cos, sin: states * cos + sin, waves, torch.tensor([count, time, height, width])[:, None]
    )
    states = torch.rand(1, 2, 5, 4)
    assert torch.equal(rotary.turned_back(states), states)
    assert torch.equal(rotary.met_ahead(states, 3), states)
    assert [one.tolist() for one in asked] == [[[time], [height], [width]], [[4, 5, 6]]]


@pytest.mark.parametrize("name", OF_THEIR_OWN)
def test_others_are_refused(name: str) -> None:
    family = FAMILIES[name]
    model = family.model()
    with (
        madakv.evict(model, "expected_attention"),
        pytest.raises(UnsupportedModelError, match="turns queries by positions in a way of its own"),
    ):
        model(**family.prompt(0))
