"""How fast the decode kernels read memory on a GPU, against a plain copy and against dense attention.

    OUT=results/gpu scripts/gpu_bench.sh

First the kernels' tests run on the chip. Then every backend is compared with float64 at every shape before it is
timed there: one that is wrong gets no time. Every time is that of one layer's decode step, taken over replays of a
CUDA graph of many layers with memory of their own, so that no layer finds its entries in the chip's cache.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from madakv.attention import ragged_attention
from madakv.attention.triton import DecodeSchedule, Tuning, ragged_decode
from madakv.attention.varlen import KERNELS, varlen_decode
from madakv.backend import missing
from madakv.bench.check import TOLERANCE, relative_rms
from madakv.cache import RaggedEntries, Tail
from madakv.plan import KeepPlan
from madakv.provenance import provenance, write_whole

ROOT = Path(__file__).parent.parent
DEVICE, DTYPE = "cuda", torch.bfloat16
LAYERS_BYTES = 1 << 28
"""Memory that the layers of one graph take together at least, several times the chip's cache."""
MOST_LAYERS = 256
TAIL, CAPACITY = 128, 512

Step = Callable[[], Tensor]


@dataclass(frozen=True)
class Case:
    """A layer's decode step.

    Attributes:
        model: whose heads: H of keys, each with G queries of dimension D.
        context: prompt entries per head of the full cache.
        kept: share of them that is kept.
        batch: rows.
        spread: longest head over shortest, with evenly spaced lengths between.
    """

    model: str
    H: int
    G: int
    D: int
    context: int
    kept: float
    batch: int
    spread: int

    def lengths(self) -> list[int]:
        """Kept entries of every row and head, of which the mean is the kept share."""
        heads = self.batch * self.H
        steps = [1 + (self.spread - 1) * i / (heads - 1) for i in range(heads)]
        mean = sum(steps) / heads
        # Long and short heads in a fixed disorder, as eviction leaves them.
        order = [i * 37 % heads for i in range(heads)] if heads % 37 else list(range(heads))
        return [max(1, min(self.context, round(self.context * self.kept * steps[i] / mean))) for i in order]


MODELS = {"llava-1.5-7b": (32, 1, 128), "qwen2.5-vl-7b": (4, 7, 128)}
CASES = [
    Case(model, *MODELS[model], context, kept, batch, spread)
    for model, context, batch, kept, spread in itertools.product(
        MODELS, (3328, 32768), (1, 8), (1.0, 0.2, 0.05), (1, 10)
    )
    if kept < 1 or spread == 1
]
SWEPT = [
    case
    for case in CASES
    if (case.kept, case.spread) == (0.2, 10) and (case.model, case.context, case.batch) != ("llava-1.5-7b", 3328, 8)
]


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer's memory, and the token that it decodes."""

    query: Tensor
    key: Tensor
    value: Tensor
    entries: RaggedEntries
    tail_keys: Tensor
    tail_values: Tensor

    def elsewhere(self) -> Layer:
        """The same in other memory."""
        return replace(
            self,
            entries=self.entries.replaced(self.entries.keys.clone(), self.entries.values.clone()),
            tail_keys=self.tail_keys.clone(),
            tail_values=self.tail_values.clone(),
        )

    def tail(self) -> Tail:
        """The tail with the new token, as the library's plain path keeps it."""
        tail = Tail()
        for states in ((self.tail_keys[:, :, :TAIL], self.tail_values[:, :, :TAIL]), (self.key, self.value)):
            tail.append(*states, 1 << 14)
        return tail

    @property
    def nbytes(self) -> int:
        """Bytes that a step has to read."""
        B, H, _, D = self.tail_keys.shape
        return self.entries.nbytes + B * H * (TAIL + 1) * 2 * D * self.tail_keys.element_size()


def make_layer(case: Case) -> Layer:
    """Random entries, a tail of random tokens with NaN behind them, and the next token."""
    B, H, D = case.batch, case.H, case.D
    counts = torch.tensor(case.lengths(), device=DEVICE).view(B, H)
    keys, values = (torch.randn(B, H, case.context, D, dtype=DTYPE, device=DEVICE) for _ in range(2))
    plan = KeepPlan.from_mask(torch.arange(case.context, device=DEVICE) < counts[..., None])
    entries = RaggedEntries.gather(keys, values, plan)
    del keys, values
    tails = [torch.full((B, H, CAPACITY, D), float("nan"), dtype=DTYPE, device=DEVICE) for _ in range(2)]
    for tail in tails:
        tail[:, :, :TAIL].normal_()
    new = [torch.randn(B, heads, 1, D, dtype=DTYPE, device=DEVICE) for heads in (H * case.G, H, H)]
    return Layer(*new, entries, *tails)


