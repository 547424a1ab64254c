"""Which code attends to one new token: a kernel of madakv's own where one runs, else PyTorch's operations.

`MADAKV_BACKEND` asks for one. What is asked for and missing is an error, never a silent fallback:

    auto     triton on a GPU, native on a CPU, torch elsewhere; the default
    torch    PyTorch's operations
    native   madakv's kernel for CPUs, which a C++ compiler builds when it is first used; bfloat16, float16 and
             float32, heads of multiples of 8 up to 512, at most 64 query rows per KV head, no softcap: all else goes
             to PyTorch's operations
    triton   madakv's kernel for GPUs
    flash    the package flash-attn, from 2.6.0 on; bfloat16 or float16, heads of at most 256
    varlen   the copy of it that PyTorch ships; likewise, and no softcaps

Which calls are PyTorch's operations whatever is asked for, `decode.decode_attention` says. Pages of an engine
(`paged.paged_attention`) are read by native, triton or torch, softcaps included, and by no other.
"""

from __future__ import annotations

import logging
import os
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from madakv.errors import ConfigurationError

VARIABLE = "MADAKV_BACKEND"
BACKENDS = ("auto", "torch", "native", "triton", "flash", "varlen")
_LEAST_FLASH = (2, 6)

logger = logging.getLogger(__name__)


@cache
def chosen(device: str) -> str:
    """The backend for tensors on a kind of device, any of `BACKENDS` but `auto`; logged when it is first asked for.

    Raises:
        ConfigurationError: `MADAKV_BACKEND` names no backend, or one that cannot run here.
    """
    wanted = os.environ.get(VARIABLE, "auto")
    if wanted not in BACKENDS:
        raise ConfigurationError(f"{VARIABLE} must be one of {', '.join(BACKENDS)}; got {wanted!r}")
    if wanted == "auto":
        wanted = {"cuda": "triton", "cpu": "native"}.get(device, "torch")
        # A compiler is looked for once there is something to attend to: without one, the kernel says so by itself.
        wanted = wanted if wanted == "native" or missing(wanted, device) is None else "torch"
    elif (reason := missing(wanted, device)) is not None:
        raise ConfigurationError(f"{VARIABLE}={wanted}: {reason}")
    logger.info("decode attention on %s: %s", device, wanted)
    return wanted


def in_use(device: str) -> str:
    """What attends on a kind of device: `chosen`, but for a kernel that could not be built."""
    name = chosen(device)
    return "torch" if name == "native" and missing(name, device) is not None else name


def missing(backend: str, device: str) -> str | None:
    """What a backend lacks to run on a kind of device; None if it can run."""
    if backend == "torch":
        return None
    if backend == "native":
        if device != "cpu":
            return f"it needs a CPU; tensors are on {device!r}"
        from madakv.native.build import kernels

        return None if kernels() is not None else "it cannot be built here; the log says why"
    # Triton's interpreter needs no GPU.
    if device != "cuda" and not (backend == "triton" and os.environ.get("TRITON_INTERPRET")):
        return f"it needs a GPU; tensors are on {device!r}"
    if backend == "triton" and find_spec("triton") is None:
        return "the package triton is missing"
    return _flash_lacks() if backend == "flash" else None


def _flash_lacks() -> str | None:
    try:
        # The distribution's version: flash-attn-4 installs a package of the same name without this function.
        found = version("flash-attn")
    except PackageNotFoundError:
        return "the package flash-attn is missing"
    if tuple(int(part) for part in found.split(".")[:2]) < _LEAST_FLASH:
        return f"it needs flash-attn {'.'.join(map(str, _LEAST_FLASH))} or later; {found} is installed"
    return None
