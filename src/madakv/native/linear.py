"""Products of a few rows with a model's weights, at the speed at which the weights can be read."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from madakv.attention.backend import chosen
from madakv.native.build import kernels

_STEP = 32
_MOST_ROWS = 8
"""Of more rows PyTorch's products are as fast: weights are multiplied more often than they are read."""


@contextmanager
def native_linears(model: nn.Module) -> Iterator[None]:
    """Inside the block, linear layers in bfloat16 on a CPU multiply up to 8 rows by a kernel of madakv's own.

    A step of decoding reads all weights once, and PyTorch's products of so few rows do that at a part of the speed of
    the memory (`docs/performance.md`). Sums are fp32 and rounded once. All else goes to PyTorch, as it does under
    another backend (`madakv.attention.backend`), and where somebody has given a layer another `forward`.
    """
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear and "forward" not in layer.__dict__]
    layers = [layer for layer in layers if _is_served(layer.weight)]
    if layers and (chosen("cpu") != "native" or kernels() is None):
        layers = []
    for layer in layers:
        layer.__dict__["forward"] = functools.partial(_linear, layer)
    try:
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _is_served(weight: Tensor) -> bool:
    """Whether the kernel can read a weight; those of quantised or distributed models are of other types."""
    return (
        type(weight) is nn.Parameter
        and weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and weight.is_contiguous()
        and weight.shape[1] % _STEP == 0
    )


def _linear(layer: nn.Linear, input: Tensor) -> Tensor:
    """`nn.Linear.forward`: [..., in features] to [..., out features]."""
    weight, bias = layer.weight, layer.bias
    if torch.compiler.is_compiling():
        return F.linear(input, weight, bias)
    built = kernels()
    if (
        built is None
        or type(input) is not Tensor
        or input.dtype != torch.bfloat16
        or input.device.type != "cpu"
        or input.shape[-1] != weight.shape[1]
        or not 0 < input.numel() <= _MOST_ROWS * weight.shape[1]
        or not input.is_contiguous()
        or not _is_served(weight)
        or (bias is not None and (bias.dtype != torch.bfloat16 or not bias.is_contiguous()))
        or (torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad))
        or torch.is_autocast_enabled("cpu")
    ):
        return F.linear(input, weight, bias)
    N, K = weight.shape
    out = input.new_empty(*input.shape[:-1], N)
    built.linear(
        input.data_ptr(),
        weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        input.numel() // K,
        N,
        K,
        torch.get_num_threads(),
        out.data_ptr(),
    )
    return out
