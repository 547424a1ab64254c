"""Products of a few rows with a model's weights, at the speed at which the weights can be read."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from madakv.errors import ConfigurationError
from madakv.native.build import kernels
from madakv.native.plain import is_plain_call

_STEP = 32
MOST_ROWS = 8
"""Their sums fill the registers; for more rows the weights would be read twice."""
_STOCK = (nn.Linear.forward, F.linear)
"""What the kernel stands in for; whoever has put something else there wants that."""
_FORWARD, _STATE = "forward", "__getstate__"
_lock = threading.Lock()


@contextmanager
def fast_linears(model: nn.Module) -> Iterator[None]:
    """Inside the block, linear layers in bfloat16 on a CPU multiply up to 8 rows by a kernel of madakv's own.

    A step of decoding reads all weights once, and PyTorch's products of so few rows do that at a part of the speed of
    the memory (`docs/performance.md`). Sums are fp32 and rounded once, so logits differ from PyTorch's by rounding.
    Calls that the kernel cannot serve go to PyTorch: more rows, gradients, autocast, what is traced or transformed;
    and layers that it cannot: subclasses, quantised weights, layers that somebody has given another `forward`.

    Blocks may be nested, and entered by several threads; the last to leave restores the layers. What is copied or
    saved inside is the plain model.

    Args:
        model: any module; it need not be a transformers model, nor inside `madakv.evict`.

    Raises:
        ConfigurationError: no layer of the model can be served, or no kernel can be built here.
    """
    reason = unserved(model)
    if reason is not None:
        raise ConfigurationError(f"fast linears: {reason}")
    with _lock:
        entered = [_enter(layer) for layer in _layers(model)]
    try:
        yield
    finally:
        with _lock:
            for product in entered:
                product.leave()


def unserved(model: nn.Module) -> str | None:
    """Why `fast_linears` can do nothing for a model; None if it can."""
    if (nn.Linear.forward, F.linear) != _STOCK:
        return "something else has replaced PyTorch's linear layers; leave that first"
    if not _layers(model):
        found = [getattr(layer, "weight", None) for layer in model.modules() if isinstance(layer, nn.Linear)]
        first = "none" if not found or found[0] is None else f"{found[0].dtype} on {found[0].device.type}"
        has = f"the first has {first}" if found else "there are none"
        return (
            f"no plain linear layer of the model has bfloat16 weights on a CPU, of a multiple of {_STEP} inputs "
            f"({has}); load it in bfloat16, or go without"
        )
    return None if kernels() is not None else "the kernel cannot be built here; the log says why. Go without it"


class _Product(functools.partial[Tensor]):
    """What a layer calls instead of its own `forward`, for as long as a block is open."""

    blocks: int

    def leave(self) -> None:
        """One block fewer; whatever somebody else has put in its place meanwhile stays."""
        self.blocks -= 1
        layer = self.args[0]
        if not self.blocks:
            if layer.__dict__.get(_FORWARD) is self:
                del layer.__dict__[_FORWARD]
            del layer.__dict__[_STATE]


def _enter(layer: nn.Linear) -> _Product:
    product = layer.__dict__.get(_FORWARD)
    if not isinstance(product, _Product):
        product = _Product(_linear, layer)
        product.blocks = 0
        layer.__dict__[_FORWARD] = product
        # Pickle and copy ask the layer itself for its state.
        layer.__dict__[_STATE] = functools.partial(_plain_state, layer)
    product.blocks += 1
    return product


def _plain_state(layer: nn.Linear) -> dict[str, Any]:
    """What is saved of a layer: all but what stands in for its `forward`."""
    return {
        name: value
        for name, value in layer.__dict__.items()
        if name != _STATE and not (name == _FORWARD and isinstance(value, _Product))
    }


def _layers(model: nn.Module) -> list[nn.Linear]:
    """The layers that the kernel serves."""
    plain = [layer for layer in model.modules() if type(layer) is nn.Linear and _has_own_forward(layer)]
    return [layer for layer in plain if _is_served(getattr(layer, "weight", None), 2)]


def _has_own_forward(layer: nn.Linear) -> bool:
    return isinstance(layer.__dict__.get(_FORWARD), _Product | None)


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
