"""Building the kernel: once per machine, kept beside other programs' caches.

No package is needed for it, only a compiler: g++ 12 or later. Without one PyTorch's operations attend.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

SOURCE = Path(__file__).with_name("decode.cpp")
_COMPILERS = ("c++", "g++")
_FLAGS = ("-O3", "-march=native", "-std=gnu++17", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-fopenmp")
_SECONDS = 120

logger = logging.getLogger(__name__)


@cache
def kernel() -> Callable[..., None] | None:
    """`madakv_decode` of `decode.cpp`, built if it has to be; None where that is impossible, which is logged once."""
    try:
        function = ctypes.CDLL(str(_library())).madakv_decode
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        logger.warning("decode attention on cpu: PyTorch's operations, since the kernel cannot be built: %s", error)
        return None
    pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    function.argtypes = [
        *[pointer] * 4,
        number,
        *[pointer] * 2,
        *[size] * 2,
        *[number] * 2,
        ctypes.c_float,
        number,
        *[pointer] * 2,
    ]
    function.restype = None
    return function


def _library() -> Path:
    """Path of the shared library for this source, compiler, processor and PyTorch."""
    compiler = next((found for name in _COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        raise OSError(f"no C++ compiler found (looked for {', '.join(_COMPILERS)})")
    macros = _run(compiler, *_FLAGS, "-dM", "-E", "-x", "c++", os.devnull)
    parts = (SOURCE.read_bytes(), macros, repr(_FLAGS).encode(), torch.__version__.encode())
    name = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "madakv"
    library = folder / f"decode-{name}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder) as scratch:
            compiled, linked = Path(scratch) / "decode.o", Path(scratch) / "decode.so"
            _run(compiler, *_FLAGS, "-c", str(SOURCE), "-o", str(compiled))
            # Linked without OpenMP: the one that PyTorch has loaded serves, so that its threads are shared.
            _run(compiler, "-shared", str(compiled), "-o", str(linked))
            linked.replace(library)
    return library


def _run(*command: str) -> bytes:
    try:
        return subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS).stdout
    except subprocess.CalledProcessError as error:
        raise OSError(f"{' '.join(command)}: {error.stderr.decode(errors='replace').strip()}") from error
