"""Whether vLLM keeps of prompts what transformers does, and says the same, on the device that this vLLM is for.

    PYTHONPATH=src:. python scripts/vllm_equality.py --device cuda --out results/gpu-vllm/equality.json
    PYTHONPATH=src:. python scripts/vllm_equality.py --device cpu --prompts 2 --tokens 4 --out /tmp/equality.json

In fp32, all prompts at once and in chunks. The last row leaves the plug-in out of both, which says how far the two
agree anyway: on GPUs their sums are not the same to the last bit, so that an entry may change its rank. Exit code 1
where more differs than that explains.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from madakv.provenance import provenance, write_whole
from tests.integrations.vllm.conftest import random_prompts, save_tiny, text_prompts
from tests.integrations.vllm.engines import Said, agreement, engine, quietly, transformers_says

_LEAST_KEPT = 0.99
"""Of entries, both: less is more than rounding."""


def compared(said: Said, want: Said) -> dict[str, Any]:
    """How far two agree."""
    same, either = agreement(said, want) if said.plans else (0, 0)
    equal = [a == b for a, b in zip(said.tokens, want.tokens, strict=True)]
    first = [a[0] == b[0] for a, b in zip(said.tokens, want.tokens, strict=True)]
    return {
        "prompts": len(equal),
        "evicted": len(said.plans),
        "kept_by_both": same,
        "kept_by_any": either,
        "equal_answers": sum(equal),
        "equal_first_tokens": sum(first),
    }


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True, help="that transformers runs on, too")
    parser.add_argument("--model", help="a name of `madakv models`; else a tiny one of random weights")
    parser.add_argument("--methods", type=lambda text: text.split(","), default=["snapkv", "madakv"])
    parser.add_argument("--budget", type=float, default=0.2)
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--prompts", type=int, default=8, help="so many of them")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--graphs", action="store_true", help="compiled, with CUDA graphs between attention")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    quietly()
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    from transformers import AutoModelForCausalLM
    from vllm import __version__

    from madakv.model_names import folder_of

    about = provenance(command=" ".join(sys.argv), vllm=__version__, device=asked.device, dtype="float32")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(folder_of(asked.model)) if asked.model else save_tiny(Path(temporary))
        prompts = (text_prompts(folder) if asked.model else random_prompts())[: asked.prompts]
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().to(asked.device)
        model.generation_config.eos_token_id = None
        cases = [*((method, asked.budget) for method in asked.methods), ("", 1.0)]
        wanted = [transformers_says(model, prompts, method, budget, asked.tokens) for method, budget in cases]
        del model
        options: dict[str, Any] = {"max_num_batched_tokens": asked.chunk, "enforce_eager": not asked.graphs}
        if asked.device == "cuda":
            options["gpu_memory_utilization"] = 0.3
        for (method, budget), want in zip(cases, wanted, strict=True):
            settings = {"budget": budget, "method": method} if method else None
            with engine(folder, settings, **options) as ours:
                before = ours.free_blocks
                said = ours.says(prompts, tokens=asked.tokens)
                left = before - ours.free_blocks
            row = {"method": method or "none", "budget": budget, "graphs": asked.graphs} | compared(said, want)
            rows.append(row | {"blocks_left_behind": left})
            print(rows[-1], flush=True)
            write_whole(asked.out, {"about": about, "rows": rows})
    *evicted, plain = rows
    if any(
        row["kept_by_both"] < _LEAST_KEPT * row["kept_by_any"]
        or not row["evicted"]
        or row["equal_first_tokens"] < plain["equal_first_tokens"]
        or row["blocks_left_behind"]
        for row in evicted
    ):
        sys.exit(1)


if __name__ == "__main__":
    main()
