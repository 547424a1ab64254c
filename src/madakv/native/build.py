"""Building the kernels: once per machine, kept beside other programs' caches.

No package is needed for it, only a compiler: g++ 12 or later. Without one PyTorch's operations serve.
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
from typing import NamedTuple

import torch

_HERE = Path(__file__).parent
_SOURCES = ("attention.cpp", "linear.cpp", "most.cpp")
_COMPILERS = ("g++", "c++")
_FLAGS = ("-O3", "-march=native", "-std=gnu++17", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-fopenmp")
_SECONDS = 120

logger = logging.getLogger(__name__)


class Kernels(NamedTuple):
    """The functions of the library; their arguments are explained where they are defined, in `*.cpp`."""

    attend: Callable[..., None]
    attend_pages: Callable[..., None]
    linear: Callable[..., None]
    most: Callable[..., None]


@cache
def kernels() -> Kernels | None:
    """The kernels, built if they have to be; None where that is impossible, which is logged once."""
    try:
        library = ctypes.CDLL(str(_library()))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        logger.warning("kernels for cpu: PyTorch's operations, since none can be built: %s", error)
        return None
    pointer, size, number, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
    attend, linear, most = library.madakv_attend, library.madakv_linear, library.madakv_most
    attend_pages = library.madakv_attend_pages
    attend.argtypes = [
        *[pointer] * 4,
        *[number] * 2,
        *[pointer] * 2,
        *[size] * 2,
        pointer,
        real,
        number,
        *[pointer] * 3,
    ]
    attend_pages.argtypes = [*[pointer] * 3, number, *[real] * 2, pointer, number, pointer]
    linear.argtypes = [*[pointer] * 3, number, *[size] * 2, number, pointer]
    most.argtypes = [pointer, number, pointer]
    attend.restype = attend_pages.restype = linear.restype = most.restype = None
    return Kernels(attend=attend, attend_pages=attend_pages, linear=linear, most=most)


def _library() -> Path:
    """Path of the shared library for these sources, compiler, processor and PyTorch."""
    compiler = next((found for name in _COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        raise OSError(f"no C++ compiler found (looked for {', '.join(_COMPILERS)})")
    macros = _run(compiler, *_FLAGS, "-dM", "-E", "-x", "c++", os.devnull)
    texts = [path.read_bytes() for path in sorted(_HERE.glob("*.cpp")) + sorted(_HERE.glob("*.h"))]
    parts = (*texts, macros, repr(_FLAGS).encode(), torch.__version__.encode())
    name = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "madakv"
    library = folder / f"kernels-{name}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder) as scratch:
            objects, linked = [], str(Path(scratch) / "kernels.so")
            for source in _SOURCES:
                objects.append(str(Path(scratch) / source) + ".o")
                _run(compiler, *_FLAGS, "-c", str(_HERE / source), "-o", objects[-1])
            # Linked without OpenMP: the one that PyTorch has loaded serves, so that its threads are shared.
            _run(compiler, "-shared", *objects, "-o", linked)
            Path(linked).replace(library)
    return library


def _run(*command: str) -> bytes:
    try:
        return subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS).stdout
    except subprocess.CalledProcessError as error:
        raise OSError(f"{' '.join(command)}: {error.stderr.decode(errors='replace').strip()}") from error
