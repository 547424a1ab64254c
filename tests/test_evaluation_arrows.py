"""The evaluation is under the command line and beside the benchmarks, needs neither, and nothing below needs it."""

from __future__ import annotations

import ast
from pathlib import Path

import madakv

PACKAGE = Path(madakv.__file__).parent
MAY = ("cli", "evaluation", "integrations")
"""Rooms that may import the evaluation."""


def imported(path: Path) -> set[str]:
    """Modules of madakv that a file imports anywhere, in functions too, by what follows `madakv.`."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names += [node.module, *(f"{node.module}.{one.name}" for one in node.names)]
        elif isinstance(node, ast.Import):
            names += [one.name for one in node.names]
    return {name.removeprefix("madakv.").split(".")[0] for name in names if name.startswith("madakv.")}


def test_nothing_below_imports_the_evaluation() -> None:
    files = [path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] not in MAY]
    assert len(files) > 60
    assert [str(path) for path in files if "evaluation" in imported(path)] == []


def test_the_evaluation_imports_nothing_above_or_beside() -> None:
    files = list((PACKAGE / "evaluation").rglob("*.py"))
    assert len(files) > 30
    assert [str(path) for path in files if imported(path) & {"cli", "bench", "integrations"}] == []
