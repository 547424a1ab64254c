"""The house: every room imports from those below it alone, and no two files import each other in a circle."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "madakv"

FLOORS = [
    {"errors"},
    {"modality", "native", "extras", "markdown", "question", "pictures", "prompts", "fitting", "model_files"},
    {"backend"},
    {"plan", "scoring", "linears", "published", "model_weights"},
    {"cache", "budget", "merge", "bundled"},
    {"attention", "methods", "model_names", "kept"},
    {"recording"},
    {"reading"},
    {"inspection"},
    {"run"},
    {"hf"},
    {"api"},
    {"assembled"},
    {"answering", "loading", "provenance"},
    {"fingerprint"},
    {"bench", "evaluation", "whole"},
    {"integrations"},
    {"cli"},
    {"__init__", "__main__"},
]
"""From the ground up. A room may use those of lower floors."""

INTERNALS = ("transformers.cache_utils", "transformers.masking_utils", "transformers.integrations")

VERSION = {("provenance", "__init__"), ("cli", "__init__")}
"""Results and the command name the package's version, which stands at the top."""


@cache
def imports() -> dict[str, set[str]]:
    """What each module of the package imports from it, by dotted names below `madakv`."""
    found: dict[str, set[str]] = {}
    modules = {name_of(path) for path in SOURCE.rglob("*.py")}
    for path in SOURCE.rglob("*.py"):
        wanted = found.setdefault(name_of(path), set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                # What is imported from a package may be a module of it.
                inner = [f"{node.module}.{alias.name}" for alias in node.names]
                names = [name for name in inner if name.removeprefix("madakv.") in modules] or [node.module]
            else:
                continue
            inside = {name.removeprefix("madakv").removeprefix(".") or "__init__" for name in names if is_ours(name)}
            wanted |= inside & modules
    return found


def is_ours(name: str) -> bool:
    return name == "madakv" or name.startswith("madakv.")


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def room(module: str) -> str:
    return module.split(".")[0]


def test_every_room_has_its_floor() -> None:
    placed = [name for floor in FLOORS for name in floor]
    assert len(placed) == len(set(placed))
    assert {room(module) for module in imports()} == set(placed)


def test_no_arrow_points_upwards() -> None:
    height = {name: number for number, floor in enumerate(FLOORS) for name in floor}
    upwards = [
        f"{module} -> {other}"
        for module, wanted in imports().items()
        for other in wanted
        if room(module) != room(other)
        and height[room(other)] >= height[room(module)]
        and (room(module), room(other)) not in VERSION
    ]
    assert not upwards


def test_no_circle() -> None:
    # A package's own file gathers what its modules hold, and is imported before any of them.
    graph = {
        module: {other for other in wanted if not f"{module}.".startswith(f"{other}.") and other != "__init__"}
        for module, wanted in imports().items()
        if module != "__init__"
    }
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as circle:
        pytest.fail(" -> ".join(circle.args[1]))
    assert len(order) >= len(graph)


def test_transformers_is_known_in_one_room() -> None:
    """But for its generation settings and models themselves, which whoever loads or times a model names."""
    knows = {
        room(name_of(path))
        for path in SOURCE.rglob("*.py")
        if any(
            isinstance(node, ast.ImportFrom) and (node.module or "").startswith(INTERNALS)
            for node in ast.walk(ast.parse(path.read_text()))
        )
    }
    assert knows <= {"hf", "bench"}


@pytest.mark.parametrize("name", ["cache", "reading", "hf"])
def test_nobody_holds_on_to_others_weakly(name: str) -> None:
    for path in (SOURCE / name).rglob("*.py"):
        assert "weakref" not in path.read_text(), path
