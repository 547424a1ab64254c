"""The bar on long work: how far, how fast, how long still."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from madakv.cli.output import plain_console
from madakv.markdown import size_text

if TYPE_CHECKING:
    from madakv.evaluation.runner import Progress as Report

_PERIOD_S = 3600.0
_TELL_EVERY_S = 60.0


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.2f}/s" if task.speed else "")


@contextmanager
def bar(what: str, *, shown: bool = True, sizes: bool = False) -> Iterator[Report]:
    """A bar on the error stream; yields what is to be called with (done, total); `sizes`: these are bytes."""
    counts = (DownloadColumn(), TransferSpeedColumn()) if sizes else (MofNCompleteColumn(), _Rate())
    columns = (TextColumn(what), BarColumn(), *counts, TimeRemainingColumn())
    console = plain_console(stderr=True)
    # An answer of a large model takes longer than the half minute over which speed is measured by default.
    with Progress(*columns, console=console, disable=not shown, speed_estimate_period=_PERIOD_S) as progress:
        task: TaskID | None = None
        told, begun, first = time.monotonic(), time.monotonic(), 0

        def report(done: int, total: int) -> None:
            nonlocal task, told, first
            if task is None:
                # What an earlier run did is no speed of this one.
                task, first = progress.add_task(what, total=total, completed=done), done
            progress.update(task, completed=done)
            now = time.monotonic()
            if shown and not console.is_terminal and now - told > _TELL_EVERY_S:
                # No bar is drawn into a file.
                rate = (done - first) / (now - begun)
                left = f", {(total - done) / rate / 60:,.0f} min left" if rate else ""
                far = f"{size_text(done)} of {size_text(total)}" if sizes else f"{done:,} of {total:,}, {rate:,.2f}/s"
                console.print(f"{what}: {far}{left}")
                told = now

        yield report
