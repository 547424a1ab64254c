"""`evict(model, "full")` is the model as it is: transformers' own cache and attention, bit for bit, in every dtype.

It once changed a bfloat16 model's logits by up to 0.09 on a CPU: products with weights were replaced on the way.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import madakv
from madakv.hf.cache import RaggedCache
from tests import tiny


def generated(model: Any, inputs: dict[str, Tensor], **options: Any) -> Any:
    return model.generate(
        **inputs, max_new_tokens=8, do_sample=False, return_dict_in_generate=True, output_logits=True, **options
    )


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("of", [tiny.llama, tiny.llava])
def test_the_full_cache_is_transformers_own(of: Any, dtype: torch.dtype, options: dict[str, Any]) -> None:
    model = copy.deepcopy(of()).to(dtype)
    inputs = (
        dict(zip(("input_ids", "attention_mask"), tiny.ids(40, 23), strict=True))
        if of is tiny.llama
        else tiny.document()
    )
    if "prompt_lookup_num_tokens" in options:
        inputs = {name: x[:1] if of is tiny.llama else x for name, x in inputs.items()}
    want = generated(model, inputs, **options)
    with madakv.evict(model, "full") as run:
        got = generated(model, inputs, **options)
    assert torch.equal(got.sequences, want.sequences)
    assert all(torch.equal(own, plain) for own, plain in zip(got.logits, want.logits, strict=True))
    assert not isinstance(got.past_key_values, RaggedCache)
    assert run.last is not None
    assert run.last.kept_share == 1.0
    assert run.last.kv_bytes == run.last.kv_bytes_full


def test_what_is_told_of_it() -> None:
    model, inputs = tiny.llava(), tiny.document()
    with madakv.evict(model, "full") as run:
        cache = model(**inputs, use_cache=True).past_key_values
        told = run.last
        model(input_ids=torch.tensor([[7]]), past_key_values=cache)
    assert run.last is told
    assert told is not None
    assert told.kv_bytes == sum(x.untyped_storage().nbytes() for layer in cache.layers[:3] for x in held(layer, told))
    assert torch.equal(told.modality, torch.where(inputs["input_ids"] == tiny.IMAGE_TOKEN, 1, 0))


def held(layer: Any, told: madakv.Kept) -> list[Tensor]:
    """Of the prompt."""
    N = told.modality.shape[1]
    return [x[:, :, :N].clone() for x in (layer.keys, layer.values)]


def test_padding_is_told_apart_whatever_the_mask() -> None:
    model, (tokens, mask) = tiny.llama(), tiny.ids(30, 22)
    inputs = {"input_ids": tokens, "attention_mask": mask}
    for options in ({}, {"cache_implementation": "static"}):
        with madakv.evict(model, "full") as run:
            model.generate(**inputs, max_new_tokens=2, do_sample=False, disable_compile=True, **options)
        assert run.last is not None
        assert torch.equal(run.last.modality >= 0, mask.bool()), options
