"""Draws the paper's analysis (MadaKV, ACL 2025, figures 2 and 5) of any model: PNG and SVG, as wide as a column.

Colours are Okabe and Ito's, which people with any colour vision tell apart; lines differ in their dashes, too. In
SVG files text is text. Names of models and tasks are text as well, never TeX.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from madakv.extras import require
from madakv.inspection.analysis import TOGETHER, Concentration, Layers, Preference, Spread, Tasks
from madakv.inspection.statistics import THETA

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 3.4
"""Inches: a column of a paper."""

_COLOURS = {"text": "#0072B2", "image": "#D55E00", "video": "#CC79A7", "audio": "#009E73", TOGETHER: "#404040"}
_DASHES: dict[str, Any] = {
    "text": "-",
    "image": (0, (5, 1.2)),
    "video": (0, (4, 1, 1, 1)),
    "audio": (0, (1, 1)),
    TOGETHER: (0, (1, 1.4)),
}
_MARKS = {"text": "o", "image": "s", "video": "D", "audio": "^", TOGETHER: "x"}
_SAID = {"text": "text", "image": "pictures", "video": "video", "audio": "audio", TOGETHER: "all tokens together"}

_STYLE = {
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "madakv",
}


def require_matplotlib() -> None:
    """Raise `MissingExtraError` unless figures can be drawn."""
    require("plots need", "plot", "matplotlib")


def draw(figure: Concentration | Preference | Layers | Tasks, title: str, stem: Path) -> None:
    """Draw one figure.

    Args:
        figure: its numbers.
        title: what was measured.
        stem: of the two files, `.png` and `.svg`.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    with _canvas() as canvas:
        if isinstance(figure, Concentration):
            _concentration(figure, canvas)
        elif isinstance(figure, Preference):
            _preference(figure, canvas)
        elif isinstance(figure, Layers):
            _layers(figure, canvas)
        else:
            _tasks(figure, canvas)
        canvas.suptitle(title, fontsize=7.5, fontweight="bold")
        canvas.savefig(stem.with_suffix(".png"), dpi=300)
        canvas.savefig(stem.with_suffix(".svg"), metadata={"Date": None})


@contextmanager
def _canvas() -> Iterator[Figure]:
    # Not pyplot, whose figures and backend are everybody's.
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        yield Figure(layout="constrained")


def _concentration(data: Concentration, canvas: Figure) -> None:
    canvas.set_size_inches(_WIDTH, 3.0)
    axes = canvas.subplots()
    axes.axhline(THETA, color="#808080", linewidth=0.6)
    for name, curve in data.curves.items():
        _line(axes, data.shares, curve.held, name, label=_need_said(name, curve.need), dots=False)
        if curve.need.median is not None:
            axes.plot(curve.need.median, THETA, _MARKS[name], color=_COLOURS[name], markersize=4, zorder=4)
    _percent(axes.xaxis)
    _percent(axes.yaxis)
    axes.set(xlim=(0, 1), ylim=(0, 1.01))
    axes.set_xlabel("of a modality's tokens, the most attended")
    axes.set_ylabel("hold of the question's attention to it")
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.legend(loc="lower right", title=f"{THETA:.0%} is held by (quartiles over heads)", title_fontsize=7)


def _need_said(name: str, need: Spread) -> str:
    if need.median is None or need.low is None or need.high is None:
        return _SAID[name]
    return f"{_SAID[name]}: {need.median:.0%} ({need.low:.0%} to {need.high:.0%})"


def _preference(data: Preference, canvas: Figure) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    plain, corrected = np.array(data.plain), np.array(data.per_token)
    L, H = plain.shape
    beside = L <= 12
    cell = (_WIDTH - 0.6) / (2 * L if beside else L)
    height = min(max(cell, 0.07), 0.2) * H
    canvas.set_size_inches(_WIDTH, (height if beside else 2 * height + 0.5) + 1.35)
    other = _joined(data.other)
    colours = LinearSegmentedColormap.from_list("to", [_COLOURS["text"], "#F7F7F7", _COLOURS["image"]])
    panels = canvas.subplots(1 if beside else 2, 2 if beside else 1, sharex=True, sharey=True).flat
    told = (f"share of attention\n({other}: {data.prompt:.0%} of tokens)", "corrected: per token\n(as if half were)")
    mesh = None
    for axes, values, said in zip(panels, (plain, corrected), told, strict=True):
        mesh = axes.pcolormesh(
            values.T, cmap=colours, vmin=0, vmax=1, edgecolors="white", linewidth=0.5 if L * H <= 400 else 0.1
        )
        axes.set_title(said)
        axes.set_xlabel("layer")
        axes.set_xticks(*_ticks(data.layers))
        axes.set_yticks(*_ticks(range(H)))
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        if min(cell, height / H) * 72 >= 11:
            _numbers(axes, values)
        if not beside or axes.get_subplotspec().is_first_col():
            axes.set_ylabel("KV head")
    bar = canvas.colorbar(mesh, ax=canvas.axes, location="bottom", aspect=40, shrink=0.9)
    bar.set_ticks([0, 0.25, 0.5, 0.75, 1], labels=["all to text", "25%", "50%", "75%", f"all to {other}"])
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=2)


