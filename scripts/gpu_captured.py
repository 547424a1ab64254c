"""Whether steps that are captured in CUDA graphs are right, wait for nothing, and what memory they take.

    python scripts/gpu_captured.py --out results/gpu

`small-llava`, which is in the checkout, answers documents of its suite inside `madakv.evict`, step by step and
with `cache_implementation="static"`, which transformers compiles on a GPU:

    same       both give the same tokens, with logits that agree, for several prompts and budgets
    captured   one compilation serves all of them, and all of a step was recorded
    waits      no step makes the host wait for the device
    memory     what is taken of the device, prompt after prompt: graphs are recorded anew for each

On a CPU nothing is captured, and only the first is checked.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import CompileConfig

import madakv
from madakv.bench.check import relative_rms
from madakv.evaluation.documents.presentation import ONE_SIZE
from madakv.evaluation.suites import suite
from madakv.hf.cache import RaggedCache
from madakv.hf.capture import with_step_mask
from madakv.loading import load
from madakv.prompts import model_inputs
from madakv.provenance import provenance, write_whole

BUDGETS = (0.5, 0.1)
TOKENS = 12
SETTLED = 4
"""Steps before all others are replays: tables, a warm-up, a recording, and a replay to be sure."""
MOST_PER_PROMPT = 1 << 18
"""Bytes that a further prompt may cost: more, and a service would run out of memory one day."""
TOLERANCE = 1e-4
"""Relative RMS of logits in fp32, over six layers whose sums are fused in another order."""


def answers(model: Any, inputs: Any, *, static: bool, how: CompileConfig) -> tuple[Tensor, Tensor]:
    """The tokens [1, N + n] of an answer of exactly `TOKENS`, and its logits [n, V]."""
    options = {"cache_implementation": "static", "compile_config": how} if static else {}
    out = model.generate(
        **inputs,
        min_new_tokens=TOKENS,
        max_new_tokens=TOKENS,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )
    return out.sequences, torch.cat(out.logits)


def compare(model: Any, prompts: list[Any], how: CompileConfig) -> dict[str, Any]:
    """Plain steps against captured ones."""
    worst, differing = 0.0, 0
    for inputs in prompts:
        for budget in BUDGETS:
            with madakv.evict(model, budget=budget, safeguard=0.2):
                ids, logits = answers(model, inputs, static=False, how=how)
                other_ids, other_logits = answers(model, inputs, static=True, how=how)
            differing += not torch.equal(ids, other_ids)
            error = relative_rms(other_logits, logits)
            # What is not a number is worst.
            worst = worst if error <= worst else error
    return {
        "ok": differing == 0 and worst <= TOLERANCE,
        "answers": len(prompts) * len(BUDGETS),
        "differing": differing,
        "relative_rms": worst,
    }


@contextmanager
def no_waiting() -> Iterator[None]:
    """An error wherever the host waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@torch.no_grad()
def steps_that_wait(model: Any, inputs: Any, how: CompileConfig) -> dict[str, Any]:
    """Read one token again and again, without what `generate` asks of it in between."""
    with madakv.evict(model, budget=BUDGETS[0], safeguard=0.2) as run:
        cache = RaggedCache(model.config, run.method)
        cache.reserve(SETTLED + TOKENS)
        model(**inputs, past_key_values=cache, logits_to_keep=1)
        step = model.get_compiled_call(how)
        token = inputs["input_ids"][:, -1:].clone()

        def read() -> None:
            step(**with_step_mask(model, {"input_ids": token, "past_key_values": cache}))

        for _ in range(SETTLED):
            read()
        torch.cuda.synchronize()
        try:
            with no_waiting():
                for _ in range(TOKENS):
                    read()
        except RuntimeError as problem:
            return {"ok": False, "problem": str(problem).splitlines()[0]}
    return {"ok": True, "steps": TOKENS}


def recorded() -> dict[str, Any]:
    """What torch.compile and inductor did so far. Parts that cannot be captured are skipped, or partitioned off."""
    inductor = counters["inductor"]
    found = {
        "graphs": counters["stats"]["unique_graphs"],
        "skips": inductor["cudagraph_skips"],
        "partitions": inductor["cudagraph_partitions"],
        "recordings": inductor["cudagraph_recorded_non_static_inputs"],
    }
    whole = found["graphs"] == 1 and not found["skips"] and not found["partitions"] and found["recordings"] > 0
    return {"ok": whole, **found}


def memory(model: Any, prompts: list[Any], how: CompileConfig, rounds: int) -> dict[str, Any]:
    """Bytes that are taken after each round of all prompts: of the allocator, and of the device, graphs included."""
    taken = []
    with madakv.evict(model, budget=BUDGETS[0], safeguard=0.2):
        for _ in range(rounds):
            for inputs in prompts:
                answers(model, inputs, static=True, how=how)
            free, whole = torch.cuda.mem_get_info()
            taken.append((torch.cuda.memory_reserved(), whole - free))
    settled, last = taken[1], taken[-1]
    answered = (rounds - 2) * len(prompts)
    reserved, device = ((after - before) / answered for before, after in zip(settled, last, strict=True))
    return {
        "ok": max(reserved, device) <= MOST_PER_PROMPT,
        "reserved_per_prompt": reserved,
        "device_per_prompt": device,
        "taken": taken,
    }


def main() -> int:
    """Check all, write as it goes; 1 if something is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--prompts", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=12, help="of all prompts, over which memory is watched")
    options = parser.parse_args()
    on_gpu = options.device == "cuda"
    model, processor = load("small-llava", device=options.device)
    how = CompileConfig(fullgraph=True)
    if not on_gpu:
        how._compile_all_devices = True  # type: ignore[assignment]
    # Of one kind, at 512, 1,024, 2,048 and 4,096 tokens in turn.
    samples = [sample for sample in suite("long")(options.prompts, 0, ONE_SIZE) if sample.dataset == "change"]
    prompts = [model_inputs(processor, sample.prompt, sample.pictures()).to(model.device) for sample in samples]
    report: dict[str, Any] = {
        "provenance": provenance(device=torch.cuda.get_device_name() if on_gpu else "cpu"),
        "tokens": [inputs["input_ids"].shape[1] for inputs in prompts],
    }
    path = options.out / "captured.json"
    options.out.mkdir(parents=True, exist_ok=True)
    counters.clear()
    checks = {"same": lambda: compare(model, prompts, how)}
    if on_gpu:
        checks["captured"] = recorded
        checks["waits"] = lambda: steps_that_wait(model, prompts[0], how)
        checks["memory"] = lambda: memory(model, prompts, how, options.rounds)
    for name, check in checks.items():
        try:
            report[name] = check()
        except Exception as problem:
            # Whatever it is, the other checks still have something to say.
            report[name] = {"ok": False, "problem": f"{type(problem).__name__}: {str(problem).splitlines()[:1]}"}
        print(name, {key: value for key, value in report[name].items() if key != "taken"}, flush=True)
        write_whole(path, report)
    print("written:", path)
    return 0 if all(report[name]["ok"] for name in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
