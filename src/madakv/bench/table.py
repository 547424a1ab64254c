"""Rows as a table for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from madakv.bench.results import ResultFile, Row
from madakv.markdown import markdown_table, size_text

Format = Callable[[float], str]

_LEAST_WIDTH = 150
"""Characters that the widest table takes; wrapped figures are no use to anyone."""


def _ms(value: float) -> str:
    return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"


def _times(value: float) -> str:
    return f"{value:.2f}x"


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _rate(value: float) -> str:
    return f"{value / 1e9:,.1f}"


def _plain(value: float) -> str:
    return f"{value:,.1f}"


def _power(value: float) -> str:
    return f"N^{value:.2f}"


def _share(value: float) -> str:
    return f"{value:.3f}"


def _layers(value: float) -> str:
    return f"{value:+.2f}"


_ERROR = ("error", "error", lambda value: f"{value:.1g}")

COLUMNS: dict[str, list[tuple[str, str, Format]]] = {
    "decode": [
        ("ms/token", "ms", _ms),
        ("tokens/s", "tokens_per_s", _plain),
        ("over Dynamic", "speedup", _times),
        ("over Static", "speedup_static", _times),
        ("floor allows", "floor_speedup", _times),
        ("floor ms", "floor_ms", _ms),
        ("time/floor", "over_floor", _times),
        ("KV live", "kv_bytes", size_text),
        ("kept", "kept_share", _percent),
        ("longest head", "longest_head", _times),
        _ERROR,
    ],
    "prefill": [
        ("ms", "ms", _ms),
        ("tokens/s", "tokens_per_s", _plain),
        ("added", "added", lambda value: f"{value:+.1%}"),
        ("growth", "growth", _power),
        ("evict ms", "evict_ms", _ms),
        ("of prefill", "evict_share", _percent),
        ("of floor", "evict_floor_share", _percent),
        ("growth", "evict_growth", _power),
        ("floor ms", "floor_ms", _ms),
        ("time/floor", "over_floor", _times),
        _ERROR,
    ],
    "memory": [
        ("KV", "kv_bytes", size_text),
        ("of full", "kv_ratio", _percent),
        ("of budget", "over_budget", _share),
        ("KV/floor", "over_floor", _times),
        ("KV later", "kv_bytes_later", size_text),
        ("slack", "slack", _percent),
        ("peak", "peak", size_text),
        ("of full", "peak_ratio", _percent),
        ("cache +L", "work_layers", _layers),
        ("process +L", "extra_layers", _layers),
    ],
    "kernel": [
        ("ms", "ms", lambda value: f"{value:,.3f}"),
        ("GB/s", "bytes_per_s", _rate),
        ("of bandwidth", "bandwidth_share", _percent),
        ("against even", "speedup", _times),
        ("floor ms", "floor_ms", lambda value: f"{value:,.3f}"),
        ("time/floor", "over_floor", _times),
        _ERROR,
    ],
}
"""Heading, name of the figure, format; by command."""


def show(console: Console, command: str, results: ResultFile) -> None:
    """Print the rates of the machine, the rows, and what is missing; the console reads no markup."""
    console.width = max(console.width, _LEAST_WIDTH)
    before, after = results.content["rates"], results.content["rates_after"]
    console.print(
        f"read {_rate(before['bandwidth'])} GB/s (afterwards {_rate(after['bandwidth'])}), "
        f"matrix product {before['matrix'] / 1e12:.2f} TFLOP/s (afterwards {after['matrix'] / 1e12:.2f}), "
        f"{results.content['machine']}, {results.content['threads']} threads",
    )
    console.print(table(command, results.rows))
    for line in results.content.get("missing", ()):
        console.print(line)


def table(command: str, rows: Sequence[Row]) -> Table:
    """One line per row, the cases set apart; what all cases have in common is the title.

    Args:
        command: decode, prefill, memory or kernel.
        rows: of that command, at least one.
    """
    title, head, body = _laid_out(command, rows)
    words = head.index(_contender(command))
    made = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for number, heading in enumerate(head):
        made.add_column(heading, justify="left" if number == words else "right", no_wrap=True)
    for number, row in enumerate(rows):
        if number and row.case != rows[number - 1].case:
            made.add_section()
        made.add_row(*body[number])
    return made


def page_table(command: str, rows: Sequence[Row]) -> str:
    """The same in Markdown, its title above it; columns without a figure are left out."""
    title, head, body = _laid_out(command, rows)
    filled = [number for number in range(len(head)) if any(cells[number] for cells in body)]
    kept = [[cells[number] for number in filled] for cells in [head, *body]]
    words = {kept[0].index(_contender(command))}
    return f"{title}:\n\n{markdown_table(kept[0], kept[1:], words=words)}"


def _contender(command: str) -> str:
    return "op" if command == "kernel" else "cache"


def _laid_out(command: str, rows: Sequence[Row]) -> tuple[str, list[str], list[list[str]]]:
    """Title, head and a line of cells for each row."""
    first = rows[0].case
    varying = [name for name in first if any(row.case[name] != first[name] for row in rows)]
    title = ", ".join(f"{name} {value}" for name, value in first.items() if name not in varying)
    head = [*varying, _contender(command), *(heading for heading, _, _ in COLUMNS[command])]
    body = [[*(str(row.case[name]) for name in varying), row.contender, *_cells(command, row)] for row in rows]
    return title, head, body


def _cells(command: str, row: Row) -> list[str]:
    columns = COLUMNS[command]
    if row.refused is not None:
        return ["refused", *[""] * (len(columns) - 1)]
    return [form(row.figures[name]) if name in row.figures else "" for _, name, form in columns]
