"""One run of a benchmark: rates first, then every case, each written as it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch

from madakv.backend import in_use
from madakv.bench.contenders import contenders
from madakv.bench.decode import measure_decode
from madakv.bench.kernel import OPS, SPREADS, Op, measure_kernel
from madakv.bench.machine import measure_rates
from madakv.bench.memory import measure_memory
from madakv.bench.prefill import grown, measure_prefill
from madakv.bench.results import ResultFile, Row
from madakv.bench.roofline import Rates
from madakv.bench.settings import Fill, Settings
from madakv.bench.shapes import shape
from madakv.bench.subject import Subject, random_subject, real_subject
from madakv.errors import ConfigurationError
from madakv.loading import check_device
from madakv.methods import Method
from madakv.provenance import provenance

Command = Literal["decode", "prefill", "memory", "kernel"]

_DTYPES = {
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "float32": torch.float32,
}


@dataclass(frozen=True)
class Options:
    """As asked for on the command line.

    Attributes:
        shapes: names; empty if there is a model.
        model: folder of a real model.
        layers: of a shape; None for all.
        contexts, batches: one case each, in every combination.
        methods: of madakv, at their budgets.
        budgets: for `kernel`, entries per head, as a share of the context or as they are.
        device, dtype: names.
        tokens, repeats, fill, shortest, rivals, fast_linears: see `Settings`.
        seed: of torch's generator, once per case.
        out: folder of the result file; None writes none.
    """

    shapes: tuple[str, ...]
    model: str | None
    layers: int | None
    contexts: tuple[int, ...]
    batches: tuple[int, ...]
    methods: tuple[Method, ...]
    budgets: tuple[float | int, ...]
    device: str
    dtype: str
    tokens: int
    repeats: int
    fill: Fill
    shortest: float
    rivals: bool
    seed: int
    out: Path | None
    fast_linears: bool = False


def run_bench(
    command: Command, options: Options, progress: Callable[[str], None], *, ops: Mapping[str, Op] = OPS
) -> ResultFile:
    """Measure all cases.

    Args:
        command: what to measure.
        options: of the command.
        progress: told what is being done.
        ops: that `kernel` compares.

    Raises:
        ConfigurationError: options that do not fit together.
    """
    device, dtype = _device(options.device), _dtype(options.dtype)
    if (options.model is None) == (not options.shapes):
        raise ConfigurationError("give either --shape or --model")
    if command == "kernel" and options.model is not None:
        raise ConfigurationError("bench kernel takes a --shape: it runs no model")
    for name in options.shapes:
        shape(name)
    settings = asdict(options) | {"methods": [repr(method) for method in options.methods], "out": None}
    about = provenance(command=command, **settings, threads=torch.get_num_threads())
    results = ResultFile(None if options.out is None else options.out / f"{command}.json", about)
    progress("what the machine does at best")
    rates = measure_rates(device, dtype)
    results.note(rates=asdict(rates))
    if command == "kernel":
        measured = _kernel_cases(options, device, dtype, rates, progress, ops)
    else:
        measured = _model_cases(command, options, device, dtype, rates, results, progress)
    for rows in measured:
        results.add(rows)
    # A machine that others use meanwhile shows here.
    results.note(rates_after=asdict(measure_rates(device, dtype)), backend=in_use(device.type))
    return results


def _model_cases(
    command: Command,
    options: Options,
    device: torch.device,
    dtype: torch.dtype,
    rates: Rates,
    results: ResultFile,
    progress: Callable[[str], None],
) -> Iterator[list[Row]]:
    for subject in _subjects(options, device, dtype):
        if command != "prefill" and options.rivals:
            timed = subject if command == "decode" else None
            results.note(missing=contenders(subject.model.config, (), timed=timed)[1])
        for batch in options.batches:
            before: list[Row] = []
            for context in options.contexts:
                case = {"shape": subject.name, "layers": subject.layers, "context": context, "batch": batch}
                progress(f"{subject.name}, {context:,} tokens, batch {batch}")
                torch.manual_seed(options.seed)
                rows = _measure(command, subject, _settings(options, context, batch), rates, case)
                yield grown(before, rows) if command == "prefill" else rows
                before = rows


def _measure(command: Command, subject: Subject, settings: Settings, rates: Rates, case: dict[str, Any]) -> list[Row]:
    if command == "decode":
        return measure_decode(subject, settings, rates, case)
    if command == "prefill":
        return measure_prefill(subject, settings, rates, case)
    return measure_memory(subject, settings, case)


def _kernel_cases(
    options: Options,
    device: torch.device,
    dtype: torch.dtype,
    rates: Rates,
    progress: Callable[[str], None],
    ops: Mapping[str, Op],
) -> Iterator[list[Row]]:
    for name in options.shapes:
        cost = shape(name).cost(1, with_head=False, itemsize=dtype.itemsize)
        for batch in options.batches:
            for context in options.contexts:
                for budget in options.budgets:
                    for spread in SPREADS:
                        mean = budget if isinstance(budget, int) else max(1, round(context * budget))
                        case = {
                            "shape": name,
                            "heads": f"{cost.query_heads}/{cost.kv_heads}",
                            "batch": batch,
                            "entries": mean,
                            "spread": f"{spread}:1",
                        }
                        progress(f"{name}, {mean:,} entries per head, {spread}:1, batch {batch}")
                        torch.manual_seed(options.seed)
                        yield measure_kernel(
                            cost,
                            mean=mean,
                            spread=spread,
                            batch=batch,
                            repeats=options.repeats,
                            device=device,
                            dtype=dtype,
                            rates=rates,
                            case=case,
                            ops=ops,
                        )


def _subjects(options: Options, device: torch.device, dtype: torch.dtype) -> Iterator[Subject]:
    if options.model is not None:
        yield real_subject(options.model, dtype=str(dtype).removeprefix("torch."), device=device)
    for name in options.shapes:
        torch.manual_seed(options.seed)
        yield random_subject(name, options.layers, dtype=dtype, device=device)


def _settings(options: Options, context: int, batch: int) -> Settings:
    return Settings(
        context=context,
        batch=batch,
        methods=options.methods,
        tokens=options.tokens,
        repeats=options.repeats,
        fill=options.fill,
        shortest=options.shortest,
        rivals=options.rivals,
        fast_linears=options.fast_linears,
    )


def _device(name: str) -> torch.device:
    if name not in ("cpu", "cuda"):
        raise ConfigurationError(f"--device must be cpu or cuda; got {name!r}")
    check_device(name)
    return torch.device(name)


def _dtype(name: str) -> torch.dtype:
    if name not in _DTYPES:
        raise ConfigurationError(f"--dtype must be one of {', '.join(_DTYPES)}; got {name!r}")
    return _DTYPES[name]


def numbers(option: str, text: str) -> tuple[int, ...]:
    """Positive whole numbers, separated by commas.

    Raises:
        ConfigurationError: something else; the message names the option.
    """
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        raise ConfigurationError(f"{option} takes positive whole numbers, separated by commas; got {text!r}")
    return tuple(int(word) for word in words)


def fill_of(text: str) -> Fill:
    """A `Fill` as typed.

    Raises:
        ConfigurationError: there is no such way.
    """
    for way in get_args(Fill):
        if text == way:
            return cast(Fill, way)
    raise ConfigurationError(f"--fill must be one of {', '.join(get_args(Fill))}; got {text!r}")


def refused(rows: Sequence[Row]) -> list[Row]:
    """The rows without a speed."""
    return [row for row in rows if row.refused is not None]
