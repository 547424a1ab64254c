"""Record what one checkout decides and answers, and compare another one with it: the guard of a refactoring.

    PYTHONPATH=old/src python scripts/freeze.py record --tests old --out old.pt
    PYTHONPATH=new/src python scripts/freeze.py record --tests old --out new.pt
    python scripts/freeze.py compare old.pt new.pt
    PYTHONPATH=new/src python scripts/freeze.py rows --results old/results --out /tmp/rows

Only what is public is called, so that the same script runs in either checkout: the one that PYTHONPATH names.
`--tests` names the checkout whose tests/ build the tiny models and prompts; both recordings take it from one place.

A case is named `family | method | mode`, or `scores | method | budget | kind of scores`. Kept positions, counts,
bytes and tokens have to be equal, logits to 1e-6 relative RMS at every step. What is refused is a result, too: by
the error's type and message. Where another behaviour is wanted, `compare --except 'gemma3 | * | static'` leaves cases
out, by name. `record --stride 5` runs every fifth case, and `compare --partial` what both have.

`rows` answers again what results/ has answers to, by `madakv eval`: documents of each suite, all methods and budgets
of the committed rows, every eighth sample unless `--shards 1` asks for all of them. It goes on where it was
interrupted.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import subprocess
import sys
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import CompileConfig
from transformers.cache_utils import DynamicCache

import madakv
from madakv.methods import from_text

TOLERANCE = 1e-6
STEPS = 6
BUDGET = 14
"""Entries per head and layer: no share is rounded."""

COMMON = ("madakv", "madakv-paper", "snapkv", "full")
"""Methods that every family is tried with."""
CLOSE = ("llama", "llava", "qwen2_5_vl", "internvl", "gemma3", "gpt_oss", "tiny llama", "tiny llava")
"""Families that every method is tried with."""
ECHOES = ("adakv", "h2o", "hcc", "lookm", "madakv", "madakv-paper", "meda", "mixkv", "mpa", "pyramidkv", "snapkv")
"""Methods with the option `echo`."""

OPTIONS = (
    "snapkv:window=question:kernel=1", "snapkv:window=question:context=64:echo=256:kernel=1",
    "adakv:window=question:context=64:echo=256:kernel=1", "adakv:draft=8:answer_weight=4.0:window=question:kernel=1",
    "mixkv:window=question:context=64:echo=256", "mixkv:draft=8:answer_weight=4.0:window=question", "snapkv:draft=8",
    "pyramidkv:steepness=5.0", "streaming_llm:sinks=2", "lookm:merging=mean", "random:seed=3",
    "madakv:compensation=none", "madakv:compensation=none:safeguard=1.0", "madakv:compensation=capped",
    "madakv:compensation=demand", "madakv:compensation=signal", "madakv:safeguard=0.0", "madakv:safeguard=0.2",
    "madakv:safeguard=0.7", "madakv:values=False", "madakv:text_pooling=5", "madakv:echo=0:text_pooling=5",
    "madakv:protected=0.0", "madakv:protected=1.0", "madakv:context=0", "madakv:context=256", "madakv:echo=0",
    "madakv:context=0:echo=0", "madakv:echo=256", "madakv:echo_weight=2.0", "madakv:groups=max", "madakv:proxies=4",
    "madakv:proxies=32", "madakv:max_proxies=4", "madakv:lookahead=2", "madakv:draft=8:answer_weight=1.0",
    "madakv:draft=8:compensation=none:safeguard=1.0", "madakv-paper:theta=0.5", "madakv-paper:compensation=demand",
    "madakv-paper:compensation=signal", "madakv-paper:draft=8", "madakv-paper:protected=0.0", "hcc:theta=0.5",
    "mpa:protected=0.0",
)  # fmt: skip
"""Methods with options, as in the Makefile's tables."""

Result = dict[str, Any]


# What is recorded of one call


def outcome(call: Callable[[], Result]) -> Result:
    """What a call returns, or the error that it ends with."""
    try:
        return call()
    except Exception as error:
        return {"error": type(error).__name__, "message": " ".join(str(error).split())}


