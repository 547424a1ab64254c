"""What this machine does at best, measured in the same run as what it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

import torch

from madakv.bench.roofline import Rates
from madakv.bench.timing import seconds

READ_BYTES = {"cpu": 1 << 30, "cuda": 4 << 30}
"""Size of the tensor that is read: several times any cache."""

MATRIX_SIDES = {"cpu": (4096, 1024, 1024), "cuda": (8192, 8192, 8192)}
"""M, K, N of the product."""

_REPEATS = 7


def reading(device: torch.device) -> Callable[[], float]:
    """One large read with all of torch's threads: each call returns its seconds per byte."""
    large = torch.ones(READ_BYTES[device.type] // 4, dtype=torch.float32, device=device)
    return lambda: seconds(large.sum, device) / (4 * large.numel())


def in_turn(rates: Rates, reads: Sequence[float]) -> Rates:
    """The rates with the bandwidth of reads that took turns with what is compared with them.

    Some machines read half as fast again once they have been busy for seconds.

    Args:
        rates: measured before.
        reads: seconds per byte.
    """
    return replace(rates, bandwidth=1 / median(reads))


def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Read bandwidth and matrix rate; of several tries the fastest, since a floor may only be too low.

    Args:
        device: cpu or cuda; on a CPU all of torch's threads take part.
        dtype: of the matrix product. On a CPU float32 is tried as well: one without instructions for a half of it
            multiplies faster in full, as kernels do there.
    """
    read_once = reading(device)
    read = min(read_once() for _ in range(_REPEATS))
    del read_once
    m, k, n = MATRIX_SIDES[device.type]
    dtypes = {dtype, torch.float32} if device.type == "cpu" else {dtype}
    product = min(_product(m, k, n, device, kind) for kind in dtypes)
    return Rates(bandwidth=1 / read, matrix=2.0 * m * k * n / product)


def _product(m: int, k: int, n: int, device: torch.device, dtype: torch.dtype) -> float:
    """Seconds of a matrix product."""
    a, b = torch.randn(m, k, device=device).to(dtype), torch.randn(k, n, device=device).to(dtype)
    # Into memory that is there: on a CPU the first touch of fresh pages can take as long as the product.
    out = torch.empty(m, n, dtype=dtype, device=device)
    return min(seconds(lambda: torch.mm(a, b, out=out), device) for _ in range(_REPEATS))
