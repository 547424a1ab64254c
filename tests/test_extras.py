"""What a plain install leaves out is named where it is missing."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from madakv.errors import MissingExtraError
from madakv.evaluation import digits, documents
from madakv.evaluation.milebench.scores import score
from madakv.evaluation.plots import accuracy_over_bytes
from madakv.evaluation.summary import require_numpy
from madakv.extras import require


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: digits.make_document(0), r"handwritten digits need scikit-learn: pip install 'madakv\[eval\]'"),
        (
            lambda: documents.make_document(0, tokens=500),
            r"documents need scikit-learn: pip install 'madakv\[eval\]'",
        ),
        (lambda: score("rouge_l", "a", "a"), r"ROUGE-L needs rouge: pip install 'madakv\[eval\]'"),
        (require_numpy, r"intervals need numpy: pip install 'madakv\[eval\]'"),
        (
            lambda: accuracy_over_bytes([], "", Path("none.png")),
            r"plots need matplotlib: pip install 'madakv\[plot\]'",
        ),
    ],
)
def test_the_extra_is_named(use: Callable[[], object], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> None:
        raise PackageNotFoundError(package)

    monkeypatch.setattr("madakv.extras.distribution", missing)
    with pytest.raises(MissingExtraError, match=message):
        use()


def test_what_is_installed_is_let_through() -> None:
    require("tests need", "dev", "pytest")
