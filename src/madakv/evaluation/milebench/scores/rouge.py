"""ROUGE-L: the summary-level F of the library `rouge`, and the sequence F that it stands in for."""

from __future__ import annotations

from collections.abc import Sequence

from madakv.extras import require

OVERFLOW = "too long for MileBench's ROUGE-L, which recurses; scored by the same rule in a loop"


def require_rouge() -> None:
    """Raise `MissingExtraError` unless the library is installed."""
    require("ROUGE-L needs", "eval", "rouge")


def summary_f(prediction: str, gold: str) -> tuple[float, str | None]:
    """What the library `rouge` gives for two texts that are not empty, and why it gives nothing by itself.

    A long text overflows its recursion: then the score is that of `summary_f_in_loops`. A text of periods alone has
    no sentence: then it is 0.

    Raises:
        MissingExtraError: the library is not installed.
    """
    require_rouge()
    from rouge import Rouge  # type: ignore[import-untyped]

    for name, text in (("answer", prediction), ("right answer", gold)):
        if not _sentences(text):
            return 0.0, f"the {name} is nothing but periods, where MileBench's ROUGE-L stops"
    try:
        scores = Rouge(metrics=["rouge-l"], stats=["f"]).get_scores(prediction, gold)
    except RecursionError:
        return summary_f_in_loops(prediction, gold), OVERFLOW
    return float(scores[0]["rouge-l"]["f"]), None


def summary_f_in_loops(prediction: str, gold: str) -> float:
    """The library's F, equal to the last bit, at any length.

    Words that some sentence of the gold shares, in order, with some sentence of the prediction; each counts once,
    however often it stands there.
    """
    predicted, wanted = _sentences(prediction), _sentences(gold)
    shared: set[str] = set()
    for one in wanted:
        for other in predicted:
            shared.update(_common(one, other))
    precision = len(shared) / len({word for sentence in predicted for word in sentence})
    recall = len(shared) / len({word for sentence in wanted for word in sentence})
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))


def sequence_f(prediction: Sequence[str], gold: Sequence[str]) -> float:
    """ROUGE-L's F over whole texts, every word counted as often as it stands there; 0 if both are empty.

    The F of precision and recall of a longest common subsequence of length L is 2 L over the sum of both lengths.
    """
    total = len(prediction) + len(gold)
    return 2 * _lengths(prediction, gold)[-1][-1] / total if total else 0.0


def _sentences(text: str) -> list[list[str]]:
    # A sentence of blanks has one word, which is empty, as in the library.
    return [sentence.split() or [""] for sentence in text.split(".") if sentence]


def _lengths(one: Sequence[str], other: Sequence[str]) -> list[list[int]]:
    """Lengths of longest common subsequences of the first i and the first j words."""
    table = [[0] * (len(other) + 1)]
    for word in one:
        above, row = table[-1], [0]
        for j, candidate in enumerate(other):
            row.append(above[j] + 1 if word == candidate else max(above[j + 1], row[j]))
        table.append(row)
    return table


def _common(one: Sequence[str], other: Sequence[str]) -> list[str]:
    """A longest common subsequence, from its end; among several the library's, as sets of words can differ."""
    table, i, j = _lengths(one, other), len(one), len(other)
    shared = []
    while i and j:
        if one[i - 1] == other[j - 1]:
            shared.append(one[i - 1])
            i, j = i - 1, j - 1
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return shared
