"""The backend of GPUs, without one: vLLM's kernels in Triton and ours in its interpreter, in vLLM's worker for CPUs.

What this shows is arithmetic and layout. How fast it is, and what compilers for GPUs make of it, it does not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from madakv.plan import KeepPlan
from tests.integrations.vllm.engines import IN_VLLM, Prompt, Said, ids_of
from tests.integrations.vllm.test_equality import check, expectations

pytestmark = IN_VLLM
METHOD, BUDGET, TOKENS = "snapkv", 0.2, 3


def test_kept_entries_and_tokens_are_those_of_transformers(
    folder: Path, prompts: list[Prompt], tmp_path: Path
) -> None:
    # The last one stays whole, so that the engine attends beside us.
    few = [ids_of(prompts[0]), ids_of(prompts[5]), ids_of(prompts[1])[:70]]
    want = expectations(folder, few[:2], [(METHOD, BUDGET)], tokens=TOKENS)[METHOD, BUDGET]
    want.tokens += expectations(folder, few[2:], [("", 1.0)], tokens=TOKENS)["", 1.0].tokens
    asked = {"folder": str(folder), "settings": {"budget": BUDGET, "method": METHOD}, "prompts": few, "chunk": 128}
    asked |= {"tokens": TOKENS, "extra": [None, None, {"madakv_budget": 1.0}]}
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    # Triton asks when it is imported.
    environment = os.environ | {"TRITON_INTERPRET": "1", "MADAKV_BACKEND": "triton"}
    script = Path(__file__).with_name("interpreted.py")
    subprocess.run([sys.executable, str(script), str(tmp_path)], env=environment, check=True, timeout=1500)
    told = torch.load(tmp_path / "said.pt")
    said = Said({prompt: [KeepPlan(*plan) for plan in plans] for prompt, plans in told["plans"].items()})
    said.tokens = told["tokens"]
    assert told["impl"] == "EvictingTritonImpl"
    assert told["strides"] == "LBNHC"
    check(said, want)
