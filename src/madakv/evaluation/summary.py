"""Tables from rows."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from madakv.errors import MissingExtraError
from madakv.evaluation.records import Row

RESAMPLES = 2000
_SEED = 0


@dataclass(frozen=True)
class Line:
    """One method at one budget over one suite.

    Attributes:
        label: the method without its budget.
        budget: as asked for.
        answers: how many rows.
        accuracy: share of whole answers that are right, per kind.
        average: mean over kinds.
        of_full: average over the full cache's average on the same samples; None without a full cache.
        interval: 95 % interval of `of_full`, by paired bootstrap over documents.
        kv_share: live bytes over a full cache's, mean over rows.
    """

    label: str
    budget: float | int
    answers: int
    accuracy: dict[str, float]
    average: float
    of_full: float | None
    interval: tuple[float, float] | None
    kv_share: float


def summarise(rows: Sequence[Row]) -> list[Line]:
    """One line per method and budget, in the order of first appearance."""
    full = [row for row in rows if row.label == "full"]
    lines = []
    for method in dict.fromkeys(row.method for row in rows):
        own = [row for row in rows if row.method == method]
        kinds = dict.fromkeys(row.kind for row in own)
        accuracy = {kind: mean(row.correct for row in own if row.kind == kind) for kind in kinds}
        ratio = ratio_to(own, full) if full and {row.sample for row in own} <= {row.sample for row in full} else None
        lines.append(
            Line(
                label=own[0].label,
                budget=own[0].budget,
                answers=len(own),
                accuracy=accuracy,
                average=mean(accuracy.values()),
                of_full=ratio[0] if ratio else None,
                interval=ratio[1] if ratio else None,
                kv_share=mean(row.kv_bytes / row.kv_bytes_full for row in own),
            )
        )
    return lines


def ratio_to(own: Sequence[Row], other: Sequence[Row]) -> tuple[float, tuple[float, float]] | None:
    """Average accuracy over that of another method on the same samples, and its 95 % interval.

    Documents are drawn with replacement, each with all its questions, the same for both methods.

    Args:
        own, other: rows of two methods; samples that only one of them has are left out.

    Returns:
        None if the other method never answers right.
    """
    try:
        import numpy as np
    except ImportError as error:
        raise MissingExtraError("intervals need numpy: pip install 'madakv[eval]'") from error
    kinds = sorted({row.kind for row in own})
    documents = sorted({row.document for row in own})
    place = {(document, kind): (i, j) for i, document in enumerate(documents) for j, kind in enumerate(kinds)}
    table = np.full((2, len(documents), len(kinds)), np.nan)
    for side, rows in enumerate((own, other)):
        for row in rows:
            if (row.document, row.kind) in place:
                table[side][place[row.document, row.kind]] = row.correct
    table[:, np.isnan(table).any(0)] = np.nan
    rng = np.random.default_rng(_SEED)
    whole = np.nanmean(table, axis=1).mean(-1)
    if not whole[1] > 0:
        return None
    drawn = rng.integers(len(documents), size=(RESAMPLES, len(documents)))
    with warnings.catch_warnings():
        # A draw in which some kind does not occur has no average, and is left out.
        warnings.simplefilter("ignore", RuntimeWarning)
        means = np.array([np.nanmean(table[:, chosen], axis=1).mean(-1) for chosen in drawn])
    means = means[np.isfinite(means).all(-1) & (means[:, 1] > 0)]
    low, high = np.percentile(means[:, 0] / means[:, 1], [2.5, 97.5])
    return float(whole[0] / whole[1]), (float(low), float(high))


def markdown(lines: Sequence[Line]) -> str:
    """The lines as a Markdown table."""
    kinds = list(dict.fromkeys(kind for line in lines for kind in line.accuracy))
    head = ["method", "budget", "KV bytes", *kinds, "average", "of full (95 %)", "answers"]
    body = [
        [
            f"`{line.label}`",
            f"{line.budget:.0%}" if isinstance(line.budget, float) else str(line.budget),
            f"{line.kv_share:.1%}",
            *(f"{line.accuracy[kind]:.1%}" if kind in line.accuracy else "" for kind in kinds),
            f"**{line.average:.1%}**",
            _ratio(line),
            f"{line.answers:,}",
        ]
        for line in lines
    ]
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *body]) + "\n"


def _ratio(line: Line) -> str:
    if line.of_full is None or line.interval is None:
        return ""
    low, high = line.interval
    return f"{line.of_full:.1%} ({low:.1%} to {high:.1%})"
