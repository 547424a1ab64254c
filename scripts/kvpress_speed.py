"""How fast kvpress' presses evict and decode, each library against its own full cache in its own environment.

    OMP_NUM_THREADS=2 python scripts/kvpress_speed.py --kvpress-python /path/to/env/bin/python --out results/speed

The environment is that of scripts/kvpress_overlap.py. kvpress wants another transformers, so times of the two
libraries are not set side by side: what compares is each one's ratio to the `DynamicCache` of its own environment.

The same slice of a model, random weights, bf16, runs in both. Caches are not filled by a pass over the prompt, which
takes minutes here: methods and presses evict from random states of the same sizes. That is timed, for it is all that
they add to a prefill, whose floor is in the file for comparison. Then all caches of an environment take turns in
decoding. madakv's decoding is `madakv bench decode`; a press' eviction is its own hook in attention layers.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
SHAPE, LAYERS, CONTEXT = "llava-1.5-7b", 2, 3300
BUDGETS = (0.2, 0.05)
WINDOW, KERNEL, SAFEGUARD = 64, 5, 0.2
"""kvpress' defaults, for both."""
TOKENS, ROUNDS, EVICT_ROUNDS = 16, 5, 3
_TIMED = "20%"
"""The budget at which evicting is timed: it scores the same tokens at any."""
FULL = "DynamicCache"


def clock() -> Any:
    """`madakv.bench.timing`, which needs torch alone: madakv itself cannot be imported with kvpress' transformers."""
    spec = importlib.util.spec_from_file_location("timing", ROOT / "src" / "madakv" / "bench" / "timing.py")
    if spec is None or spec.loader is None:
        raise ImportError("madakv's clock is not beside this script")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# kvpress' half


@dataclass(eq=False)
class Held:
    """What a press left of a prompt.

    Attributes:
        cache: transformers' cache.
        hidden: of every layer, (row, head, position) of entries that attention is to overlook; None without.
    """

    cache: Any
    hidden: list[tuple[Tensor, Tensor, Tensor] | None]

    def kept_share(self, heads: int, tokens: int) -> float:
        """Entries that attention still sees, as a share of those of the prompt, before anything is decoded."""
        entries = sum(heads * layer.keys.shape[2] for layer in self.cache.layers)
        entries -= sum(len(positions) for _, _, positions in self._overlooked)
        return float(entries / (len(self.cache.layers) * heads * tokens))

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes of live storage: of keys and values, and of the list of what is overlooked."""
        storages = [x.untyped_storage() for layer in self.cache.layers for x in (layer.keys, layer.values)]
        return {
            "kv_bytes": sum({x.data_ptr(): x.nbytes() for x in storages}.values()),
            "index_bytes": sum(x.untyped_storage().nbytes() for indices in self._overlooked for x in indices),
        }

    @property
    def _overlooked(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        return [x for x in self.hidden if x is not None]


def slice_of(sizes: Mapping[str, Any]) -> Any:
    """The model; `sizes` as `our_sizes` returns them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**sizes["config"])
    config._attn_implementation = "sdpa"
    model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).eval()
    factor = torch.tensor(sizes["factor"])
    with torch.no_grad():
        for layer in model.model.layers:
            weight = layer.self_attn.q_proj.weight
            weight.copy_((weight.view(len(factor), -1) * factor[:, None]).view_as(weight))
    return model


class Seen:
    """What the attention layers would see of a prompt, which the model does not read: that would take minutes.

    Hidden states of unit variance, as behind a norm, and random keys and values.

    Args:
        model: see `slice_of`.
        timing: see `clock`.

    Attributes:
        modules: the attention layers.
    """

    def __init__(self, model: Any, timing: Any) -> None:
        self._model, self._timing = model, timing
        self.modules = [layer.self_attn for layer in model.model.layers]
        config = model.config
        place = torch.arange(CONTEXT)
        self._hidden = [torch.randn(1, CONTEXT, config.hidden_size).bfloat16() for _ in self.modules]
        shape = (2, 1, config.num_key_value_heads, CONTEXT, config.head_dim)
        self._states = [torch.randn(shape).bfloat16() for _ in self.modules]
        rotary = model.model.rotary_emb(self._hidden[0], place[None])
        self._shared = {"position_embeddings": rotary, "cache_position": place}

    def full(self) -> Any:
        """A full cache, in memory of its own."""
        from transformers import DynamicCache

        cache: Any = DynamicCache()
        for number, (keys, values) in enumerate(self._states):
            cache.update(keys, values, number)
        return cache

    def evicted(self, press: Any) -> tuple[Held, float]:
        """What a press leaves, and the seconds that its hooks take."""
        cache = self.full()
        for module in self.modules:
            module.masked_key_indices = None

        def evict() -> None:
            for module, hidden in zip(self.modules, self._hidden, strict=True):
                inputs = {**self._shared, "hidden_states": hidden, "past_key_values": cache}
                press.forward_hook(module, [], inputs, (None, None))

        with press(self._model):
            took: float = self._timing.seconds(evict, torch.device("cpu"))
        return Held(cache, [module.masked_key_indices for module in self.modules]), took