def plan_of(plan: madakv.KeepPlan) -> tuple[Tensor, Tensor]:
    """Positions and counts."""
    return plan.positions.to(torch.int32), plan.counts.to(torch.int32)


def kept_of(run: madakv.Run) -> Result:
    """What the last prompt's eviction kept, and what it weighs."""
    kept = run.last
    if kept is None:
        return {"plans": None}
    return {
        "plans": [plan_of(plan) for plan in kept.plans],
        "layers": kept.layers,
        "modality": kept.modality.to(torch.int8),
        "bytes": (kept.kv_bytes, kept.kv_bytes_full, kept.other_bytes),
    }


def digest(model: torch.nn.Module) -> str:
    """Of all weights."""
    found = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(weight.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


# Modes: how a prompt is read and gone on with


@dataclass(frozen=True)
class Subject:
    """A model and what to ask it."""

    model: Any
    prompt: Callable[[int], dict[str, Tensor]]
    batch: Callable[[list[dict[str, Tensor]]], dict[str, Tensor]]


Mode = Callable[[Subject], Result]


def generated(model: Any, inputs: dict[str, Tensor], steps: int = STEPS, **options: Any) -> Any:
    """Of `generate`, with logits."""
    wanted = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True} | options
    return model.generate(**inputs, max_new_tokens=steps, **wanted)


def answer(out: Any) -> Result:
    """Tokens and logits of a generation."""
    return {"ids": out.sequences, "logits": [step.float().clone() for step in out.logits or ()]}


def by_generate(**options: Any) -> Mode:
    """One row."""
    return lambda subject: answer(generated(subject.model, subject.prompt(0), **options))


def padded(*seeds: int, **options: Any) -> Mode:
    """Rows of unequal lengths."""
    return lambda subject: answer(
        generated(subject.model, subject.batch([subject.prompt(seed) for seed in seeds]), **options)
    )


def turns(first: dict[str, Any], second: dict[str, Any], *seeds: int) -> Mode:
    """Two calls on one cache, with options of their own."""

    def run(subject: Subject) -> Result:
        prompt = subject.batch([subject.prompt(seed) for seed in seeds or (0,)])
        begun = generated(subject.model, prompt, steps=4, **first)
        ids = torch.cat([begun.sequences, torch.randint(5, 80, (len(begun.sequences), 9))], 1)
        inputs = {"input_ids": ids}
        for kind, later in (("attention_mask", 1), ("token_type_ids", 0), ("mm_token_type_ids", 0)):
            if kind in prompt:
                longer = (0, ids.shape[1] - prompt[kind].shape[1])
                inputs[kind] = torch.nn.functional.pad(prompt[kind], longer, value=later)
        ended = answer(generated(subject.model, inputs, past_key_values=begun.past_key_values, **second))
        return {"ids": ended["ids"], "logits": answer(begun)["logits"] + ended["logits"]}

    return run


def by_forward(*seeds: int, masked: bool) -> Mode:
    """A loop of one's own, in which the second step reads several tokens."""

    @torch.no_grad()
    def run(subject: Subject) -> Result:
        inputs, logits = subject.batch([subject.prompt(seed) for seed in seeds]), []
        mask = inputs["attention_mask"]
        out = subject.model(**inputs, use_cache=True)
        for width in (1, 3, 1, 1):
            logits.append(out.logits[:, -1].float().clone())
            new = torch.randint(5, 80, (len(mask), width))
            mask = torch.nn.functional.pad(mask, (0, width), value=1)
            seen = {"attention_mask": mask} if masked else {}
            out = subject.model(input_ids=new, past_key_values=out.past_key_values, use_cache=True, **seen)
        return {"ids": torch.stack(logits).argmax(-1), "logits": [*logits, out.logits.float().flatten(0, 1)]}

    return run


