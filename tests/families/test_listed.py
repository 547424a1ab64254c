"""Every family that is known and not in `test_families`: eviction of it, once, against the same oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

import madakv
from tests.families.listed import LISTED
from tests.families.oracle import hidden_entries
from tests.families.zoo import FAMILIES, Inputs, prompt_tokens
from tests.tolerance import assert_same, relative_rms

STEPS = 6
FP32 = 1e-4
NEVER = -100.0
"""Logits below are of tokens that the model never says; as they come they would drown all others."""


def generate(model: Any, inputs: Inputs, **options: Any) -> tuple[Tensor, Tensor]:
    """Greedy tokens [1, STEPS] and the logits that chose them [1, STEPS, V]."""
    result = model.generate(
        **inputs, max_new_tokens=STEPS, do_sample=False, output_logits=True, return_dict_in_generate=True, **options
    )
    return result.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(result.logits, 1).clamp_min(NEVER)


def assert_same_output(got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor]) -> None:
    assert_same(got[1], want[1], FP32)
    assert got[0].tolist() == want[0].tolist()


def test_every_known_family_is_built_here() -> None:
    built = {name.removesuffix(" video") for name in FAMILIES} | set(LISTED)
    assert set(madakv.known_families()) <= built


@pytest.mark.parametrize("name", LISTED)
@torch.no_grad()
def test_a_family_is_evicted_as_its_row_says(name: str) -> None:
    if name not in CONFIG_MAPPING_NAMES:
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    family = LISTED[name]
    model, inputs = family.model(), family.prompt(0)
    assert model.config.model_type == name
    want = generate(model, inputs)

    with madakv.evict(model, budget=1.0) as run:
        assert_same_output(generate(model, inputs), want)
    assert run.last is not None
    assert run.last.prompt_tokens == prompt_tokens(inputs)
    assert set(run.last.prompt_tokens) > {"text"}

    with madakv.evict(model, budget=0.2, safeguard=0.2) as run:
        got = generate(model, inputs)
    assert run.last is not None
    assert run.last.layers == family.full_layers
    # The first token comes out of the prefill, before anything is missing; the later ones must feel the loss.
    assert_same(got[1][:, 0], want[1][:, 0], FP32)
    assert relative_rms(got[1][:, 1:], want[1][:, 1:]) > 100 * FP32
    with hidden_entries(model, run.last):
        assert_same_output(got, generate(model, inputs))

    if len(family.full_layers) == family.layers:
        with madakv.evict(model, budget=1.0, draft=3):
            drafted = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)
        assert drafted[:, inputs["input_ids"].shape[1] :].tolist() == want[0].tolist()
