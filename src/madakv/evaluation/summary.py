"""Tables from rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from madakv.evaluation.records import Row


@dataclass(frozen=True)
class Line:
    """One method over one suite.

    Attributes:
        method: repr, budget included.
        answers: how many rows.
        accuracy: share of whole answers that are right, per kind.
        average: mean over kinds.
        kv_share: live bytes over a full cache's, mean over rows.
    """

    method: str
    answers: int
    accuracy: dict[str, float]
    average: float
    kv_share: float


def summarise(rows: Sequence[Row]) -> list[Line]:
    """One line per method, in the order of first appearance."""
    lines = []
    for method in dict.fromkeys(row.method for row in rows):
        own = [row for row in rows if row.method == method]
        kinds = dict.fromkeys(row.kind for row in own)
        accuracy = {kind: mean(row.correct for row in own if row.kind == kind) for kind in kinds}
        lines.append(
            Line(
                method=method,
                answers=len(own),
                accuracy=accuracy,
                average=mean(accuracy.values()),
                kv_share=mean(row.kv_bytes / row.kv_bytes_full for row in own),
            )
        )
    return lines


def markdown(lines: Sequence[Line]) -> str:
    """The lines as a Markdown table."""
    kinds = list(dict.fromkeys(kind for line in lines for kind in line.accuracy))
    head = ["method", "KV bytes", *kinds, "average", "answers"]
    body = [
        [
            f"`{line.method}`",
            f"{line.kv_share:.1%}",
            *(f"{line.accuracy[kind]:.1%}" if kind in line.accuracy else "" for kind in kinds),
            f"**{line.average:.1%}**",
            f"{line.answers:,}",
        ]
        for line in lines
    ]
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *body]) + "\n"