def compiled(subject: Subject) -> Result:
    """Steps that are traced whole, and then run as they are."""
    torch._dynamo.reset()
    config = CompileConfig(backend="eager", fullgraph=True, mode=None)  # type: ignore[arg-type]
    config._compile_all_devices = True  # type: ignore[assignment]
    try:
        return by_generate(cache_implementation="static", compile_config=config)(subject)
    finally:
        torch._dynamo.reset()


STATIC = {"cache_implementation": "static"}
QUIET = {"output_logits": False}
"""A draft is a call without logits; those of the turn after it tell."""
EXACT: dict[str, Any] = {"budget": BUDGET}

MODES: dict[str, tuple[dict[str, Any], Mode]] = {
    "plain": (EXACT, by_generate()),
    "share": ({"budget": 0.3}, by_generate()),
    "draft": ({**EXACT, "draft": 3}, turns(QUIET, {})),
    "lookahead": ({**EXACT, "lookahead": 3}, by_generate()),
    "echo": ({**EXACT, "echo": 8}, by_generate()),
    "static": (EXACT, by_generate(**STATIC)),
    "beams": (EXACT, by_generate(num_beams=3)),
    "padded": (EXACT, padded(0, 1)),
    "turn": (EXACT, turns({}, {})),
}
"""For every family of COMMON methods, and every method of CLOSE families."""

MORE: dict[str, tuple[dict[str, Any], Mode]] = {
    "loop": (EXACT, by_forward(0, masked=False)),
    "forward": (EXACT, by_forward(0, 2, masked=True)),
    "tiny budget": ({"budget": 0.02}, by_generate()),
    "whole budget": ({"budget": 1.0}, padded(0, 1)),
    "share, padded": ({"budget": 0.2}, padded(2, 0, 1)),
    "draft, logits": ({**EXACT, "draft": 3}, by_generate()),
    "draft, share": ({"budget": 0.3, "draft": 3}, turns(QUIET, {})),
    "draft, padded": ({**EXACT, "draft": 3}, turns(QUIET, {}, 0, 1)),
    "draft, beams": ({**EXACT, "draft": 3}, turns({**QUIET, "num_beams": 2}, {})),
    "draft, static": ({**EXACT, "draft": 3}, turns({**QUIET, **STATIC}, STATIC)),
    "draft beyond the answer": ({**EXACT, "draft": 20}, turns(QUIET, {})),
    "lookahead, padded": ({**EXACT, "lookahead": 3}, padded(0, 1)),
    "lookahead, beams": ({**EXACT, "lookahead": 3}, by_generate(num_beams=2)),
    "lookahead, static": ({**EXACT, "lookahead": 3}, by_generate(**STATIC)),
    "lookahead, turn": ({**EXACT, "lookahead": 3}, turns({}, {})),
    "lookahead beyond the answer": ({**EXACT, "lookahead": 20}, turns({}, {})),
    "echo, padded": ({**EXACT, "echo": 8}, padded(0, 1)),
    "echo, draft": ({**EXACT, "echo": 8, "draft": 3}, turns(QUIET, {}, 0, 1)),
    "echo, lookahead": ({**EXACT, "echo": 8, "lookahead": 3}, padded(0, 1)),
    "padded, turn": (EXACT, turns({}, {}, 0, 1)),
    "echo, turn": ({**EXACT, "echo": 8}, turns({}, {})),
    "static, padded": (EXACT, padded(0, 1, **STATIC)),
    "static, turn": (EXACT, turns({}, STATIC)),
    "static, static turn": (EXACT, turns(STATIC, STATIC)),
    "static, growing turn": (EXACT, turns(STATIC, {})),
    "beams, padded": (EXACT, padded(0, 1, num_beams=2)),
    "returned": (EXACT, padded(0, 1, num_beams=3, num_return_sequences=2)),
    "sampled": (EXACT, by_generate(do_sample=True, top_k=20)),
}
"""For CLOSE families of COMMON methods and those that merge."""

