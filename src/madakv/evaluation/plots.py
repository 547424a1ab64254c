"""Pictures from rows: accuracy over live bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from madakv.evaluation.summary import Line
from madakv.extras import require


def accuracy_over_bytes(lines: Sequence[Line], title: str, path: Path) -> None:
    """Draw every method's average accuracy over the share of bytes that it kept, on a log scale.

    Args:
        lines: from `summarise`, of one model and scorer, at least one of them with an average.
        title: what was measured.
        path: of the PNG file.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require("plots need", "plot", "matplotlib")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import PercentFormatter

    averages = [line.average for line in lines if line.average is not None]
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    labels = list(dict.fromkeys(line.label for line in lines if line.label != "full"))
    styles = ["-", "--", ":"]
    for number, label in enumerate(labels):
        own = sorted(
            (line.kv_share, line.average)
            for line in lines
            if line.label == label and line.kv_share and line.average is not None
        )
        ours = label.startswith("madakv")
        axes.plot(
            [share for share, _ in own],
            [average for _, average in own],
            marker="o",
            linewidth=2.5 if ours else 1.2,
            linestyle=styles[number // 10 % len(styles)],
            color=f"C{number % 10}",
            zorder=3 if ours else 2,
            label=label,
        )
    for line in lines:
        if line.label == "full" and line.average is not None:
            axes.axhline(line.average, color="black", linewidth=1, linestyle=":", label="full cache")
    axes.set_xscale("log")
    ticks = sorted({float(line.budget) for line in lines if line.label != "full" and line.budget <= 1})
    axes.set_xticks(ticks or [1.0])
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylim(0, min(1.02, 1.1 * max(averages) + 0.01))
    axes.set_xlabel("KV bytes kept, of the full cache")
    axes.set_ylabel("average score")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)
