"""Accuracy over price: what an echo of each length answers, over what it adds to a prefill's FLOPs.

    madakv eval --model small-llava --suite long-512 --seed 100000 --samples 12 \\
        --out results/small-llava/echo-lengths --budgets 0.2,0.1,0.05 \\
        --methods full,madakv:echo=0,madakv:echo=32,madakv,madakv:echo=128,madakv:echo=all
    python scripts/echo_curve.py results/*/echo-lengths --out results/echo

Of each folder, that the first command made, the documents are built once more, for how many of their tokens are text;
FLOPs are those of `echo_price.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from echo_price import flops

from madakv.evaluation.documents.presentation import presentation_for
from madakv.evaluation.records import Row
from madakv.evaluation.rowfiles import read_all
from madakv.evaluation.samples import inputs_of
from madakv.evaluation.suites import suite
from madakv.loading import load
from madakv.markdown import budget_text, markdown_table, share_within
from madakv.methods import from_text
from madakv.modality import Modality, prompt_modality
from madakv.provenance import provenance, write_whole


def prompts(config: Any, processor: Any, run: dict[str, Any], documents: int) -> list[tuple[int, int]]:
    """Tokens of each prompt that was asked, and how many of them are text."""
    settings = run["settings"]
    found = []
    for sample in suite(settings["suite"])(documents, settings["seed"], presentation_for(processor)):
        if sample.following is None:
            inputs, _ = inputs_of(processor, sample)
            kinds = prompt_modality(config, inputs["input_ids"])
            found.append((kinds.numel(), int((kinds == Modality.TEXT).sum())))
    return found


def price(config: Any, label: str, read: list[tuple[int, int]]) -> float:
    """FLOPs of a prefill over those of one without an echo, mean over prompts."""
    method = from_text(label, budget=0.2)
    told = []
    for tokens, text in read:
        echoed = min(text, int(method.most_echoed(torch.tensor([tokens])))) if method.echoes else 0
        told.append(flops(config, tokens, echoed) / flops(config, tokens, 0))
    return mean(told)


def of_folder(folder: Path) -> list[dict[str, Any]]:
    """A line per length and budget, in the order of their prices."""
    run = json.loads((folder / "run.json").read_text())
    name = folder.parent.name
    model, processor = load(name, device="cpu", dtype="float32")
    documents = len({row.document for row in read_all(folder, Row)})
    read = prompts(model.config, processor, run, documents)
    config = model.config.get_text_config(decoder=True)
    lines = [
        {
            "model": name,
            "method": line["label"],
            "budget": line["budget"],
            "price": round(price(config, line["label"], read), 3),
            "of_full": line["of_full"],
            "interval": line["interval"],
            "text_share": round(mean(text / tokens for tokens, text in read), 3),
            "answers": line["answers"],
        }
        for line in json.loads((folder / "summary.json").read_text())
        if line["label"] != "full"
    ]
    return sorted(lines, key=lambda line: (-line["budget"], line["price"]))


def table(rows: list[dict[str, Any]]) -> str:
    """For docs/choices.md: a line per model and length."""
    budgets = sorted({row["budget"] for row in rows}, reverse=True)
    lines = []
    for model, method in dict.fromkeys((row["model"], row["method"]) for row in rows):
        own = {row["budget"]: row for row in rows if (row["model"], row["method"]) == (model, method)}
        one = next(iter(own.values()))
        shares = [share_within(f"{own[b]['of_full']:.1%}", *own[b]["interval"]) if b in own else "" for b in budgets]
        lines.append([f"`{model}`", f"{one['text_share']:.0%}", f"`{method}`", f"{one['price']:.2f}", *shares])
    head = ["model", "text", "method", "FLOPs", *map(budget_text, budgets)]
    return markdown_table(head, lines, words=(0, 2))


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """A panel per model, a line per budget; the default is marked."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import PercentFormatter

    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, panels = plt.subplots(1, len(models), figsize=(4 * len(models), 3.6), squeeze=False, layout="constrained")
    for axes, model in zip(panels[0], models, strict=True):
        own = [row for row in rows if row["model"] == model]
        for number, budget in enumerate(sorted({row["budget"] for row in own}, reverse=True)):
            line = [row for row in own if row["budget"] == budget]
            x, y = [row["price"] for row in line], [row["of_full"] for row in line]
            low, high = zip(*(row["interval"] for row in line), strict=True)
            colour = f"C{number}"
            axes.plot(x, y, marker="os^"[number % 3], color=colour, label=f"{budget_text(budget)} of the cache")
            axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
            for place, row in enumerate(line):
                if row["method"] == "madakv":
                    axes.plot(row["price"], row["of_full"], marker="o", ms=13, mfc="none", color=colour)
                if not number:
                    said = row["method"].partition("echo=")[2] or "auto"
                    # Neighbours may lie close together.
                    below = (-3, -30 if place % 2 else -20)
                    axes.annotate(said, (row["price"], row["of_full"]), below, textcoords="offset points", fontsize=7)
        axes.set_title(f"{model}, {own[0]['text_share']:.0%} text", fontsize=10)
        axes.set_xlabel("FLOPs of the prefill, of one without an echo")
        axes.set_ylim(0, 1.05)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel("right answers, of the full cache's")
    panels[0][0].legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    """Count, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = [line for folder in options.folders for line in of_folder(folder)]
    options.out.mkdir(parents=True, exist_ok=True)
    write_whole(options.out / "curve.json", {"about": provenance(command=" ".join(sys.argv)), "rows": rows})
    (options.out / "table.md").write_text(table(rows))
    draw(rows, options.out / "curve.png")


if __name__ == "__main__":
    main()
