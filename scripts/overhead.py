"""What eviction adds to a forward pass on a CPU: where 30 layers are so small that little else is measured.

    python scripts/overhead.py --checkouts .                # one checkout, against transformers' DynamicCache
    python scripts/overhead.py --checkouts old,new          # two of them in turn, and new over old

CPU time of one thread, of a prefill and per decode step, in a loop of forward passes. Each checkout runs in a process
of its own, and they take turns, so that what else the machine does falls on both. Ratios are medians of the rounds'
ratios, with their quartiles, and the ratio of the best rounds, which a busy machine blurs least. Eviction of a bf16
model has madakv's products with weights with it in either checkout, in a block of their own where there is one,
`madakv.fast_linears`.

The row of DynamicCache, where madakv has no part, tells how still the machine was: new / old should be 1.

`--limit 1.03` ends with 1 if the newer checkout takes more of any row.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

CONTENDERS = {
    "DynamicCache": (None, None),
    "full": ("full", None),
    "madakv": ("madakv", 0.2),
    "snapkv": ("snapkv", 0.2),
}
PARTS = ("prefill", "step")


# In a process of its own, with one checkout's madakv


class Worker:
    """Random models of one shape, one per dtype.

    Args:
        layers: of the models.
        hidden: their width.
        prompt: tokens of the prompt.
        steps: to decode.
    """

    def __init__(self, layers: int, hidden: int, prompt: int, steps: int) -> None:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.set_num_threads(1)
        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=2, vocab_size=256, max_position_embeddings=4096, initializer_range=0.2,
        )  # fmt: skip
        model = LlamaForCausalLM(config).eval()
        self._models = {"fp32": model}
        self._ids = torch.randint(5, 250, (1, prompt + steps))
        self._prompt = prompt

    def _model(self, dtype: str) -> Any:
        import copy

        import torch

        if dtype not in self._models:
            self._models[dtype] = copy.deepcopy(self._models["fp32"]).to(torch.bfloat16)
        return self._models[dtype]

    def measure(self, contender: str, dtype: str) -> dict[str, float]:
        """Milliseconds of CPU time of a prefill, and of a decode step, the median of them."""
        import torch
        from transformers.cache_utils import DynamicCache

        import madakv

        model, (method, budget) = self._model(dtype), CONTENDERS[contender]
        steps = self._ids[:, self._prompt :].split(1, 1)
        with torch.no_grad(), ExitStack() as stack:
            if method is not None and dtype == "bf16" and hasattr(madakv, "fast_linears"):
                stack.enter_context(madakv.fast_linears(model))
            if method is not None:
                stack.enter_context(madakv.evict(model, method, budget=budget))
            cache = DynamicCache(config=model.config) if method is None else None
            begun = time.process_time()
            cache = model(self._ids[:, : self._prompt], past_key_values=cache, use_cache=True).past_key_values
            ticks = [time.process_time()]
            for ids in steps:
                model(ids, past_key_values=cache, use_cache=True)
                ticks.append(time.process_time())
        taken = [later - earlier for earlier, later in pairwise(ticks)]
        return {"prefill": (ticks[0] - begun) * 1e3, "step": statistics.median(taken) * 1e3}


def work(sizes: list[int]) -> None:
    """Answer lines of `[contender, dtype]` with lines of times, until there are none."""
    import madakv

    worker = Worker(*sizes)
    print(json.dumps(madakv.__file__), flush=True)
    for line in sys.stdin:
        print(json.dumps(worker.measure(*json.loads(line))), flush=True)


# In the process that compares


class Checkout:
    """A worker with the madakv of one checkout.

    Args:
        path: of the checkout, which holds `src`.
        sizes: as `Worker` takes them.
    """

    def __init__(self, path: str, sizes: list[int]) -> None:
        self.name = path
        source = str(Path(path).resolve() / "src")
        environment = os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--work", ",".join(map(str, sizes))]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.file: str = self._answer()
        if not self.file.startswith(source):
            raise SystemExit(f"{path}: its worker imported {self.file}")

    def measure(self, contender: str, dtype: str) -> dict[str, float]:
        """See `Worker.measure`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([contender, dtype]) + "\n")
        self._process.stdin.flush()
        found: dict[str, float] = self._answer()
        return found

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name}: its worker ended with {self._process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """End the worker."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


Times = dict[tuple[str, str, str, str], list[float]]
"""Of each round, by checkout, contender, dtype and part."""


def measure(checkouts: list[Checkout], contenders: list[str], dtypes: list[str], rounds: int) -> Times:
    """Every contender in every checkout, in turn; the first round only warms up."""
    times: Times = {}
    for number in range(rounds + 1):
        for dtype in dtypes:
            for contender in contenders:
                for checkout in checkouts if number % 2 else checkouts[::-1]:
                    for part, value in checkout.measure(contender, dtype).items():
                        if number:
                            times.setdefault((checkout.name, contender, dtype, part), []).append(value)
        print(f"\rround {number} of {rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return times


def ratio(some: list[float], others: list[float]) -> tuple[float, str]:
    """The median of what the rounds' ratios are, and as text with their quartiles and what the best rounds give."""
    found = [one / other for one, other in zip(some, others, strict=True)]
    middle, best = statistics.median(found), min(some) / min(others)
    low, _, high = statistics.quantiles(found, n=4) if len(found) > 1 else found * 3
    return middle, f"{middle:.3f} [{low:.3f}, {high:.3f}] best {best:.3f}"


def main() -> int:
    """Run the command; 1 if the newer checkout is over the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkouts", default=".", help="one, or the older and the newer with a comma between (.)")
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="DynamicCache is always among them")
    parser.add_argument("--dtypes", default="fp32,bf16")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--prompt", type=int, default=512, help="tokens")
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--limit", type=float, help="of the newer over the older checkout")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work([int(size) for size in given.work.split(",")])
        return 0
    names = given.checkouts.split(",")
    contenders = list(dict.fromkeys(["DynamicCache", *given.contenders.split(",")]))
    dtypes = given.dtypes.split(",")
    sizes = [given.layers, given.hidden, given.prompt, given.steps]
    checkouts = [Checkout(name, sizes) for name in names]
    times = measure(checkouts, contenders, dtypes, given.rounds)
    for checkout in checkouts:
        checkout.close()
    over = []
    for dtype in dtypes:
        for part in PARTS:
            print(f"\n{part}, {dtype}: ms of CPU time, and over DynamicCache")
            for contender in contenders:
                cells = []
                for name in names:
                    here = times[name, contender, dtype, part]
                    own = ratio(here, times[name, "DynamicCache", dtype, part])[1]
                    cells.append(f"{statistics.median(here):9.3f}  {own:34}")
                if len(names) == 2:
                    value, text = ratio(*(times[name, contender, dtype, part] for name in reversed(names)))
                    cells.append(f"new / old {text}")
                    if given.limit is not None and contender != "DynamicCache" and value > given.limit:
                        over.append(f"{contender}, {part}, {dtype}: {value:.3f}")
                print(f"  {contender:14}" + "  ".join(cells))
    for row in over:
        print(f"over {given.limit}: {row}")
    return int(bool(over))


if __name__ == "__main__":
    raise SystemExit(main())
