"""The tables of a report, as Markdown: from lines of one model and one scorer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from madakv.evaluation.milebench.catalogue import CATEGORIES
from madakv.evaluation.paper import AVERAGE, HALVES, PAPER_SCORER, TABLE_1, TABLE_1_BUDGET, TABLE_3
from madakv.evaluation.summary import Line
from madakv.markdown import as_percent, budget_text, markdown_table

UNEQUAL = "**These lines are not about the same samples**: some have answered more than others."
LEVELS = ("few", "medium", "many")
NONE_COUNTS = "-"
"""Stands for an average over no dataset."""


def methods_by_dataset(lines: Sequence[Line]) -> str:
    """A line per method and budget, a column per dataset; lines of one model and scorer."""
    columns = list(dict.fromkeys(name for line in lines for name in line.datasets))
    left_out = dict.fromkeys(name for line in lines for name in line.left_out)
    failures = any(line.failed for line in lines)
    named = [f"({name})" if name in left_out else name for name in columns]
    head = ["method", "budget", "KV bytes", *named, AVERAGE, "of full (95 %)", "answers"]
    body = [
        [
            f"`{line.label}`",
            budget_text(line.budget),
            "" if line.kv_share is None else f"{line.kv_share:.1%}",
            *as_percent(line.datasets, columns),
            f"**{_average(line)}**",
            _ratio(line),
            f"{line.answers:,}",
            *([f"{line.failed:,}"] if failures else []),
        ]
        for line in lines
    ]
    table = markdown_table([*head, *(["failed"] if failures else [])], body)
    if left_out:
        table += f"\nIn brackets, and in no average, since the full cache has too few right: {', '.join(left_out)}.\n"
    return table + (f"\n{UNEQUAL}\n" if len({line.samples for line in lines}) > 1 else "")


def average_over_budgets(lines: Sequence[Line]) -> str:
    """A line per method, a column per budget; the full cache's average stands in every column."""
    budgets = list(dict.fromkeys(line.budget for line in lines if line.label != "full"))
    whole = [_average(line) for line in lines if line.label == "full"]
    body = []
    for label in dict.fromkeys(line.label for line in lines):
        found = {line.budget: _average(line) for line in lines if line.label == label}
        values = [whole[0] if label == "full" else found.get(budget, "") for budget in budgets]
        body.append([f"`{label}`", *values])
    return markdown_table(["method", *(budget_text(budget) for budget in budgets)], body)


def beside_the_paper(lines: Sequence[Line]) -> str:
    """Our figures over the paper's, for the methods and datasets that both have; empty if there are none."""
    at = {line.label: line for line in lines if line.label == "full" or line.budget == TABLE_1_BUDGET}
    columns = [name for name in TABLE_1["full"] if any(name in line.datasets for line in lines)]
    labels = [label for label in TABLE_1 if label in at] if columns else []
    body = []
    for label in labels:
        here = at[label]
        body.append([f"`{label}`, here", *as_percent(here.datasets, columns), _average(here)])
        theirs = [f"{TABLE_1[label][name]:.2f}%" for name in [*columns, AVERAGE]]
        body.append([f"`{label}`, paper (LLaVA-v1.5-7B)", *theirs])
    if not body:
        return ""
    count = len(at[labels[0]].datasets)
    table = markdown_table(["method", *columns, "average over all datasets"], body)
    return f"{table}\nOurs is the average over the {count} datasets that were run, the paper's over all of its tasks."


def ablation(lines: Sequence[Line]) -> str:
    """MPA and HCC alone and together, at every budget, and what the paper has; empty without `mpa` or `hcc`."""
    own = [line for line in lines if line.label in HALVES]
    if not {"mpa", "hcc"} & {line.label for line in own}:
        return ""
    columns = list(dict.fromkeys(name for line in own for name in line.datasets))
    body = [
        [
            f"`{line.label}`",
            *HALVES[line.label],
            budget_text(line.budget),
            *as_percent(line.datasets, columns),
            f"**{_average(line)}**",
        ]
        for line in sorted(own, key=lambda line: (-line.budget, list(HALVES).index(line.label)))
    ]
    paper = next(iter(TABLE_3.values()))
    if own[0].scorer == PAPER_SCORER and set(paper) & set(columns):
        for label, figures in TABLE_3.items():
            cells = [f"{figures[name]:.2f}%" if name in figures else "" for name in columns]
            body.append([f"`{label}`, paper", *HALVES[label], budget_text(TABLE_1_BUDGET), *cells, ""])
    return markdown_table(["method", "MPA", "HCC", "budget", *columns, AVERAGE], body)


def by_column(lines: Sequence[Line], values: Sequence[Mapping[str, float]]) -> str:
    """A line per method and budget, a column per name; `values` holds those of each line."""
    columns = sorted({name for own in values for name in own}, key=_in_order)
    body = [
        [f"`{line.label}`", budget_text(line.budget), *as_percent(own, columns)]
        for line, own in zip(lines, values, strict=True)
    ]
    return markdown_table(["method", "budget", *columns], body)


def _in_order(name: str) -> tuple[int, int, str]:
    """Levels from few to many or by number, MileBench's categories and groups in its order, others by name."""
    if name in LEVELS:
        return 0, LEVELS.index(name), name
    if name.isdecimal():
        return 0, int(name), name
    letters = "".join(CATEGORIES)
    return 1, letters.index(name[0]) if re.fullmatch(rf"[{letters}](-\d)?", name) else len(letters), name


def _average(line: Line) -> str:
    return NONE_COUNTS if line.average is None else f"{line.average:.1%}"


def _ratio(line: Line) -> str:
    if line.of_full is None or line.interval is None:
        return ""
    low, high = line.interval
    fewer = f" on {line.paired:,}" if line.paired < line.answers else ""
    return f"{line.of_full:.1%} ({low:.1%} to {high:.1%}){fewer}"
