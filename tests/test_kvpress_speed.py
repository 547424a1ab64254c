"""What the comparison of speed with kvpress counts; both libraries meet in scripts/kvpress_speed.py itself."""

from dataclasses import replace
from typing import Any

import torch
from transformers import DynamicCache

from madakv.bench.shapes import random_model, shape
from tests.scripts import load_script

H, N, D = 4, 20, 8
speed = load_script("kvpress_speed")


def full() -> Any:
    cache = DynamicCache()
    for layer in range(2):
        cache.update(torch.randn(1, H, N, D), torch.randn(1, H, N, D), layer)
    return cache


def test_a_cache_that_is_cut_counts_what_is_left_and_the_storage_behind_it() -> None:
    cache = full()
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[:, :, :5].clone(), layer.values[:, :, :5]
    held = speed.Held(cache, [None, None])
    assert held.kept_share(H, N) == 0.25
    # The values are a view: all of their storage is alive.
    assert held.nbytes == {"kv_bytes": 2 * H * D * 4 * (5 + N), "index_bytes": 0}


def test_entries_that_attention_overlooks_are_not_kept_but_their_bytes_are() -> None:
    index = torch.arange(2 * N)
    held = speed.Held(full(), [(index, index, index)] * 2)
    assert held.kept_share(H, N) == 0.5
    assert held.nbytes == {"kv_bytes": 2 * 2 * H * N * D * 4, "index_bytes": 2 * 3 * 2 * N * 8}


def test_both_halves_run_the_same_slice() -> None:
    sizes = speed.our_sizes()
    sizes["config"] |= {"hidden_size": 64, "intermediate_size": 32}
    theirs = speed.slice_of(sizes)
    chosen = replace(shape(speed.SHAPE), hidden=64, intermediate=32)
    ours = random_model(chosen, speed.LAYERS, dtype=torch.bfloat16, device=torch.device("cpu"))
    weights = dict(ours.get_decoder().named_parameters())
    for name, weight in theirs.model.named_parameters():
        assert weight.shape == weights[name].shape
        assert weight.dtype == weights[name].dtype
    own, other = (
        model.layers[0].self_attn.q_proj.weight.float().view(32, -1).std(1) for model in (ours, theirs.model)
    )
    # The heads' peaks; the shape's true width is in the factors there, and the small one here.
    assert torch.allclose(own / own[0], other / other[0], rtol=0.1)
    config = theirs.config
    assert (config.num_attention_heads, config.head_dim) == (ours.config.num_attention_heads, ours.config.head_dim)


def test_the_clock_is_madakvs() -> None:
    turns = speed.clock().take_turns([lambda: 1.0, lambda: 2.0], 2)
    assert turns == [[1.0, 1.0], [2.0, 2.0]]
