"""No speed without a right result: what is timed is held against the plain-loop reference first, on the same data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from madakv.attention import attend, ragged_attention_reference
from madakv.cache import Tail
from madakv.hf.cache import RaggedCache
from madakv.hf.layer import RaggedLayer
from madakv.linears import fast_linears

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Relative RMS error that each dtype's rounding allows, as in the tests."""
_COLUMNS = 1000


def relative_rms(got: Tensor, want: Tensor) -> float:
    """RMS of the error over RMS of what is wanted, in fp64; NaN if anything is NaN."""
    got, want = got.to("cpu", torch.float64), want.to("cpu", torch.float64)
    return float((got - want).square().mean().sqrt() / want.square().mean().sqrt())


def refusal(error: float, tolerance: float, against: str) -> str | None:
    """Why a result is no basis for a speed; None if it is right. NaN is never right."""
    if error <= tolerance:
        return None
    return f"wrong result: relative RMS error {error:.2g} against {against}, {tolerance:.2g} is allowed"


@torch.no_grad()
def attention_error(cache: RaggedCache, query_heads: int) -> float:
    """The largest relative RMS error of the first and the last evicted layer's attention.

    A random query goes through the layer as a new token's does, and through the fp64 reference; of large batches the
    first and the last row are compared.

    Args:
        cache: has read a prompt and at least one token after it.
        query_heads: of the model.
    """
    layers = cache.ragged_layers
    return largest(_layer_error(layer, query_heads) for layer in {layers[0], layers[-1]})


def _layer_error(layer: RaggedLayer, query_heads: int) -> float:
    entries = layer.memory.kept
    if entries is None:
        raise RuntimeError("the layer has not read a prompt")
    B, D = entries.counts.shape[0], entries.keys.shape[-1]
    query = torch.randn(B, query_heads, 1, D, device=entries.keys.device).to(entries.keys.dtype)
    got = attend(query, layer.memory, scaling=D**-0.5)
    rows = torch.tensor(sorted({0, B - 1}))
    tail = Tail()
    keys, values = layer.memory.tail.written()
    tail.append(keys.cpu()[rows], values.cpu()[rows], 0)
    want = ragged_attention_reference(query.cpu()[rows], entries.to("cpu").select_rows(rows), tail, scaling=D**-0.5)
    return relative_rms(got.cpu()[rows], want)


@torch.no_grad()
def products_error(model: Any, rows: int) -> float:
    """The largest relative RMS error of the decoder's first and last linear layer, and of the head.

    Random rows go through the layers as they do inside `madakv.fast_linears`, and are multiplied in fp64, for a
    thousand columns each. Only layers that the kernel serves.
    """
    errors = [0.0]
    with fast_linears(model):
        linears = [layer for layer in model.get_decoder().modules() if type(layer) is nn.Linear]
        for layer in {*linears[:1], *linears[-1:], model.get_output_embeddings()}:
            if layer is None or "forward" not in layer.__dict__:
                continue
            x = torch.randn(rows, layer.in_features).to(layer.weight.dtype)
            columns = torch.linspace(0, layer.out_features - 1, min(layer.out_features, _COLUMNS)).long()
            want = x.double() @ layer.weight[columns].double().T
            want += 0 if layer.bias is None else layer.bias[columns].double()
            errors.append(relative_rms(layer(x)[:, columns], want))
    return largest(errors)


def largest(errors: Iterable[float]) -> float:
    """The largest error; NaN if one is."""
    return float(torch.tensor(list(errors)).max())
