"""A report on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from madakv.errors import ConfigurationError
from madakv.extras import require
from madakv.inspection.assemble import Inspected, assemble
from madakv.inspection.page import write


def write_report(path: Path, runs: Sequence[Inspected], processor: Any, row: int) -> Path:
    """Write a report; see `Run.report`."""
    require("a report needs", "inspect", "jinja2")
    exchange = runs[0].exchange
    if processor is None and exchange is not None:
        processor = _processor_of(exchange.name)
    write(assemble(runs, processor, row), path)
    return path


def _processor_of(name: str) -> Any:
    """What was loaded beside a model, from the same place and no network.

    Raises:
        ConfigurationError: there is none.
    """
    from transformers import AutoProcessor, AutoTokenizer

    # Whatever is broken or not there, the next one may do.
    for kind in (AutoProcessor, AutoTokenizer):
        try:
            return kind.from_pretrained(name, local_files_only=True)
        except Exception:
            continue
    raise ConfigurationError(
        f"no processor was found for {name!r}: give the one that made the inputs, as in run.report(path, processor)"
    )
