"""Draw a training log: loss, and held-out questions answered whole.

python training/small/curves.py training/small/log-small-llava.jsonl --out training/small/curves-small-llava.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

KINDS = ("code", "read", "twin", "owner", "differ", "plan", "change", "album", "show")
NAMED = {"twin": "C0", "album": "C1", "plan": "C2"}
"""What was learnt last; the others are grey."""
LENGTHS = {"500": "500 tokens", "4000": "4,096 tokens"}
GAP = 1000
"""Steps without an entry over which no line is drawn."""


def draw(entries: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Write a picture of a log.

    Args:
        entries: of the log, in order.
        title: whose log it is.
        path: of the PNG file.
    """
    figure, panels = plt.subplots(
        1 + len(LENGTHS), 1, figsize=(10, 8.5), sharex=True, layout="constrained", height_ratios=[3, 2, 2]
    )
    trained = [entry for entry in entries if entry["event"] == "train"]
    _draw_loss(panels[0], trained)
    for axes, (task, length) in zip(panels[1:], LENGTHS.items(), strict=True):
        _draw_answers(axes, [e for e in entries if e["event"] == "evaluation" and e["task"] == task], length)
    starts = _stages(trained)
    for axes in panels:
        axes.grid(alpha=0.25)
        for step, _ in starts[1:]:
            axes.axvline(step, color="black", linewidth=0.6, alpha=0.25)
    for step, name in starts:
        panels[0].annotate(
            name, (step, 0.98), xycoords=("data", "axes fraction"), rotation=90, fontsize=7, va="top", xytext=(2, 0),
            textcoords="offset points", color="0.35",
        )  # fmt: skip
    panels[0].set_title(title, pad=10)
    panels[-1].set_xlabel("step")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_loss(axes: Axes, trained: Sequence[dict[str, Any]]) -> None:
    steps, losses = [entry["step"] for entry in trained], [entry["loss"] for entry in trained]
    smooth = []
    for i, step in enumerate(steps):
        near = [loss for at, loss in zip(steps[: i + 1][-8:], losses[: i + 1][-8:], strict=True) if step - at < GAP]
        smooth.append(float(np.exp(np.mean(np.log(near)))))
    axes.plot(*_broken(steps, losses), color="0.75", linewidth=0.8)
    axes.plot(*_broken(steps, smooth), color="C3", linewidth=1.8)
    axes.set_yscale("log")
    # Above the curve there is room for the stages' names.
    axes.set_ylim(top=max(losses) * 30)
    axes.set_ylabel("loss of answers\n(grey: of 25 steps each)")


def _draw_answers(axes: Axes, judged: Sequence[dict[str, Any]], length: str) -> None:
    steps = [entry["step"] for entry in judged]
    for kind in KINDS:
        own = [(entry["step"], entry[kind]) for entry in judged if kind in entry]
        if own:
            axes.plot(
                *_broken(*zip(*own, strict=True)),
                color=NAMED.get(kind, "0.8"),
                linewidth=1.6 if kind in NAMED else 1,
                label=kind if kind in NAMED else None,
            )
    means = [float(np.mean([entry[kind] for kind in KINDS if kind in entry])) for entry in judged]
    axes.plot(*_broken(steps, means), color="black", linewidth=2.2, label="mean")
    axes.plot([], [], color="0.8", label="other kinds")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylim(0, 1.03)
    axes.set_ylabel(f"held-out answers, whole\n{length}")
    axes.legend(loc="lower right", fontsize=8, ncols=2)


def _broken(steps: Sequence[int], heights: Sequence[float]) -> tuple[list[float], list[float]]:
    """A line's points, with holes where the log has them."""
    x: list[float] = []
    y: list[float] = []
    for step, height in zip(steps, heights, strict=True):
        if x and step - x[-1] > GAP:
            x.append(step)
            y.append(float("nan"))
        x.append(step)
        y.append(height)
    return x, y


def _stages(trained: Sequence[dict[str, Any]]) -> list[tuple[int, str]]:
    """Step and name of every stage's first entry."""
    starts: list[tuple[int, str]] = []
    for entry in trained:
        if not starts or starts[-1][1] != entry["stage"]:
            starts.append((entry["step"], entry["stage"]))
    return starts


def main() -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path, help="a log of train_small.py")
    parser.add_argument("--out", type=Path, required=True, help="PNG file")
    arguments = parser.parse_args()
    entries = [json.loads(line) for line in arguments.log.read_text().splitlines()]
    model = next(entry["model"] for entry in entries if entry["event"] == "start")
    draw(entries, f"{model}: training", arguments.out)


if __name__ == "__main__":
    main()
