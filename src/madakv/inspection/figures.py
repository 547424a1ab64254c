"""Draws the paper's analysis (MadaKV, ACL 2025, figures 2 and 5) of any model: PNG and SVG, as wide as a column.

Colours are Okabe and Ito's, which people with any colour vision tell apart; lines differ in their dashes, too. In
SVG files text is text. Names of models and tasks are text as well, never TeX.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from madakv.extras import require
from madakv.inspection.analysis import SUM, TOGETHER, Concentration, Layers, Preference, Share, Spread, Tasks
from madakv.inspection.statistics import THETA

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

_WIDTH = 3.4
"""Inches: a column of a paper."""
_LETTERS = 46
"""That fit into it."""
_LINE = 0.13
"""Inches, of text."""

_DARK = "#404040"
_COLOURS = {"text": "#0072B2", "image": "#D55E00", "video": "#CC79A7", "audio": "#009E73"}
_COLOURS |= {TOGETHER: _DARK, SUM: _DARK}
_DASHES: dict[str, Any] = {
    "text": "-",
    "image": (0, (5, 1.2)),
    "video": (0, (4, 1, 1, 1)),
    "audio": (0, (1, 1)),
    TOGETHER: (0, (1, 1.4)),
    SUM: (0, (1, 1.4)),
}
_MARKS = {"text": "o", "image": "s", "video": "D", "audio": "^", TOGETHER: "x", SUM: "x"}
_SAID = {"text": "text", "image": "pictures", "video": "video", "audio": "audio"}
_SAID |= {TOGETHER: "all tokens as one", SUM: "sum: the layer's demand"}

_STYLE: dict[Any, Any] = {
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
        lines = wrap(title, _LETTERS)
        canvas.suptitle("\n".join(lines), fontsize=7.5, fontweight="bold")
        canvas.set_figheight(canvas.get_figheight() + _LINE * (len(lines) - 1))
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
            axes.plot(
                curve.need.median, THETA, _MARKS[name], color=_COLOURS[name], markersize=4, zorder=4, clip_on=False
            )
    _percent(axes.xaxis)
    _percent(axes.yaxis)
    axes.set(xlim=(0, 1), ylim=(0, 1.01))
    axes.set_xlabel("share of a modality's tokens, most attended first")
    axes.set_ylabel("share of its attention that they hold")
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.legend(loc="lower right", title=f"{THETA:.0%} is held by (quartiles over heads)", title_fontsize=7)


def _need_said(name: str, need: Spread) -> str:
    if need.median is None or need.low is None or need.high is None:
        return _SAID[name]
    return f"{_SAID[name]}: {need.median:.0%} ({need.low:.0%} to {need.high:.0%})"


def _preference(data: Preference, canvas: Figure) -> None:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.ticker import PercentFormatter

    values = np.array([data.plain, data.per_token])
    _, L, H = values.shape
    # Long rows of few heads stand one above the other.
    beside = max(12, 3 * H) >= L
    cell = (_WIDTH - 0.6) / (2 * L if beside else L)
    height = min(cell, 0.2) * H
    canvas.set_size_inches(_WIDTH, (height if beside else 2 * height + 0.5) + 1.35)
    other = _joined(data.other)
    # A bar of more colours would not be drawn as vectors.
    colours = LinearSegmentedColormap.from_list("to", [_COLOURS["text"], "#F7F7F7", _COLOURS["image"]], N=48)
    rows, columns = (1, 2) if beside else (2, 1)
    panels = canvas.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    told = (f"share of attention\n(of tokens: {data.prompt:.0%})", "corrected: per token\n(50%: as much as text)")
    meshes = [
        axes.pcolormesh(own.T, cmap=colours, vmin=0, vmax=1, edgecolors="white", linewidth=0.5 if cell > 0.07 else 0)
        for axes, own in zip(panels, values, strict=True)
    ]
    for axes, own, said in zip(panels, values, told, strict=True):
        axes.set_title(said)
        axes.set_xlabel("layer")
        axes.set_xticks(*_ticks(data.layers))
        axes.set_yticks(*_ticks(range(H)))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        if cell * 72 >= 11:
            _numbers(axes, own, colours)
        axes.set_ylabel("KV head")
        axes.label_outer()
    bar = canvas.colorbar(meshes[0], ax=canvas.axes, location="bottom", aspect=40, shrink=0.9)
    bar.ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    bar.set_label(f"to {other}; the rest to text")
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=2)


def _numbers(axes: Axes, values: Any, colours: Colormap) -> None:
    """Write each cell's percentage into it, in black or white, whichever is read better."""
    for (layer, head), value in np.ndenumerate(values):
        if np.isnan(value):
            continue
        red, green, blue, _ = colours(value)
        dark = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 < 0.18
        colour = "white" if dark else "black"
        axes.text(layer + 0.5, head + 0.5, f"{100 * value:.0f}", ha="center", va="center", fontsize=6, color=colour)


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
        if name != SUM and heads * len(demands) <= 100:
            for layer, demand in zip(data.layers, demands, strict=True):
                axes.plot([layer] * heads, demand.heads, ".", color=_COLOURS[name], markersize=2.5, alpha=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _percent(axes.yaxis)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("layer")
    axes.set_ylabel(f"entries that hold {THETA:.0%} of attention\nto a modality, share of the prompt")
    axes.grid(alpha=0.25, linewidth=0.5)
    canvas.legend(loc="outside lower center", ncols=3, handlelength=2.6)


def _tasks(data: Tasks, canvas: Figure) -> None:
    names, tasks = list(data.tasks), list(data.tasks.values())
    kept_by = wrap(f"(kept by {data.method})", _LETTERS)
    canvas.set_size_inches(_WIDTH, 1.1 + 0.24 * len(tasks) + _LINE * len(kept_by))
    axes = canvas.subplots()
    rows = np.arange(len(tasks))
    axes.hlines(rows, 0, 1, color="#E0E0E0", linewidth=0.5, zorder=0)
    prompt = [task.prompt.mean for task in tasks]
    axes.plot(prompt, rows, "|", color="#808080", markersize=10, markeredgewidth=1.5, label="tokens of the prompt")
    _shares(axes, [task.attention for task in tasks], "question's attention", fmt="D", color=_DARK, mfc="white")
    _shares(axes, [task.kept for task in tasks], "kept entries", fmt="o", color=_COLOURS["image"])
    axes.set_yticks(rows, names)
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0, 1), ylim=(len(tasks) - 0.5, -0.5))
    _percent(axes.xaxis)
    axes.set_xlabel("\n".join([f"share that is {_joined(data.other)}", *kept_by]))
    canvas.legend(loc="outside lower center", ncols=3, handlelength=1.2, handletextpad=0.4, columnspacing=0.9)


def _shares(axes: Axes, shares: Sequence[Share], said: str, **look: Any) -> None:
    """One mark a row, with its interval."""
    means = np.array([share.mean for share in shares])
    ends = np.array([share.interval or (share.mean, share.mean) for share in shares]).T
    error = np.abs(ends - means)
    axes.errorbar(
        means, np.arange(len(shares)), xerr=error, label=said, capsize=1.8, linewidth=1, markersize=3.5, **look
    )


def _line(axes: Axes, x: Sequence[float], spreads: Sequence[Spread], name: str, *, label: str, dots: bool) -> None:
    """A median with its quartiles; of all modalities the median alone, whose quartiles would cover theirs."""
    median, low, high = (
        np.array([getattr(spread, part) for spread in spreads], dtype=float) for part in ("median", "low", "high")
    )
    colour = _COLOURS[name]
    if name not in (TOGETHER, SUM):
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
    *first, last = (_SAID[kind] for kind in kinds)
    return f"{', '.join(first)} and {last}" if first else last
