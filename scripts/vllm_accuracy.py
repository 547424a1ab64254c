"""Answers of a suite through vLLM beside those through transformers, on a CPU.

    PYTHONPATH=src:. python scripts/vllm_accuracy.py --model small-llava --suite long-1024 --documents 8 --out FILE
    PYTHONPATH=src:. python scripts/vllm_accuracy.py --model smollm2 --suite text-1k --documents 3 --out FILE

Runs in the environment of `make test-vllm`. With `--processes 2` each layer's heads are dealt out between two, which
decide by themselves. Second questions are left out: in vLLM they are prompts of their own.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import madakv
from madakv.bundled import NAMES
from madakv.evaluation.documents.presentation import presentation_for
from madakv.evaluation.samples import Sample, inputs_of
from madakv.evaluation.suites import suite
from madakv.methods.registry import from_text
from madakv.provenance import provenance, write_whole
from tests.integrations.vllm.engines import quietly

Answers = list[list[int]]


def through_transformers(model: Any, prompts: Sequence[Any], method: str, budget: float, most: int) -> Answers:
    """Greedy, one by one."""
    answers = []
    for inputs in tqdm(prompts, f"transformers, {budget:.0%}"):
        with madakv.evict(model, from_text(method, budget)):
            out = model.generate(**inputs, max_new_tokens=most, do_sample=False)
        answers.append(out[0, inputs["input_ids"].shape[1] :].tolist())
    return answers


def through_vllm(
    folder: Path, asked: Sequence[Any], budget: float, tokens: int, wanted: argparse.Namespace
) -> Answers:
    """Greedy, as many at once as fit; a prompt and its answer are at most so many tokens."""
    from vllm import LLM, SamplingParams

    sees = {"limit_mm_per_prompt": {"image": 200}, "skip_mm_profiling": True} if isinstance(asked[0], dict) else {}
    several = {"distributed_executor_backend": "mp"} if wanted.processes > 1 else {}
    llm = LLM(
        str(folder), dtype="float32", enforce_eager=True, block_size=32, max_model_len=tokens,
        max_num_seqs=8, additional_config={"madakv": {"budget": budget, "method": wanted.method}},
        tensor_parallel_size=wanted.processes, **several, **sees,
    )  # fmt: skip
    params = SamplingParams(temperature=0, max_tokens=wanted.max_new_tokens, skip_special_tokens=False)
    given = [one if isinstance(one, dict) else {"prompt_token_ids": one} for one in asked]
    answers = [list(out.outputs[0].token_ids) for out in llm.generate(given, params)]
    llm.llm_engine.engine_core.shutdown()
    return answers


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--suite", required=True)
    parser.add_argument("--documents", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", default="madakv")
    parser.add_argument(
        "--budgets", type=lambda text: [float(own) for own in text.split(",")], default=[1.0, 0.2, 0.1]
    )
    parser.add_argument("--processes", type=int, default=1, help="of vLLM's tensor parallelism")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--out", type=Path, required=True)
    wanted = parser.parse_args()
    quietly()
    wanted.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        rows = compared(wanted, Path(temporary))
    from vllm import __version__

    about = provenance(command=" ".join(sys.argv), vllm=__version__, threads=torch.get_num_threads(), dtype="float32")
    write_whole(wanted.out, {"about": about, "rows": rows})


def compared(wanted: argparse.Namespace, temporary: Path) -> list[dict[str, Any]]:
    """A row for each budget."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

    from madakv.model_names import folder_of
    from tests.integrations.vllm.seeing import published, seen

    sees = wanted.model in NAMES
    folder = published(wanted.model, temporary / "model") if sees else Path(folder_of(wanted.model))
    processor = (AutoProcessor if sees else AutoTokenizer).from_pretrained(folder)
    samples = [
        sample
        for sample in suite(wanted.suite)(wanted.documents, wanted.seed, presentation_for(processor))
        if sample.follow_up is None and sample.following is None
    ]
    prompts, asked = [], []
    for sample in samples:
        if sees:
            made = seen(processor, sample.prompt, sample.pictures())
            prompts.append(made.inputs)
            asked.append(made.asked)
        else:
            prompts.append(dict(inputs_of(processor, sample)[0]))
            asked.append(prompts[-1]["input_ids"][0].tolist())
    longest = max(inputs["input_ids"].shape[1] for inputs in prompts)
    kind = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    rows = []
    for budget in wanted.budgets:
        both = {
            "transformers": through_transformers(model, prompts, wanted.method, budget, wanted.max_new_tokens),
            "vllm": through_vllm(folder, asked, budget, longest + wanted.max_new_tokens, wanted),
        }
        texts = {name: [processor.decode(ids, skip_special_tokens=True) for ids in own] for name, own in both.items()}
        right = {name: [_worth(*one) for one in zip(samples, own, strict=True)] for name, own in texts.items()}
        equal = sum(a == b for a, b in zip(*texts.values(), strict=True))
        rows.append(
            {name: getattr(wanted, name) for name in ("model", "suite", "method", "processes")}
            | {"budget": budget, "questions": len(samples), "longest_prompt": longest, "equal_answers": equal}
            | {name: round(sum(own) / len(own), 4) for name, own in right.items()}
        )
        print(rows[-1], flush=True)
    return rows


def _worth(sample: Sample, answer: str) -> float:
    """The mean of what its scorers say."""
    scores = sample.judge(answer).scores
    return sum(scores.values()) / len(scores)


if __name__ == "__main__":
    main()