REFUSED: dict[str, dict[str, Any]] = {
    "penalty_alpha": {"penalty_alpha": 0.6, "top_k": 4},
    "prompt_lookup": {"prompt_lookup_num_tokens": 3},
    "no cache": {"use_cache": False},
    "attentions": {"output_attentions": True},
    "quantized": {"cache_implementation": "quantized"},
    "static beams": {"num_beams": 2, **STATIC},
    "guidance": {"guidance_scale": 1.5},
    "chunks": {"prefill_chunk_size": 8},
    "dola": {"dola_layers": "high"},
}
METHODS_REFUSED = (
    "madakv:budget=0", "madakv:budget=1.5", "madakv:budget=-1", "madakv:budget='x'", "madakvv", "madakv:thetaa=1",
    "madakv:theta=2.0", "madakv:compensation=x", "madakv:draft=2:lookahead=2", "madakv:safeguard=2", "madakv:echo=-1",
    "madakv:draft", "snapkv:window=0", "snapkv:kernel=2", "full:budget=0.5", "streaming_llm:sinks=-1",
    "madakv:answer_weight=0", "madakv:groups=x", "madakv:proxies=0", "random:seed=-1",
)  # fmt: skip


def read(subject: Subject, method: str, options: dict[str, Any], mode: Mode) -> Result:
    """One prompt, or what follows it, under eviction."""
    options = {**options, "budget": None} if method == "full" else options
    with madakv.evict(subject.model, method, **options) as run:
        answered = mode(subject)
    return answered | kept_of(run)


def subjects(tests: Path) -> dict[str, Callable[[], Subject]]:
    """Tiny models by name, those that eviction does not fit included; built when they are asked for."""
    sys.path.insert(0, str(tests))
    from tests import tiny
    from tests.families import zoo

    def family(one: Any) -> Callable[[], Subject]:
        return lambda: Subject(one.model(), one.prompt, zoo.left_padded)

    def small(make: Callable[[], Any], prompt: Callable[[], dict[str, Tensor]]) -> Callable[[], Subject]:
        def seeded(seed: int) -> dict[str, Tensor]:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                return prompt()

        return lambda: Subject(make(), seeded, zoo.left_padded)

    def row() -> dict[str, Tensor]:
        ids, mask = tiny.ids(int(torch.randint(40, 60, ())))
        return {"input_ids": ids, "attention_mask": mask}

    def document() -> dict[str, Tensor]:
        return tiny.document(text=int(torch.randint(8, 14, ())))

    found = {name: family(one) for name, one in {**zoo.FAMILIES, **zoo.UNSUPPORTED}.items()}
    return found | {"tiny llama": small(tiny.llama, row), "tiny llava": small(tiny.llava, document)}


def family_cases(name: str, make: Callable[[], Subject]) -> Iterator[tuple[str, Callable[[], Result]]]:
    """Names and calls of everything that is tried with one model."""
    for method in madakv.list_methods() if name in CLOSE else COMMON:
        modes = dict(MODES)
        if name in CLOSE and method in (*COMMON, "lookm", "meda"):
            modes |= MORE
        for mode, (options, run) in modes.items():
            if "echo" not in options or method in ECHOES:
                yield f"{name} | {method} | {mode}", lambda m=method, o=options, r=run: read(make(), m, o, r)
    if name in ("llama", "llava", "qwen2_5_vl"):
        for method in ("madakv", "snapkv"):
            yield f"{name} | {method} | compiled", lambda m=method: read(make(), m, EXACT, compiled)
    if name in ("llama", "llava", "gemma3"):
        for option, options in REFUSED.items():
            yield f"{name} | madakv | {option}", lambda o=options: read(make(), "madakv", EXACT, by_generate(**o))
        foreign = by_generate(past_key_values=DynamicCache())
        yield f"{name} | madakv | foreign cache", lambda: read(make(), "madakv", EXACT, foreign)
        yield (
            f"{name} | madakv | nested",
            lambda: read(make(), "madakv", EXACT, lambda inner: read(inner, "snapkv", EXACT, by_generate())),
        )


# Scores that are made up


