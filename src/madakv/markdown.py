"""How figures and tables are written, for the command line and for pages."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence


def as_percent(values: Mapping[str, float], columns: Sequence[str]) -> list[str]:
    """One cell per column; empty where there is no value."""
    return [f"{values[name]:.1%}" if name in values else "" for name in columns]


def budget_text(budget: float | int) -> str:
    """A share in percent, or entries per head."""
    return f"{100 * budget:g}%" if isinstance(budget, float) else str(budget)


def share_within(share: str, low: float, high: float) -> str:
    """A share as it is to be read, and the interval around it in whole percent."""
    return f"{share} ({100 * low:.0f} to {100 * high:.0f})"


def size_text(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.2f} GiB"


def markdown_table(head: Sequence[str], body: Sequence[Sequence[str]], *, words: Collection[int] = (0,)) -> str:
    """A table; columns of `words` are aligned to the left, those of figures to the right."""
    rule = ["---" if number in words else "---:" for number in range(len(head))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *body]) + "\n"
