"""Results: one row per answer, written as it comes, and what is noted of the run beside it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from madakv.errors import ConfigurationError
from madakv.evaluation.rowfiles import appended, read_all
from madakv.evaluation.workers import WHOLE, Shard
from madakv.provenance import provenance, write_whole

R = TypeVar("R")
Key = tuple[str, str, str, str, str]
UNRECORDED = "not recorded"
"""Stands for the fingerprint of rows that have none."""


@dataclass(frozen=True)
class Row:
    """One answer, or why there is none.

    Attributes:
        model: as named on the command line.
        method: repr of the method, budget included.
        label: the method as typed, without its budget.
        budget: as asked for.
        dataset, sample, document, group, level, images, gold, fingerprint: see `Sample`; the sample by its id.
        answer: what came; empty if the sample failed.
        scores: from a scorer's name to a score in [0, 1]; all 0 if the sample failed.
        fault: why a scorer could not work on the answer.
        error: why the sample failed.
        prompt_tokens: tokens of the prompt.
        kept_share: kept entries over prompt entries.
        kv_bytes: bytes of live storage after the prefill.
        kv_bytes_full: bytes of a full cache for the same prompt.
        new_tokens: tokens of the answer, the end token included.
        seconds: from the prefilled prompt to the answer; includes eviction, not the prefill, which methods share, nor
            scores that were told for another budget.
        model_fingerprint: of the model that answered, see `madakv.fingerprint`; empty in rows of older versions.
        loss: mean next-token loss on what follows the prompt, of samples that ask for it; these have no scores.
    """

    model: str
    method: str
    label: str
    budget: float | int
    dataset: str
    sample: str
    document: str
    group: str
    level: str
    images: int
    gold: str
    fingerprint: str
    answer: str
    scores: dict[str, float]
    fault: str | None = None
    error: str | None = None
    prompt_tokens: int = 0
    kept_share: float = 0.0
    kv_bytes: int = 0
    kv_bytes_full: int = 0
    new_tokens: int = 0
    seconds: float = 0.0
    model_fingerprint: str = ""
    loss: float | None = None

    @property
    def category(self) -> str:
        """The letter of one of MileBench's groups, T-1 to I-1; any other group is a category of its own."""
        return self.group[0] if re.fullmatch(r"[A-Z]-\d", self.group) else self.group

    @property
    def key(self) -> Key:
        """What there is one answer for; the method tells the budget."""
        return self.model, self.model_fingerprint, self.method, self.dataset, self.sample

    @property
    def asked(self) -> tuple[str, str]:
        """Dataset and sample."""
        return self.dataset, self.sample


def latest(rows: Iterable[Row]) -> list[Row]:
    """One row per key: an answer rather than a failure, the later one of two of a kind."""
    found: dict[Key, Row] = {}
    for row in rows:
        held = found.get(row.key)
        if held is None or row.error is None or held.error is not None:
            found[row.key] = row
    return list(found.values())


def of_other_models(rows: Iterable[tuple[str, str]], name: str, fingerprint: str, out: Path) -> str | None:
    """One line about rows that are kept and not used, since another model of that name made them; None without any.

    Args:
        rows: a model's name and fingerprint for each row.
        name: of the model that answers now.
        fingerprint: of that model.
        out: folder of results.
    """
    others = Counter(theirs or UNRECORDED for own, theirs in rows if own == name and theirs != fingerprint)
    if not others:
        return None
    made_by = ", ".join(f"{theirs} ({count:,})" for theirs, count in others.items())
    return (
        f"{out} holds {others.total():,} rows of another model under the name {name!r}: its fingerprint is "
        f"{fingerprint} now, theirs {made_by}; they stay, and are not used for this run"
    )


@contextmanager
def open_results(
    folder: Path,
    settings: dict[str, Any],
    kind: type[R],
    *,
    about: dict[str, Any] | None = None,
    shard: Shard = WHOLE,
) -> Iterator[tuple[list[R], Callable[[R], None]]]:
    """Open a folder of results to go on with, or a new one.

    Args:
        folder: holds `rows.jsonl.gz` and `run.json`, or a pair of them per shard; `rows.jsonl` while a run writes.
        settings: what must agree for rows to be comparable.
        kind: the dataclass of the rows.
        about: what else is noted of this run.
        shard: which share of the samples this process answers; it writes files of its own.

    Yields:
        The rows already there, those of other shards included, and a function that appends and flushes one. See
        `rowfiles.appended`.

    Raises:
        ConfigurationError: the folder cannot be used, or holds results of other settings.
    """
    notes, path = folder / f"run{shard.suffix}.json", folder / f"rows{shard.suffix}.jsonl"
    here = provenance(settings=settings, **(about or {}))
    with appended(path) as write:
        known = read_runs(folder)
        rows = read_all(folder, kind)
        for other in known.values():
            differing = difference(other.get("settings", {}), settings)
            if differing:
                raise ConfigurationError(
                    f"{folder} holds results of other settings ({differing}); choose another --out"
                )
        found = known.get(notes)
        if found is None:
            found = here
            write_whole(notes, found)
        noted = found is here

        def append(row: R) -> None:
            nonlocal noted
            if not noted:
                # So that rows of other code or another machine can be told apart.
                found.setdefault("resumed", []).append(here | {"rows_before": len(rows)})
                write_whole(notes, found)
                noted = True
            write(vars(row))

        yield rows, append


def read_runs(folder: Path) -> dict[Path, dict[str, Any]]:
    """What is noted of the runs of all shards in a folder.

    Raises:
        ConfigurationError: a note that cannot be read.
    """
    found = {}
    for file in sorted(folder.glob("run*.json")):
        try:
            found[file] = dict(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigurationError(
                f"cannot read {file}: {error}; bring it back from a copy, or choose another --out"
            ) from error
    return found


def difference(one: dict[str, Any], other: dict[str, Any]) -> str:
    """What the first of two runs' settings has that the second has not, for people; empty if they agree."""
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    return ", ".join(f"{name}={one.get(name)!r}" for name in names)