def made_up(kind: str) -> tuple[list[Tensor], Tensor]:
    """psi of six layers, [3, 4, N], and modality [3, N]: rows of other make-up, two of them padded."""
    N = 7 if kind == "short" else 61
    modality = torch.zeros(3, N, dtype=torch.int64)
    if kind == "short":
        modality[0, 2:4], modality[1, :3] = 1, -1
    else:
        modality[0, 8:24], modality[0, 30:45] = 1, 2
        modality[1, 15:35], modality[1, 40:52], modality[1, :9] = 1, 3, -1
        modality[2, :20] = -1
    layers = [torch.rand(3, 4, N) ** 6 * (layer + 1) for layer in range(6)]
    if kind == "ties":
        layers = [(psi * 4).round() / 4 for psi in layers]
    if kind == "zeros":
        layers = [psi * (torch.rand_like(psi) < 0.2) for psi in layers]
    # As attention has it: none to what is padding.
    return [psi * (modality >= 0)[:, None] for psi in layers], modality


def score_cases() -> Iterator[tuple[str, Callable[[], Result]]]:
    """Names and calls of every method on made-up scores."""

    def decide(text: str, budget: float | int | None, kind: str) -> Result:
        psi, modality = made_up(kind)
        plans = madakv.allocate(psi, modality, from_text(text, budget=budget))
        return {"plans": [plan_of(plan) for plan in plans]}

    for text in (*madakv.list_methods(), *OPTIONS):
        for budget in (0.05, 0.3, 1.0, 2, 11) if text != "full" else (None,):
            for kind in ("peaked", "ties", "zeros", "short"):
                name = f"scores | {text} | {budget} | {kind}"
                yield name, lambda t=text, b=budget, k=kind: decide(t, b, k)
    for text in METHODS_REFUSED:
        yield f"scores | {text} | | refused", lambda t=text: decide(t, None, "peaked")


# Recording


def record(tests: Path, out: Path, only: str, stride: int) -> None:
    """Run every case whose name matches `only`, or one of `stride` such, and write what came."""
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    begun = time.perf_counter()
    cases: dict[str, Result] = {}
    weights: dict[str, str] = {}

    def run(found: Iterator[tuple[str, Callable[[], Result]]]) -> int:
        before = len(cases)
        for name, call in found:
            seed = zlib.crc32(name.encode())
            if fnmatch(name, only) and seed % stride == 0:
                torch.manual_seed(seed)
                cases[name] = outcome(call)
        return len(cases) - before

    run(score_cases())
    print(f"scores: {len(cases)} cases, {time.perf_counter() - begun:.0f} s", file=sys.stderr)
    for name, build in subjects(tests).items():
        # Whoever is the first to ask for a model draws no less and no more than the others.
        make = cache(torch.random.fork_rng()(build))
        if run(family_cases(name, make)):
            weights[name] = digest(make().model)
            print(f"{name}: {len(cases)} cases, {time.perf_counter() - begun:.0f} s", file=sys.stderr)
    about = {"madakv": madakv.__file__, "torch": str(torch.__version__), "transformers": transformers.__version__}
    torch.save({"about": about, "weights": weights, "cases": cases}, out)
    refused = sum("error" in one for one in cases.values())
    print(f"{len(cases)} cases, {refused} of them refused, of {about} in {out}")


# Comparing


def relative(new: Tensor, old: Tensor) -> float:
    """RMS of what differs over that of the old one; infinite if anything else than numbers differs."""
    if new.shape != old.shape:
        return float("inf")
    finite = old.isfinite()
    if not torch.equal(finite, new.isfinite()) or not torch.equal(old[~finite], new[~finite]):
        return float("inf")
    one, other = new[finite].double(), old[finite].double()
    return float((one - other).norm() / other.norm().clamp_min(1e-30))


