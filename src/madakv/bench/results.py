"""Rows of a benchmark, and the file that they are written to as they come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from madakv.errors import ConfigurationError
from madakv.provenance import write_whole


@dataclass(frozen=True)
class Row:
    """One contender in one case.

    Attributes:
        case: what was measured: shape, layers, context, batch, and what else tells cases apart.
        contender: see `madakv.bench.contenders.Contender`.
        figures: by name; times in milliseconds, memory in bytes, rates in bytes per second.
        details: what else is worth knowing: what the contender is in full, how its cache was filled.
        refused: why there are no figures.
    """

    case: Mapping[str, Any]
    contender: str
    figures: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    refused: str | None = None


class ResultFile:
    """One JSON object: where results come from, and all rows so far. Whoever kills the run keeps what was done.

    Args:
        path: of the file; None keeps the results in memory alone.
        about: provenance and settings.

    Raises:
        ConfigurationError: the file is there already, or cannot be written.
    """

    def __init__(self, path: Path | None, about: dict[str, Any]) -> None:
        self.content: dict[str, Any] = {**about, "rows": []}
        self.rows: list[Row] = []
        self._path = path
        if path is not None and path.exists():
            raise ConfigurationError(f"{path} holds results already; choose another --out")
        self._write()

    def add(self, rows: Sequence[Row]) -> None:
        """Append the rows of one case."""
        self.rows += rows
        self.content["rows"] += [asdict(row) for row in rows]
        self._write()

    def note(self, **facts: Any) -> None:
        """Add facts about the run."""
        self.content.update(facts)
        self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, self.content)
        except OSError as error:
            raise ConfigurationError(f"cannot write {self._path}: {error}") from error
