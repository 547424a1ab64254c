"""What an answer is worth: twice, as MileBench's own program has it and as one would want it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from madakv.errors import ConfigurationError
from madakv.evaluation.milebench.scores import official, strict

METRICS = ("accuracy", "rouge_l", "needle", "contains")

__all__ = ["METRICS", "Score", "score"]


@dataclass(frozen=True)
class Score:
    """One answer's scores, in [0, 1].

    Attributes:
        official: what MileBench's program gives, faults included; 0 where it would stop with an error.
        strict: without those faults.
        fault: why a scorer could not work, or MileBench's program would have stopped; None if all went well.
    """

    official: float
    strict: float
    fault: str | None = None


def score(metric: str, prediction: str, gold: str, choices: Sequence[str] = ()) -> Score:
    """Score one answer.

    Args:
        metric: `accuracy` (multiple choice), `rouge_l`, `needle` or `contains`.
        prediction: the model's words, as generated.
        gold: the right answer; for `accuracy` the text of an option, not its letter.
        choices: the options' texts in the order shown; for `accuracy` only.

    Raises:
        ConfigurationError: an unknown metric.
        MissingExtraError: `rouge_l` without its library.
    """
    if metric not in METRICS:
        raise ConfigurationError(f"unknown metric {metric!r}; known are {', '.join(METRICS)}")
    outcomes = {}
    for module in (official, strict):
        if metric == "accuracy":
            outcomes[module] = module.accuracy(prediction, gold, choices)
        else:
            outcomes[module] = getattr(module, metric)(prediction, gold)
    faults = dict.fromkeys(fault for _, fault in outcomes.values() if fault)
    return Score(outcomes[official][0], outcomes[strict][0], "; ".join(faults) or None)