def wanted(layer: Layer, scaling: float) -> Tensor:
    """What the step returns, head by head in float64."""
    B, H = layer.key.shape[:2]
    tail = layer.tail()
    out = torch.empty(layer.query.shape, dtype=torch.float64, device=DEVICE)
    lengths = layer.entries.lengths
    pieces = zip(layer.entries.keys.split(lengths), layer.entries.values.split(lengths), strict=True)
    query = layer.query.view(B, H, -1, layer.query.shape[-1])
    for (b, h), (keys, values) in zip(itertools.product(range(B), range(H)), pieces, strict=True):
        keys = torch.cat([keys, tail.keys[b, h]]).double()
        values = torch.cat([values, tail.values[b, h]]).double()
        weight = (query[b, h].double() @ keys.T * scaling).softmax(-1)
        out.view(query.shape)[b, h] = weight @ values
    return out


def captured(steps: Sequence[Step]) -> torch.cuda.CUDAGraph:
    """A graph of all steps, which have run before."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for step in steps:
            step()
    return graph


def seconds(run: Callable[[], Any], repeats: int = 15) -> float:
    """Median time of the device."""
    times = []
    run()
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def measure(steps: Sequence[Step], want: Tensor, nbytes: int) -> dict[str, Any]:
    """The error of a step, and its time only if the error is small."""
    try:
        error = relative_rms(steps[0](), want)
        if not error <= TOLERANCE[DTYPE]:
            return {"correct": False, "relative_rms": repr(error)}
        for step in steps[1:]:
            step()
        graph = captured(steps)
        took = seconds(graph.replay) / len(steps)
    except RuntimeError as problem:
        torch.cuda.synchronize()
        return {"correct": False, "problem": str(problem).splitlines()[0]}
    return {"correct": True, "relative_rms": error, "microseconds": took * 1e6, "bytes_per_second": nbytes / took}


def kernel_steps(
    layers: Sequence[Layer], scaling: float, tuning: Tuning | None = None, programs: int | None = None
) -> list[Step]:
    """The kernels' step of every layer; they share the workspace and the length of the tail, which stays."""
    first = layers[0]
    schedule = DecodeSchedule.of(first.entries.lengths, DEVICE, programs=programs)
    group = first.query.shape[1] // first.key.shape[1]
    size = schedule.workspace_size(CAPACITY, group, first.value.shape[-1])
    workspace = torch.empty(size, device=DEVICE)
    length = torch.tensor([TAIL], device=DEVICE)
    return [
        partial(
            ragged_decode,
            layer.query,
            layer.key,
            layer.value,
            layer.entries,
            layer.tail_keys,
            layer.tail_values,
            length,
            schedule,
            scaling=scaling,
            workspace=workspace,
            tuning=tuning,
        )
        for layer in layers
    ]