@torch.no_grad()
def kvpress_half(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Runs in kvpress' environment: time presses and the full cache."""
    from importlib.metadata import version

    import transformers
    from kvpress import AdaKVPress  # type: ignore[import-not-found]

    timing = clock()
    model = slice_of(sizes)
    seen = Seen(model, timing)
    presses = {}
    for budget in BUDGETS:
        presses[f"SnapKVPress {budget:.0%}"] = _snapkv(budget)
        presses[f"AdaKVPress {budget:.0%}"] = AdaKVPress(_snapkv(budget), alpha_safeguard=SAFEGUARD)
    held = {FULL: Held(seen.full(), [None] * LAYERS)}
    held |= {name: seen.evicted(press)[0] for name, press in presses.items()}
    kept = {name: one.kept_share(model.config.num_key_value_heads, CONTEXT) for name, one in held.items()}
    timed = [name for name in presses if name.endswith(_TIMED)]
    works = [partial(_evicting, seen, presses[name]) for name in timed]
    evicting = dict(zip(timed, timing.take_turns(works, EVICT_ROUNDS), strict=True))

    token = torch.randn(1, 1, model.config.hidden_size).bfloat16()
    places = dict.fromkeys(held, CONTEXT)

    def decode(name: str, tokens: int) -> float:
        # kvpress keeps in the model what attention is to overlook, and these caches share the model.
        for module, hidden in zip(seen.modules, held[name].hidden, strict=True):
            module.masked_key_indices = hidden

        def steps() -> None:
            for _ in range(tokens):
                model(
                    inputs_embeds=token,
                    past_key_values=held[name].cache,
                    position_ids=torch.tensor([[places[name]]]),
                )
                places[name] += 1

        took: float = timing.seconds(steps, torch.device("cpu"))
        return took / tokens

    for name in held:
        decode(name, 2)
    turns = [partial(decode, name, TOKENS) for name in held]
    decoding = dict(zip(held, timing.take_turns(turns, ROUNDS), strict=True))
    rows = [
        {
            "contender": name,
            "decode": _spread(decoding[name]),
            "speedup": timing.speedup(decoding[FULL], decoding[name]),
            "kept_share": kept[name],
            **held[name].nbytes,
            **({"evict": _spread(evicting[name])} if name in evicting else {}),
        }
        for name in held
    ]
    environment = {
        "kvpress": version("kvpress"),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
    return {"environment": environment, "rows": rows}


def _evicting(seen: Seen, press: Any) -> float:
    return seen.evicted(press)[1]


def _snapkv(budget: float) -> Any:
    from kvpress import SnapKVPress

    return SnapKVPress(compression_ratio=1 - budget, window_size=WINDOW, kernel_size=KERNEL)


def _spread(times: Sequence[float]) -> dict[str, float]:
    """Milliseconds, of seconds."""
    return {"ms": median(times) * 1e3, "ms_least": min(times) * 1e3, "ms_most": max(times) * 1e3}


# madakv's half


def our_sizes() -> dict[str, Any]:
    """What `madakv bench` builds its slice from, for the model there."""
    from madakv.bench.shapes import peaks, shape

    chosen = shape(SHAPE)
    std = 0.02
    config = {
        "hidden_size": chosen.hidden,
        "intermediate_size": chosen.intermediate,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": chosen.query_heads,
        "num_key_value_heads": chosen.kv_heads,
        "head_dim": chosen.head_dim,
        # kvpress needs a model with a head: one of next to nothing.
        "vocab_size": 8,
        "max_position_embeddings": 1 << 20,
        "initializer_range": std,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    return {"config": config, "factor": (peaks(chosen.kv_heads) / (std**2 * chosen.hidden)).tolist()}


@torch.no_grad()
def madakv_half() -> dict[str, Any]:
    """`madakv bench decode`, and the time to evict."""
    from madakv.bench.contenders import Evicted
    from madakv.bench.prompt import random_prompt
    from madakv.bench.roofline import Rates
    from madakv.bench.session import Options, run_bench
    from madakv.bench.shapes import shape
    from madakv.bench.subject import random_subject
    from madakv.bench.synthetic import synthetic_views
    from madakv.bench.timing import seconds, take_turns
    from madakv.methods import from_text

    near = f"window_size={WINDOW}:kernel_size={KERNEL}:pooling=mean"
    texts = (f"snapkv:{near}", f"adakv:{near}:safeguard={SAFEGUARD}", "madakv")
    methods = tuple(from_text(text, budget=budget) for budget in BUDGETS for text in texts)
    device, dtype = torch.device("cpu"), torch.bfloat16
    # Evicting needs the model's sizes alone: no weights are drawn.
    subject = random_subject(SHAPE, LAYERS, dtype=dtype, device=torch.device("meta"))
    chosen_shape = shape(SHAPE)
    prompt = random_prompt(chosen_shape.hidden, chosen_shape.image_tokens, (CONTEXT,), dtype=dtype, device=device)
    views = synthetic_views(subject.cost, prompt, dtype=dtype, device=device)

    def evict(contender: Evicted) -> float:
        with contender.inside(subject) as run:
            return seconds(lambda: contender.fill(subject, views, 1, run), device)

    chosen = [one for one in map(Evicted, methods) if one.label.endswith(_TIMED)]
    for contender in chosen:
        evict(contender)
    times = take_turns([partial(evict, contender) for contender in chosen], EVICT_ROUNDS)
    evicting = {one.label: _spread(own) for one, own in zip(chosen, times, strict=True)}
    results = run_bench(
        "decode",
        Options(
            shapes=(SHAPE,),
            model=None,
            layers=LAYERS,
            contexts=(CONTEXT,),
            batches=(1,),
            methods=methods,
            budgets=BUDGETS,
            device="cpu",
            dtype="bf16",
            tokens=TOKENS,
            repeats=ROUNDS,
            fill="synthetic",
            shortest=1.0,
            rivals=False,
            seed=0,
            out=None,
        ),
        print,
    )
    rows = []
    for row in results.rows:
        if row.refused is not None:
            sys.exit(f"{row.contender}: {row.refused}")
        figures = row.figures
        rows.append(
            {
                "contender": row.contender,
                "decode": {name: figures[name] for name in ("ms", "ms_least", "ms_most")},
                **{name: figures[name] for name in ("speedup", "kv_bytes", "kept_share")},
                **({"evict": evicting[row.contender]} if row.contender in evicting else {}),
                "described": row.details["described"],
            }
        )
    rates = Rates(**results.content["rates"])
    floor = subject.cost.prefill((CONTEXT,)).floor(rates)
    return {
        "rows": rows,
        "prefill_floor_ms": floor * 1e3,
        "rates": results.content["rates"],
        "rates_after": results.content["rates_after"],
    }


def run_kvpress(python: Path) -> dict[str, Any]:
    """Run the other half in its environment, with as many threads as here."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    with tempfile.TemporaryDirectory() as name:
        sizes, found = Path(name) / "sizes.json", Path(name) / "found.json"
        sizes.write_text(json.dumps(our_sizes()))
        command = [str(python), str(Path(__file__).resolve()), "--kvpress-half", str(sizes), "--out", str(found)]
        subprocess.run(command, check=True, env=environment)
        result: dict[str, Any] = json.loads(found.read_text())
    return result


def table(report: Mapping[str, Any]) -> str:
    """The rows for a terminal."""
    lines = [f"{'':44}{'decode ms':>10}{'of full':>9}{'KV MB':>8}{'kept':>7}{'evict ms':>10}"]
    for half in ("kvpress", "madakv"):
        for row in report[half]["rows"]:
            evict = f"{row['evict']['ms']:10.0f}" if "evict" in row else ""
            lines.append(
                f"{row['contender']:44}{row['decode']['ms']:10.1f}{row['speedup']:8.2f}x{row['kv_bytes'] / 1e6:8.1f}"
                f"{row['kept_share']:7.1%}{evict}"
            )
    return "\n".join(lines)


def main() -> None:
    """Run both halves, but those that are in the file already, and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kvpress-python", type=Path, help="the python of an environment with kvpress")
    parser.add_argument("--out", type=Path, default=Path("results/speed"))
    parser.add_argument("--kvpress-half", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.kvpress_half is not None:
        found = kvpress_half(json.loads(arguments.kvpress_half.read_text()))
        arguments.out.write_text(json.dumps(found))
        return
    if arguments.kvpress_python is None:
        parser.error("--kvpress-python is needed")
    from madakv.provenance import provenance, write_whole

    settings = {
        "shape": SHAPE,
        "layers": LAYERS,
        "context": CONTEXT,
        "batch": 1,
        "dtype": "bf16",
        "window": WINDOW,
        "kernel": KERNEL,
        "safeguard": SAFEGUARD,
        "tokens": TOKENS,
        "rounds": ROUNDS,
        "evict_rounds": EVICT_ROUNDS,
        "seed": 0,
        "threads": torch.get_num_threads(),
    }
    path = arguments.out / "kvpress.json"
    report = json.loads(path.read_text()) if path.exists() else {"settings": settings}
    if report["settings"] != settings:
        sys.exit(f"{path} holds results of other settings")
    arguments.out.mkdir(parents=True, exist_ok=True)
    halves: dict[str, Callable[[], dict[str, Any]]] = {
        "madakv": madakv_half,
        "kvpress": partial(run_kvpress, arguments.kvpress_python),
    }
    for name, half in halves.items():
        if name not in report:
            report[name] = {**provenance(), **half()}
            write_whole(path, report)
    print(table(report))


if __name__ == "__main__":
    main()
