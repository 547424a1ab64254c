"""Products of a few rows with a model's weights, at the speed at which the weights can be read."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from madakv.attention.backend import VARIABLE
from madakv.native.build import kernels
from madakv.native.plain import is_plain_call

_STEP = 32
MOST_ROWS = 8
"""Their sums fill the registers; for more rows the weights would be read twice."""
_STOCK = (nn.Linear.forward, F.linear)
"""What the kernel stands in for; whoever has put something else there wants that."""


@contextmanager
def native_linears(model: nn.Module) -> Iterator[None]:
    """Inside the block, linear layers in bfloat16 on a CPU multiply up to 8 rows by a kernel of madakv's own.

    A step of decoding reads all weights once, and PyTorch's products of so few rows do that at a part of the speed of
    the memory (`docs/performance.md`). Sums are fp32 and rounded once. All else goes to PyTorch: other dtypes and
    devices, subclasses, quantised weights, gradients, autocast, what is traced or transformed; and everything under
    another backend (`madakv.attention.backend`), or where somebody has given a layer another `forward`.
    """
    ours = {layer: functools.partial(_linear, layer) for layer in _layers(model)}
    for layer, forward in ours.items():
        layer.__dict__["forward"] = forward
    try:
        yield
    finally:
        for layer, forward in ours.items():
            if layer.__dict__.get("forward") is forward:
                del layer.__dict__["forward"]


def _layers(model: nn.Module) -> list[nn.Linear]:
    """The layers that the kernel serves."""
    if os.environ.get(VARIABLE, "auto") not in ("auto", "native") or (nn.Linear.forward, F.linear) != _STOCK:
        return []
    plain = [layer for layer in model.modules() if type(layer) is nn.Linear and "forward" not in layer.__dict__]
    served = [layer for layer in plain if _is_served(getattr(layer, "weight", None), 2)]
    return served if served and kernels() is not None else []


def _is_served(weight: Tensor | None, dims: int) -> bool:
    """Whether the kernel can read a weight or a bias; those of quantised or distributed models are of other types."""
    return (
        type(weight) is nn.Parameter
        and weight.layout is torch.strided
        and weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and weight.dim() == dims
        and weight.is_contiguous()
        and (dims == 1 or weight.shape[1] % _STEP == 0)
    )


def _linear(layer: nn.Linear, input: Tensor) -> Tensor:
    """`nn.Linear.forward`: [..., in features] to [..., out features]."""
    weight, bias = layer.weight, layer.bias
    if not is_plain_call():
        return F.linear(input, weight, bias)
    built = kernels()
    if (
        built is None
        or not _is_served(weight, 2)
        or (bias is not None and not (_is_served(bias, 1) and bias.shape[0] == weight.shape[0]))
        or type(input) is not Tensor
        or input.dtype != torch.bfloat16
        or input.device.type != "cpu"
        or input.shape[-1] != weight.shape[1]
        or not 0 < input.numel() <= MOST_ROWS * weight.shape[1]
        or not input.is_contiguous()
        or (torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (input, weight, bias)))
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