def sdpa_step(backend: SDPBackend, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """One of torch's kernels on a dense cache."""
    with sdpa_kernel(backend):
        return scaled_dot_product_attention(
            query, key, value, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
        )


def dense(case: Case) -> dict[str, Any]:
    """torch's attention over the full cache, by the fastest of its kernels that is right."""
    B, H, D = case.batch, case.H, case.D
    shape = (B, H, case.context + TAIL + 1, D)
    nbytes = 2 * 2 * B * H * shape[2] * D
    query = torch.randn(B, H * case.G, 1, D, dtype=DTYPE, device=DEVICE)
    layers = [[torch.randn(shape, dtype=DTYPE, device=DEVICE) for _ in range(2)] for _ in range(layer_count(nbytes))]
    key, value = (x.repeat_interleave(case.G, 1) for x in layers[0])
    want = torch.cat(
        [
            (query[b].double() @ key[b].double().mT * D**-0.5).softmax(-1)[None] @ value[b].double()[None]
            for b in range(B)
        ]
    )
    del key, value
    found = {}
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        steps = [partial(sdpa_step, backend, query, *layer, D**-0.5) for layer in layers]
        found[backend.name] = measure(steps, want, nbytes)
    right = {name: result for name, result in found.items() if result["correct"]}
    best = min(right, key=lambda name: right[name]["microseconds"], default=None)
    return {"bytes": nbytes, "backends": found, "best": best, **(right[best] if best else {"correct": False})}


def layer_count(nbytes: int) -> int:
    """Layers of a graph, so many that none is in the chip's cache when its turn comes."""
    return max(2, min(MOST_LAYERS, -(-LAYERS_BYTES // nbytes)))


def bandwidth() -> dict[str, float]:
    """Bytes per second of a copy, read and written, and of a sum, which only reads."""
    source = torch.randn(1 << 30, device=DEVICE)
    target = torch.empty_like(source)
    nbytes = source.numel() * 4
    return {
        "copy": 2 * nbytes / seconds(lambda: target.copy_(source)),
        "read": nbytes / seconds(lambda: source.sum()),
    }


def kernel_tests() -> dict[str, Any]:
    """Run the kernels' tests on this chip."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/test_triton_decode.py"]
    command += ["-m", "slow or not slow"]
    if importlib.util.find_spec("xdist"):
        command += ["-n", "8"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    return {"passed": done.returncode == 0, "output": lines[-1:] if done.returncode == 0 else lines[-60:]}


def decode_in_a_graph(case: Case, layers: int, steps: int) -> dict[str, Any]:
    """Decode tokens by replays of one graph over growing tails; all layers' last outputs are compared."""
    made = [make_layer(case) for _ in range(layers)]
    schedules = [DecodeSchedule.of(layer.entries.lengths, DEVICE) for layer in made]
    length = torch.tensor([TAIL], device=DEVICE)
    scaling = case.D**-0.5

    def step() -> list[Tensor]:
        outputs = [
            ragged_decode(
                x.query, x.key, x.value, x.entries, x.tail_keys, x.tail_values, length, schedule, scaling=scaling
            )
            for x, schedule in zip(made, schedules, strict=True)
        ]
        length.add_(1)
        return outputs

    step()
    length.fill_(TAIL)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = step()
    tails = [Tail() for _ in made]
    for tail, layer in zip(tails, made, strict=True):
        tail.append(layer.tail_keys[:, :, :TAIL], layer.tail_values[:, :, :TAIL], 1 << 14)
    worst = 0.0
    for _ in range(steps):
        for tail, layer in zip(tails, made, strict=True):
            for states in (layer.query, layer.key, layer.value):
                states.normal_()
            tail.append(layer.key, layer.value, 1 << 14)
        graph.replay()
        for out, tail, layer in zip(outputs, tails, made, strict=True):
            error = relative_rms(out, plain_attention(layer, tail, scaling))
            worst = max(worst, error) if error == error else error
    correct = worst <= TOLERANCE[DTYPE] and int(length) == TAIL + steps
    return {"correct": correct, "relative_rms": repr(worst), "layers": layers, "steps": steps}


def plain_attention(layer: Layer, tail: Tail, scaling: float) -> Tensor:
    """`ragged_attention` in float32, for tails of any length."""
    wide = layer.entries.replaced(layer.entries.keys.float(), layer.entries.values.float())
    longer = Tail()
    longer.append(tail.keys.float(), tail.values.float(), 1)
    return ragged_attention(layer.query.float(), wide, longer, scaling=scaling).double()


def varlen_result(name: str, layers: Sequence[Layer], tails: Sequence[Tail], want: Tensor) -> dict[str, Any]:
    """A kernel for uneven sequences on the layers' entries, or why it is not there."""
    lacks = missing(name, DEVICE)
    if lacks is not None:
        return {"correct": False, "problem": lacks}
    steps = [
        partial(varlen_decode, x.query, x.entries, tail, KERNELS[name], scaling=x.query.shape[-1] ** -0.5)
        for x, tail in zip(layers, tails, strict=True)
    ]
    return measure(steps, want, layers[0].nbytes)


def bench(case: Case, trusted: bool) -> dict[str, Any]:
    """The kernels, the library's plain path and others' kernels, on kept entries."""
    layer = make_layer(case)
    layers = [layer, *(layer.elsewhere() for _ in range(layer_count(layer.nbytes) - 1))]
    scaling = case.D**-0.5
    want = wanted(layer, scaling)
    tails = [x.tail() for x in layers]
    plain = [
        partial(ragged_attention, x.query, x.entries, tail, scaling=scaling)
        for x, tail in zip(layers, tails, strict=True)
    ]
    refused = {"correct": False, "problem": "the kernels' tests failed on this chip"}
    return {
        "bytes": layer.nbytes,
        "layers": len(layers),
        "triton": measure(kernel_steps(layers, scaling), want, layer.nbytes) if trusted else refused,
        "torch": measure(plain, want, layer.nbytes),
        **{name: varlen_result(name, layers, tails, want) for name in KERNELS},
    }


def sweep(case: Case) -> Iterator[dict[str, Any]]:
    """The kernels at other launch parameters than the library's own."""
    layer = make_layer(case)
    layers = [layer, *(layer.elsewhere() for _ in range(layer_count(layer.nbytes) - 1))]
    scaling = case.D**-0.5
    want = wanted(layer, scaling)
    processors = torch.cuda.get_device_properties(DEVICE).multi_processor_count
    own = Tuning.of(4 * case.D)
    choices = [(Tuning(*x), 4) for x in itertools.product((32, 64, 128), (2, 4, 8), (2, 3, 4))]
    choices += [(own, n) for n in (1, 2, 3, 6, 8, 16)]
    for tuning, per_processor in choices:
        steps = kernel_steps(layers, scaling, tuning, per_processor * processors)
        result = measure(steps, want, layer.nbytes)
        yield {**asdict(tuning), "programs_per_processor": per_processor, **result}


def host_microseconds(case: Case) -> float:
    """Time of the host per eager call, while the device has nothing to wait for."""
    (step,) = kernel_steps([make_layer(case)], case.D**-0.5)
    step()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(200):
        step()
    took = time.perf_counter() - begin
    torch.cuda.synchronize()
    return took / 200 * 1e6


def about() -> dict[str, Any]:
    """Where and with what this ran."""
    chip = torch.cuda.get_device_properties(DEVICE)
    return provenance(
        triton=triton.__version__,
        cuda=torch.version.cuda,
        multiprocessors=chip.multi_processor_count,
        l2_bytes=chip.L2_cache_size,
        dtype=str(DTYPE),
        tail=TAIL,
        tail_capacity=CAPACITY,
        seed=0,
    )


def speed(result: dict[str, Any], copy: float) -> str:
    """A table's cell."""
    if not result["correct"]:
        return "wrong or missing".rjust(18)
    return f"{result['microseconds']:9.1f} us {result['bytes_per_second'] / copy:4.0%}"


def main() -> int:
    """Check, time, write; 1 if a check of the kernels failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=480, help="start no further case after so long")
    parser.add_argument("--no-sweep", action="store_true", help="leave out other launch parameters")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing to measure", file=sys.stderr)
        return 2
    begin = time.monotonic()
    torch.manual_seed(0)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "gpu_bench.json"
    report: dict[str, Any] = {"provenance": about(), "tests": kernel_tests()}
    write_whole(path, report)
    trusted = report["tests"]["passed"]
    print("\n".join(report["tests"]["output"]))
    report["bandwidth"] = bandwidth()
    copy = report["bandwidth"]["copy"]
    print("bandwidth, GB/s:", {name: round(x / 1e9) for name, x in report["bandwidth"].items()})
    torch.cuda.empty_cache()
    report["graph"] = decode_in_a_graph(replace(CASES[-1], context=3328), layers=8, steps=20)
    print("decoding in a graph:", report["graph"])
    trusted = trusted and report["graph"]["correct"]
    write_whole(path, report)
    if trusted:
        report["host_microseconds"] = host_microseconds(CASES[0])
    report["cases"], report["dense"], report["sweep"], report["left_out"] = [], [], [], []
    columns = ("kernels", "plain torch", *KERNELS, "dense sdpa, full")
    print("model          context kept batch spread", *(name.rjust(18) for name in columns))
    report["missing"] = {name: missing(name, DEVICE) for name in KERNELS}
    full: dict[tuple[Any, ...], dict[str, Any]] = {}
    for case in CASES:
        if time.monotonic() - begin > options.seconds:
            report["left_out"].append(asdict(case))
            continue
        shape = (case.model, case.context, case.batch)
        if shape not in full:
            full[shape] = dense(case)
            report["dense"].append({"model": case.model, "context": case.context, "batch": case.batch, **full[shape]})
            torch.cuda.empty_cache()
        found = bench(case, trusted)
        report["cases"].append({**asdict(case), **found})
        own = (found[name] for name in ("triton", "torch", *KERNELS))
        cells = " ".join(speed(x, copy) for x in (*own, full[shape]))
        print(f"{case.model:14} {case.context:7} {case.kept:4.0%} {case.batch:5} {case.spread:6} {cells}")
        write_whole(path, report)
        torch.cuda.empty_cache()
    for case in SWEPT if trusted and not options.no_sweep else []:
        results = []
        for result in sweep(case):
            results.append(result)
            if time.monotonic() - begin > options.seconds:
                break
        report["sweep"].append({**asdict(case), "results": results})
        right = sorted((x for x in results if x["correct"]), key=lambda x: x["microseconds"])
        print("best of", len(results), "at", case.model, case.context, case.batch)
        for result in right[:4]:
            print(
                "  ", {name: result[name] for name in ("block", "warps", "stages", "programs_per_processor")}, end=""
            )
            print(speed(result, copy))
        torch.cuda.empty_cache()
        if time.monotonic() - begin > options.seconds:
            break
    report["seconds"] = time.monotonic() - begin
    write_whole(path, report)
    print("written:", path)
    return 0 if trusted and all(x["triton"]["correct"] for x in report["cases"]) else 1


if __name__ == "__main__":
    sys.exit(main())