def _numbers(axes: Axes, values: Any) -> None:
    """Write each cell's percentage into it, in what can be read on its colour."""
    for (layer, head), value in np.ndenumerate(values):
        colour = "white" if abs(value - 0.5) > 0.33 else "black"
        axes.text(layer + 0.5, head + 0.5, f"{100 * value:.0f}", ha="center", va="center", fontsize=5.5, color=colour)


def _ticks(names: Sequence[int]) -> tuple[list[float], list[str]]:
    """Places and labels of cells, at most ten of them."""
    step = next(step for step in (1, 2, 4, 5, 8, 10, 16, 20, 50, 100, 1000) if len(names) / step <= 10)
    return [place + 0.5 for place in range(0, len(names), step)], [str(name) for name in names[::step]]


def _layers(data: Layers, canvas: Figure) -> None:
    from matplotlib.ticker import MaxNLocator

    canvas.set_size_inches(_WIDTH, 2.8)
    axes = canvas.subplots()
    for name, demands in data.demands.items():
        _line(axes, data.layers, [demand.spread for demand in demands], name, label=_SAID[name], dots=True)
        heads = len(demands[0].heads)
        if heads * len(demands) <= 100:
            for layer, demand in zip(data.layers, demands, strict=True):
                axes.plot([layer] * heads, demand.heads, ".", color=_COLOURS[name], markersize=2.5, alpha=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _percent(axes.yaxis)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("layer")
    axes.set_ylabel(f"entries that hold {THETA:.0%} of a head's\nattention, share of the prompt")
    axes.grid(alpha=0.25, linewidth=0.5)
    canvas.legend(loc="outside lower center", ncols=3, handlelength=2.6)


def _tasks(data: Tasks, canvas: Figure) -> None:
    names, tasks = list(data.tasks), list(data.tasks.values())
    canvas.set_size_inches(_WIDTH, 1.35 + 0.24 * len(tasks))
    axes = canvas.subplots()
    other = _joined(data.other)
    rows = np.arange(len(tasks))
    axes.hlines(rows, 0, 1, color="#E0E0E0", linewidth=0.5, zorder=0)
    axes.plot([task.prompt for task in tasks], rows, "|", color="#404040", markersize=9, label="the prompt's tokens")
    axes.plot(
        [task.attention for task in tasks],
        rows,
        "D",
        color="#56B4E9",
        markersize=3.5,
        markerfacecolor="white",
        label="the question's attention",
    )
    kept = np.array([task.kept for task in tasks])
    ends = np.array([task.interval or (task.kept, task.kept) for task in tasks]).T
    axes.errorbar(
        kept,
        rows,
        xerr=np.abs(ends - kept),
        fmt="o",
        color=_COLOURS["image"],
        markersize=4,
        capsize=2,
        linewidth=1,
        label="what is kept",
    )
    axes.set_yticks(rows, names)
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0, 1), ylim=(len(tasks) - 0.5, -0.5))
    _percent(axes.xaxis)
    axes.set_xlabel(f"of which is {other}")
    canvas.legend(loc="outside lower center", ncols=3, handletextpad=0.2, columnspacing=0.8)


def _line(axes: Axes, x: Sequence[float], spreads: Sequence[Spread], name: str, *, label: str, dots: bool) -> None:
    """A median with its quartiles."""
    median, low, high = (
        np.array([getattr(spread, part) for spread in spreads], dtype=float) for part in ("median", "low", "high")
    )
    colour = _COLOURS[name]
    axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(
        x,
        median,
        color=colour,
        linestyle=_DASHES[name],
        linewidth=1.4,
        marker=_MARKS[name] if dots else None,
        markersize=3.5,
        label=label,
    )


def _percent(axis: Any) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _joined(kinds: Sequence[str]) -> str:
    return " and ".join(_SAID[kind] for kind in kinds)
