"""Result files: one JSONL row per answer, written as it comes, and the provenance beside it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers

import madakv
from madakv.errors import ConfigurationError

R = TypeVar("R")


@dataclass(frozen=True)
class Row:
    """One answer.

    Attributes:
        method: repr of the method, budget included.
        label: the method as typed, without its budget.
        budget: as asked for.
        sample: the sample's id.
        kind: the sample's kind.
        gold, answer: what was wanted and what came.
        correct: whether they are equal.
        prompt_tokens: tokens of the prompt.
        kept_share: kept entries over prompt entries.
        kv_bytes: bytes of live storage after the prefill.
        kv_bytes_full: bytes of a full cache for the same prompt.
    """

    method: str
    label: str
    budget: float | int
    sample: str
    kind: str
    gold: str
    answer: str
    correct: bool
    prompt_tokens: int
    kept_share: float
    kv_bytes: int
    kv_bytes_full: int

    @property
    def document(self) -> str:
        """The document that the sample asks about."""
        return self.sample.rpartition("-")[0]


def provenance(**settings: Any) -> dict[str, Any]:
    """Where results come from: settings, code, versions and machine."""
    return {
        **settings,
        "madakv": madakv.__version__,
        "git": _git_hash(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {_device_name()}",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@contextmanager
def open_results(
    folder: Path, settings: dict[str, Any], kind: type[R]
) -> Iterator[tuple[list[R], Callable[[R], None]]]:
    """Open a folder of results to go on with, or a new one.

    Args:
        folder: holds `run.json` and `rows.jsonl`.
        settings: what must agree for rows to be comparable.
        kind: the dataclass of the rows.

    Yields:
        The rows already there, and a function that appends and flushes one. A last line that was cut off by a
        kill is dropped.

    Raises:
        ConfigurationError: the folder holds results of other settings.
    """
    about, path = folder / "run.json", folder / "rows.jsonl"
    here = provenance(**settings)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = json.loads(about.read_text()) if about.exists() else None
        rows, whole = read_rows(path, kind)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(f"cannot use {folder} for results: {error}") from error
    if found is not None:
        differing = [name for name, value in settings.items() if found.get(name) != value]
        if differing:
            was = ", ".join(f"{name}={found.get(name)!r}" for name in differing)
            raise ConfigurationError(f"{folder} holds results of other settings ({was}); choose another --out")
    else:
        found = here
        about.write_text(json.dumps(here, indent=2) + "\n")
    if path.exists():
        os.truncate(path, whole)
    noted = found is here
    with path.open("a") as file:

        def append(row: R) -> None:
            nonlocal noted
            if not noted:
                # So that rows of other code or another machine can be told apart.
                found.setdefault("resumed", []).append(here | {"rows_before": len(rows)})
                about.write_text(json.dumps(found, indent=2) + "\n")
                noted = True
            file.write(json.dumps(vars(row), ensure_ascii=False) + "\n")
            file.flush()

        yield rows, append


def read_rows(path: Path, kind: type[R]) -> tuple[list[R], int]:
    """All complete rows of a JSONL file, as objects of `kind`, and how many bytes they take."""
    if not path.exists():
        return [], 0
    whole = path.read_bytes()
    whole = whole[: whole.rfind(b"\n") + 1]
    return [kind(**json.loads(line)) for line in whole.splitlines()], len(whole)


def _git_hash() -> str | None:
    """The commit of the code that runs, marked if files differ from it; None outside a checkout."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        status = subprocess.run(
            ["git", "status", "--porcelain", "."], cwd=here.parents[1], capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+changes" if status.stdout.strip() else "")


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU only"
