"""From rows to averages with intervals."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING, Any, Literal

from madakv.evaluation.records import Row
from madakv.extras import require

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RESAMPLES = 2000
_SEED = 0

Column = Literal["dataset", "group", "category", "level"]


@dataclass(frozen=True)
class Line:
    """One method at one budget on one model, by one scorer.

    Attributes:
        model: as in its rows.
        label: the method without its budget.
        budget: as asked for.
        scorer: whose scores these are.
        answers: how many rows, failed ones included.
        samples: their number and names, for telling whether two lines are about the same ones.
        failed: how many of them are failures; these score 0.
        datasets: mean score per dataset.
        groups, categories, levels: mean over the datasets of a group or category, or what they have of a level.
        average: mean over the datasets that count; None if none does.
        left_out: datasets that do not count, in the average and in `of_full`: the full cache answers too few of them.
        of_full: average over the full cache's average on the samples that both have answered; None without any.
        paired: how many samples these are.
        interval: 95 % interval of `of_full`, by paired bootstrap over documents.
        kv_share: live bytes over a full cache's, mean over answers; None if all failed.
    """

    model: str
    label: str
    budget: float | int
    scorer: str
    answers: int
    samples: str
    failed: int
    datasets: dict[str, float]
    groups: dict[str, float]
    categories: dict[str, float]
    levels: dict[str, float]
    average: float | None
    of_full: float | None
    interval: tuple[float, float] | None
    paired: int
    kv_share: float | None
    left_out: tuple[str, ...] = ()


def summarise(rows: Sequence[Row], counts_from: float = 0.0) -> list[Line]:
    """One line per model, scorer, method and budget, in the order of first appearance; rows without scores in none.

    Args:
        rows: of any models and methods.
        counts_from: a dataset counts where the model's full cache scores that much, or has not been asked.
    """
    lines = []
    for model, scorer in dict.fromkeys((row.model, name) for row in rows for name in row.scores):
        here = [row for row in rows if row.model == model and scorer in row.scores]
        full = [row for row in here if row.label == "full"]
        known = means(full, scorer, "dataset")
        left_out = tuple(name for name, score in known.items() if score < counts_from)
        for method in dict.fromkeys(row.method for row in here):
            own = [row for row in here if row.method == method]
            counted = [row for row in own if row.dataset not in left_out]
            pairs = paired(counted, full, _scored_by(scorer))
            ratio = ratio_of(pairs)
            datasets = means(own, scorer, "dataset")
            lines.append(
                Line(
                    model=model,
                    label=own[0].label,
                    budget=own[0].budget,
                    scorer=scorer,
                    answers=len(own),
                    samples=_digest(own),
                    failed=sum(row.error is not None for row in own),
                    datasets=datasets,
                    groups=means(own, scorer, "group"),
                    categories=means(own, scorer, "category"),
                    levels=means(counted, scorer, "level"),
                    average=mean(means(counted, scorer, "dataset").values()) if counted else None,
                    of_full=ratio[0] if ratio else None,
                    interval=ratio[1] if ratio else None,
                    paired=len(pairs),
                    kv_share=kv_share(own),
                    left_out=tuple(name for name in left_out if name in datasets),
                )
            )
    return lines


def means(rows: Sequence[Row], scorer: str, column: Column) -> dict[str, float]:
    """Mean score per value of a column: the mean over datasets of their means there."""
    scores: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        scores.setdefault(getattr(row, column), {}).setdefault(row.dataset, []).append(row.scores[scorer])
    return {name: mean(mean(own) for own in datasets.values()) for name, datasets in scores.items()}


def kv_share(rows: Sequence[Row]) -> float | None:
    """Live bytes over a full cache's, mean over answers; None if all failed."""
    shares = [row.kv_bytes / row.kv_bytes_full for row in rows if row.kv_bytes_full]
    return mean(shares) if shares else None


def _digest(rows: Sequence[Row]) -> str:
    names = "\n".join(sorted(f"{row.dataset} {row.sample}" for row in rows))
    return f"{len(rows)}-{hashlib.sha256(names.encode()).hexdigest()[:8]}"


Pairs = dict[tuple[str, str], tuple[str, float, float]]
"""Document and what both methods are worth, by dataset and sample."""


def paired(own: Sequence[Row], other: Sequence[Row], worth: Callable[[Row], float]) -> Pairs:
    """The samples that both methods have answered, in the same order whichever process answered what."""
    held = {row.asked: worth(row) for row in other if row.error is None}
    both = [row for row in own if row.error is None and row.asked in held]
    return {row.asked: (row.document, worth(row), held[row.asked]) for row in sorted(both, key=_asked)}


def _asked(row: Row) -> tuple[str, str]:
    return row.asked


def ratio_to(own: Sequence[Row], other: Sequence[Row], scorer: str) -> tuple[float, tuple[float, float]] | None:
    """Average score over that of another method on the same samples, and its 95 % interval.

    Documents are drawn with replacement, each with all its questions, the same for both methods, and as many as there
    are of those that the same datasets ask about.

    Args:
        own, other: rows of two methods; samples that only one of them has answered are left out.
        scorer: whose scores.

    Returns:
        None if the other method never scores.
    """
    return ratio_of(paired(own, other, _scored_by(scorer)))


def _scored_by(scorer: str) -> Callable[[Row], float]:
    return lambda row: row.scores[scorer]


def ratio_of(pairs: Pairs) -> tuple[float, tuple[float, float]] | None:
    """As `ratio_to`, of what two methods are worth on the same samples."""
    require_numpy()
    import numpy as np

    if not pairs:
        return None
    dataset_at = {name: i for i, name in enumerate(dict.fromkeys(dataset for dataset, _ in pairs))}
    document_at = {name: i for i, name in enumerate(dict.fromkeys(document for document, _, _ in pairs.values()))}
    # Per document and dataset: how many answers, and the sums of both methods' scores.
    sums = np.zeros((3, len(document_at), len(dataset_at)))
    for (dataset, _), (document, mine, theirs) in pairs.items():
        sums[:, document_at[document], dataset_at[dataset]] += 1, mine, theirs
    answers, mine, theirs = sums.sum(1)
    whole = float((mine / answers).mean()), float((theirs / answers).mean())
    if not whole[1] > 0:
        return None
    drawn = _resampled(sums)
    averages = (drawn[:, 1:] / drawn[:, :1]).mean(-1)
    averages = averages[averages[:, 1] > 0]
    low, high = np.percentile(averages[:, 0] / averages[:, 1], [2.5, 97.5])
    return whole[0] / whole[1], (float(low), float(high))


def require_numpy() -> None:
    """Raise `MissingExtraError` unless intervals can be computed."""
    require("intervals need", "eval", "numpy")


def _resampled(sums: NDArray[np.float64]) -> NDArray[Any]:
    """[3, documents, datasets] to [RESAMPLES, 3, datasets]: documents drawn among those of equal datasets."""
    import numpy as np

    rng = np.random.default_rng(_SEED)
    drawn = np.zeros((RESAMPLES, 3, sums.shape[2]))
    patterns, pattern_of = np.unique(sums[0] > 0, axis=0, return_inverse=True)
    for pattern in range(len(patterns)):
        own = sums[:, pattern_of.reshape(-1) == pattern]
        count = own.shape[1]
        times = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
        drawn += np.tensordot(times.astype(float), own, axes=(1, 1))
    return drawn
