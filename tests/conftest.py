"""Fresh memory is poisoned, so that reading past the end of what was written shows as NaN."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    # Read once, when triton is first imported; transformers does that.
    os.environ.setdefault("TRITON_INTERPRET", "1")

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    # Side by side, processes of many threads wait for each other.
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    # fill_uninitialized_memory writes NaN into every torch.empty, but only in deterministic mode.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def threads() -> Iterator[None]:
    """PyTorch's number of threads is what it was after a test that changes it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[(), ("-mno-avx512bf16",), ("-march=haswell",)], ids=["own", "no dot instructions", "AVX2"])
def exact(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """The CPU kernels as other processors build them; whether they are sure to hold all weights of values in fp32."""
    # Not above: it imports triton, whose library is made for its interpreter or for a chip when it is first imported.
    from madakv.native import build

    vectors = torch.backends.cpu.get_cpu_capability()
    if request.param and (platform.machine() != "x86_64" or not vectors.startswith("AVX")):
        pytest.skip("builds for x86-64 processors with AVX2")
    monkeypatch.setattr(build, "_FLAGS", (*build._FLAGS, *request.param))
    build.kernels.cache_clear()
    yield bool(request.param)
    build.kernels.cache_clear()


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct; a test that asks for it is skipped where it was not brought."""
    from madakv.errors import ConfigurationError
    from madakv.model_names import folder_of

    try:
        return folder_of("smollm2")
    except ConfigurationError as error:
        pytest.skip(str(error))
