"""An engine whose layers attend by the backend of GPUs, on a CPU: `test_gpu_backend.py` runs this, with a folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import triton
import triton.language as tl

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.integrations.vllm.engines import Engine, quietly


def kernels_that_run() -> None:
    """vLLM leaves Triton out on a CPU that it has no compiler for; and asks for a GPU's size, whatever it runs on."""
    import vllm.triton_utils as utils

    utils.triton, utils.tl = triton, tl
    torch.cuda.get_device_capability = lambda device=None: (8, 0)
    import vllm.v1.attention.backends.triton_attn  # noqa: F401


def main(folder: Path) -> None:
    asked = json.loads((folder / "asked.json").read_text())
    quietly()
    kernels_that_run()
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    from madakv.integrations.vllm import plugin

    plugin.BACKENDS[AttentionBackendEnum.CPU_ATTN] = plugin.BACKENDS[AttentionBackendEnum.TRITON_ATTN]
    engine = Engine(Path(asked["folder"]), asked["settings"], max_num_batched_tokens=asked["chunk"])
    layers = engine.core.model_executor.driver_worker.worker.model_runner.compilation_config.static_forward_context
    layer = next(iter(layers.values()))
    # Entries before heads, as on GPUs.
    order = "LBNHC" if layer.kv_cache.stride(2) > layer.kv_cache.stride(1) else "LBHNC"
    said = engine.says(asked["prompts"], asked["extra"], tokens=asked["tokens"])
    plans = {prompt: [(plan.positions, plan.counts) for plan in own] for prompt, own in said.plans.items()}
    torch.save(
        {"plans": plans, "tokens": said.tokens, "impl": type(layer.impl).__name__, "strides": order},
        folder / "said.pt",
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
