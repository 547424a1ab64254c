"""Next-token loss of methods on text that follows the prompt: lower is better, so it is in no average of scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from madakv.evaluation.records import Row
from madakv.evaluation.summary import kv_share, paired, ratio_of
from madakv.markdown import budget_text, markdown_table


@dataclass(frozen=True)
class LossLine:
    """One method at one budget on one model.

    Attributes:
        model: as in its rows.
        label: the method without its budget.
        budget: as asked for.
        loss: mean over texts, in nats; None if all failed.
        of_full: over the full cache's on the texts that both have read; None without any.
        interval: 95 % interval of `of_full`, by paired bootstrap over documents.
        paired: how many texts these are.
        texts: how many rows, failed ones included.
        failed: how many of them are failures.
        kv_share: live bytes over a full cache's, mean over texts; None if all failed.
    """

    model: str
    label: str
    budget: float | int
    loss: float | None
    of_full: float | None
    interval: tuple[float, float] | None
    paired: int
    texts: int
    failed: int
    kv_share: float | None


def losses(rows: Sequence[Row]) -> list[LossLine]:
    """One line per model, method and budget, in the order of first appearance, of the rows that have no scores."""
    asked = [row for row in rows if not row.scores]
    lines = []
    for model, method in dict.fromkeys((row.model, row.method) for row in asked):
        here = [row for row in asked if row.model == model]
        own = [row for row in here if row.method == method]
        pairs = paired(own, [row for row in here if row.label == "full"], _loss)
        ratio = ratio_of(pairs)
        known = [row.loss for row in own if row.loss is not None]
        lines.append(
            LossLine(
                model=model,
                label=own[0].label,
                budget=own[0].budget,
                loss=mean(known) if known else None,
                of_full=ratio[0] if ratio else None,
                interval=ratio[1] if ratio else None,
                paired=len(pairs),
                texts=len(own),
                failed=sum(row.error is not None for row in own),
                kv_share=kv_share(own),
            )
        )
    return lines


def _loss(row: Row) -> float:
    if row.loss is None:
        raise ValueError(f"sample {row.sample} of {row.dataset} has neither scores nor a loss")
    return row.loss


def losses_table(lines: Sequence[LossLine]) -> str:
    """A line per method and budget, of one model."""
    body = [
        [
            f"`{line.label}`",
            budget_text(line.budget),
            "" if line.kv_share is None else f"{line.kv_share:.1%}",
            "" if line.loss is None else f"{line.loss:.3f}",
            ""
            if line.of_full is None or line.interval is None
            else f"{line.of_full:.3f} ({line.interval[0]:.3f} to {line.interval[1]:.3f})",
            f"{line.texts:,}",
            f"{line.failed:,}",
        ]
        for line in lines
    ]
    head = ["method", "budget", "KV bytes", "loss", "of full (95 %)", "texts", "failed"]
    return markdown_table(head, body)
