"""What an echo adds to a prefill, by the share of text in the prompt: CPU time and FLOPs, beside reading without.

    python scripts/echo_price.py --model smollm2 --tokens 1300,3000 --text 0.1,0.3,1.0 --out results/speed/echo

The rest of the prompt counts as pictures, so that it is not read again. Times are of one thread, the contenders in
turn; ratios are medians of the rounds' ratios to `full`, transformers' own cache, of the same round. FLOPs are of
products alone: with weights, and of queries with keys and weights with values.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

import madakv
from madakv.loading import load
from madakv.markdown import markdown_table
from madakv.methods import from_text
from madakv.modality import Modality
from madakv.provenance import provenance, write_whole

METHODS = ("full", "snapkv", "madakv:echo=0", "madakv", "madakv:echo=all")


def flops(config: Any, tokens: int, echoed: int) -> float:
    """Of a prefill of so many tokens, and as many behind it as are read again."""
    d, heads, kv = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    size = getattr(config, "head_dim", None) or d // heads
    weights = 2 * d * size * (heads + kv) + 3 * d * config.intermediate_size
    pairs = tokens**2 / 2 + echoed * tokens + echoed**2 / 2
    attended = 2 * 2 * size * heads * pairs
    # What scores: products of the echo's queries with all keys once more.
    scored = 2 * size * heads * (echoed * tokens + echoed**2 / 2)
    return config.num_hidden_layers * (2.0 * weights * (tokens + echoed) + attended + scored)


def prefill(model: Any, inputs: dict[str, torch.Tensor], method: str) -> float:
    """Seconds of CPU time."""
    resolved = from_text(method, budget=None if method == "full" else 0.2)
    with madakv.evict(model, resolved), torch.no_grad():
        begun = time.process_time()
        model(**inputs, logits_to_keep=1)
        return time.process_time() - begun


def measured(model: Any, tokens: int, share: float, rounds: int) -> list[dict[str, Any]]:
    """One row per method."""
    config = model.config.get_text_config(decoder=True)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(100, config.vocab_size - 100, (1, tokens), generator=generator)
    kinds = torch.full((1, tokens), int(Modality.IMAGE))
    # Text stands between pictures, and the question behind them.
    text = round(tokens * share)
    kinds[:, (torch.arange(text) * tokens // text)] = int(Modality.TEXT)
    kinds[:, -min(32, text) :] = int(Modality.TEXT)
    inputs = {"input_ids": ids, "mm_token_type_ids": kinds}
    times: dict[str, list[float]] = {method: [] for method in METHODS}
    for _ in range(rounds):
        for method in METHODS:
            times[method].append(prefill(model, inputs, method))
    rows = []
    for method in METHODS:
        resolved = from_text(method, budget=None if method == "full" else 0.2)
        wanted = int(resolved.most_echoed(torch.tensor([tokens]))) if resolved.echoes else 0
        echoed = min(wanted, int((kinds == Modality.TEXT).sum()))
        ratios = [own / full for own, full in zip(times[method], times["full"], strict=True)]
        rows.append(
            {
                "tokens": tokens,
                "text_share": share,
                "method": method,
                "echoed": echoed,
                "seconds": round(statistics.median(times[method]), 3),
                "times_full": round(statistics.median(ratios), 3),
                "least": round(min(ratios), 3),
                "most": round(max(ratios), 3),
                "flops_times_full": round(flops(config, tokens, echoed) / flops(config, tokens, 0), 3),
            }
        )
        print(rows[-1], flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """For docs/performance.md."""
    head = ["tokens", "of them text", "method", "read again", "seconds", "times full (least to most)", "FLOPs"]
    lines = [
        [
            f"{row['tokens']:,}",
            f"{row['text_share']:.0%}",
            f"`{row['method']}`",
            f"{row['echoed']:,}",
            f"{row['seconds']:.2f}",
            f"{row['times_full']:.2f} ({row['least']:.2f} to {row['most']:.2f})",
            f"{row['flops_times_full']:.2f}",
        ]
        for row in rows
    ]
    return markdown_table(head, lines, words=(2,))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", default="1300,3000")
    parser.add_argument("--text", default="0.1,0.3,1.0", help="shares of text in the prompt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, _ = load(options.model, device="cpu", dtype="float32")
    rows = [
        row
        for tokens in map(int, options.tokens.split(","))
        for share in map(float, options.text.split(","))
        for row in measured(model, tokens, share, options.rounds)
    ]
    about = provenance(command=" ".join(sys.argv), threads=1, dtype="float32", model=options.model)
    options.out.mkdir(parents=True, exist_ok=True)
    write_whole(options.out / "price.json", {"about": about, "rows": rows})
    (options.out / "table.md").write_text(table(rows))


if __name__ == "__main__":
    main()
