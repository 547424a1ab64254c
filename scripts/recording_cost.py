"""What recording for a report adds: CPU time of a prefill, and of a decode step, with it over without.

    python scripts/recording_cost.py --model smollm2 --tokens 1300,3000 --out results/speed/recording

One thread, both in turn; ratios are medians of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

import madakv
from madakv.loading import load
from madakv.markdown import markdown_table
from madakv.methods import from_text
from madakv.provenance import provenance, write_whole

STEPS = 8


def taken(model: Any, ids: torch.Tensor, method: str, *, record: bool) -> tuple[float, float]:
    """Seconds of CPU time of a prefill, and of a step, the median of them."""
    ticks = []
    with madakv.evict(model, from_text(method, budget=0.2), record=record), torch.no_grad():
        begun = time.process_time()
        cache = model(ids, logits_to_keep=1).past_key_values
        ticks.append(time.process_time())
        for _ in range(STEPS):
            model(ids[:, :1], past_key_values=cache)
            ticks.append(time.process_time())
    steps = [after - before for before, after in pairwise(ticks)]
    return ticks[0] - begun, statistics.median(steps)


def measured(model: Any, tokens: int, method: str, rounds: int) -> dict[str, Any]:
    """One row."""
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    ids = torch.randint(100, vocabulary - 100, (1, tokens), generator=torch.Generator().manual_seed(0))
    taken(model, ids[:, :64], method, record=True)
    pairs = []
    for number in range(rounds):
        order = (False, True) if number % 2 else (True, False)
        times = {record: taken(model, ids, method, record=record) for record in order}
        pairs.append((times[False], times[True]))
    row: dict[str, Any] = {"tokens": tokens, "method": method}
    for part, name in enumerate(("prefill", "step")):
        ratios = [on[part] / off[part] for off, on in pairs]
        row[name] = {
            "seconds": round(statistics.median(off[part] for off, _ in pairs), 4),
            "ratio": round(statistics.median(ratios), 3),
            "least": round(min(ratios), 3),
            "most": round(max(ratios), 3),
        }
    print(row, flush=True)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """For docs/performance.md."""
    head = ["tokens", "method", "prefill, seconds", "with recording", "a step, seconds", "with recording"]
    lines = [
        [f"{row['tokens']:,}", f"`{row['method']}`"]
        + [
            text
            for part in (row["prefill"], row["step"])
            for text in (
                f"{part['seconds']:.3f}",
                f"{part['ratio']:.3f} ({part['least']:.3f} to {part['most']:.3f})",
            )
        ]
        for row in rows
    ]
    return markdown_table(head, lines, words=(1,))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", default="1300,3000")
    parser.add_argument("--methods", default="madakv,snapkv")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, _ = load(options.model, device="cpu", dtype="float32")
    about = provenance(command=" ".join(sys.argv), threads=1, dtype="float32", model=options.model)
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for tokens in map(int, options.tokens.split(",")):
        for method in options.methods.split(","):
            rows.append(measured(model, tokens, method, options.rounds))
            write_whole(options.out / "recording.json", {"about": about, "rows": rows})
            (options.out / "table.md").write_text(table(rows))


if __name__ == "__main__":
    main()