def same(one: Any, other: Any) -> bool:
    """Whether nested tensors and values are equal."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def logits_error(new: Result, old: Result) -> float:
    """Of the worst step."""
    steps = new.get("logits", []), old.get("logits", [])
    if len(steps[0]) != len(steps[1]):
        return float("inf")
    return max((relative(a, b) for a, b in zip(*steps, strict=True)), default=0.0)


def differences(new: Result, old: Result, error: float) -> list[str]:
    """In what two results of one case differ."""
    if "error" in new or "error" in old:
        if new.get("error") != old.get("error"):
            return [f"errors ({old.get('error', 'answered')} -> {new.get('error', 'answered')})"]
        return [] if new["message"] == old["message"] else ["messages"]
    found = ["plans"] if not same((new["plans"], new.get("layers")), (old["plans"], old.get("layers"))) else []
    found += [name for name in ("ids", "modality", "bytes") if not same(new.get(name), old.get(name))]
    return found + (["logits"] if error > TOLERANCE else [])


def compare(old_file: Path, new_file: Path, *, excepted: list[str], partial: bool, shown: int) -> int:
    """Print in what two recordings differ; 1 if they do, or if the new one lacks cases and is not `partial`."""
    old, new = (torch.load(file, weights_only=True) for file in (old_file, new_file))
    was, now = old["cases"], new["cases"]
    print(f"old: {len(was)} cases of {old['about']}\nnew: {len(now)} cases of {new['about']}")
    built = [
        name for name in old["weights"] if new["weights"].get(name, old["weights"][name]) != old["weights"][name]
    ]
    left_out = {name for name in was if any(fnmatch(name, pattern) for pattern in excepted)}
    missing = [name for name in was if name not in now and name not in left_out]
    both = [name for name in was if name in now and name not in left_out]
    errors = {name: logits_error(now[name], was[name]) for name in both if "logits" in was[name]}
    found = {name: kinds for name in both if (kinds := differences(now[name], was[name], errors.get(name, 0.0)))}
    planned = [name for name in both if was[name].get("plans") is not None]
    answered = [name for name in both if "logits" in was[name] and "logits" in now[name]]
    worst = max(answered, key=errors.__getitem__, default="")
    counted = Counter(kind.split(" ")[0] for kinds in found.values() for kind in kinds)
    identical = sum("plans" not in found.get(name, []) and "error" not in now[name] for name in planned)
    print(f"plans: {identical} of {len(planned)} identical")
    print(f"logits: {len(answered)} answers; worst relative error {errors.get(worst, 0.0):.2e} ({worst})")
    print(f"ids: {counted['ids']} differ; bytes: {counted['bytes']}; modality: {counted['modality']}")
    refused = sum("error" in was[name] for name in both)
    print(
        f"refused: {refused} in the old one; {counted['errors']} other errors, {counted['messages']} other messages"
    )
    print(f"missing: {len(missing)}; only in the new one: {len(now.keys() - was.keys())}; excepted: {len(left_out)}")
    for name in built:
        print(f"  other weights: {name}")
    for name in [] if partial else missing[:shown]:
        print(f"  missing: {name}")
    for name, kinds in list(found.items())[:shown]:
        print(f"  {name}: {', '.join(kinds)}" + (f" {errors[name]:.1e}" if "logits" in kinds else ""))
        if kinds == ["messages"]:
            print(f"    old: {was[name]['message']}\n    new: {now[name]['message']}")
        elif kinds[0].startswith("errors"):
            print(f"    {now[name].get('message') or was[name].get('message')}")
    if len(found) > shown:
        print(f"  ... and {len(found) - shown} more (--show)")
    failed = bool(found or built or (missing and not partial))
    print("DIFFERENT" if failed else "the same")
    return int(failed)


# Committed rows


def rows_in(folder: Path) -> list[dict[str, Any]]:
    """Rows of a folder of results, compressed or not."""
    found = []
    for path in sorted(folder.glob("rows*.jsonl*")):
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            found += [json.loads(line) for line in file if line.strip()]
    return found


def again(model: str, kind: str, *, results: Path, out: Path, documents: int, shards: int, shown: int) -> int:
    """Answer a folder's samples once more; how many rows came out otherwise."""
    committed = rows_in(results / model / kind)
    labels = list(dict.fromkeys(row["label"] for row in committed))
    budgets = sorted({row["budget"] for row in committed if row["label"] != "full"}, reverse=True)
    options = {
        "--model": model, "--suite": "long-512", "--methods": ",".join(labels), "--samples": str(documents),
        "--budgets": ",".join(map(str, budgets)), "--shard": f"1/{shards}", "--out": str(out / model / kind),
    }  # fmt: skip
    begun = time.perf_counter()
    command = [sys.executable, "-m", "madakv", "eval", *(part for pair in options.items() for part in pair)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    # An option may have another name by now.
    named = {from_text(label).label: label for label in labels}
    got = {_key(row, named[row["label"]]): row for row in rows_in(out / model / kind)}
    wanted = {_key(row, row["label"]): row for row in committed}
    common = [key for key in got if key in wanted]
    lost = len(got) - len(common)
    answers = [key for key in common if got[key]["answer"] != wanted[key]["answer"]]
    shares = [key for key in common if got[key]["kept_share"] != wanted[key]["kept_share"]]
    errors = [key for key in common if got[key]["error"] is not None]
    print(
        f"{model}/{kind}: {len(common)} rows of {len({key[-1] for key in common})} documents, "
        f"{len({key[:2] for key in common})} methods and budgets; other answers {len(answers)}, other kept shares "
        f"{len(shares)}, failed {len(errors)}, without a committed row {lost}; {time.perf_counter() - begun:.0f} s",
        flush=True,
    )
    for key in answers[:shown]:
        print(f"  {key}: {wanted[key]['answer']!r} -> {got[key]['answer']!r}")
    for key in shares[:shown]:
        print(f"  {key}: kept {wanted[key]['kept_share']} -> {got[key]['kept_share']}")
    return len({*answers, *shares, *errors}) + lost + (not common)


def _key(row: dict[str, Any], label: str) -> tuple[Any, ...]:
    return label, row["budget"], row["dataset"], row["sample"]


def main() -> int:
    """Run the command; 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    here = Path(__file__).resolve().parents[1]
    one = commands.add_parser("record", help="run every case and write what came")
    one.add_argument("--out", type=Path, required=True, help="a file")
    one.add_argument("--tests", type=Path, default=here, help="the checkout whose tests/ build the models")
    one.add_argument("--only", default="*", help="a pattern of case names, such as 'llava | *'")
    one.add_argument("--stride", type=int, default=1, help="run one of so many cases (1)")
    two = commands.add_parser("compare", help="tell two recordings apart")
    two.add_argument("old", type=Path)
    two.add_argument("new", type=Path)
    two.add_argument("--except", dest="excepted", action="append", default=[], help="a pattern of case names")
    two.add_argument("--partial", action="store_true", help="the new one need not have every case")
    two.add_argument("--show", type=int, default=40, help="differing cases to name (40)")
    three = commands.add_parser("rows", help="answer again what committed rows answer")
    three.add_argument("--out", type=Path, required=True, help="a folder, to go on with or a new one")
    three.add_argument("--results", type=Path, default=here / "results", help="what to compare with")
    three.add_argument("--models", default="small-llava,small-qwen2.5-vl")
    three.add_argument("--kinds", default="published,draft,helped")
    three.add_argument("--documents", type=int, default=12)
    three.add_argument("--shards", type=int, default=8, help="every so many samples one is answered (8); 1: all")
    three.add_argument("--show", type=int, default=10, help="differing rows to name of each folder (10)")
    given = parser.parse_args()
    if given.command == "record":
        record(given.tests.resolve(), given.out, given.only, given.stride)
        return 0
    if given.command == "compare":
        return compare(given.old, given.new, excepted=given.excepted, partial=given.partial, shown=given.show)
    differing = sum(
        again(
            model, kind, results=given.results, out=given.out, documents=given.documents, shards=given.shards,
            shown=given.show,
        )
        for model in given.models.split(",")
        for kind in given.kinds.split(",")
    )  # fmt: skip
    print(f"{differing} rows differ")
    return int(differing > 0)


if __name__ == "__main__":
    raise SystemExit(main())
