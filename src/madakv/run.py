"""The handle of an eviction: how it evicts, and what the last prompt left behind."""

from __future__ import annotations

from inspect import isabstract
from pathlib import Path
from typing import Any

from madakv.cache import Entries, RaggedEntries
from madakv.errors import ConfigurationError
from madakv.kept import Kept
from madakv.methods import Method
from madakv.reading import Trigger
from madakv.recording import Exchange, Recording


class Run:
    """Handle of a `with madakv.evict(...)` block.

    Attributes:
        method: the method in use.
        trigger: when it evicts; None: as the method has it.
        store: how kept entries are held.
        records: whether attention is looked at on the way, for reports.
        last: what the most recent prefill kept, whichever thread it ran in; None before the first.
        recording: what attention did then; None unless `records`.
        exchange: what the most recent `generate` call that read a prompt was given, and answered.

    Raises:
        ConfigurationError: what was given as trigger or store is none.
    """

    def __init__(
        self,
        method: Method,
        *,
        trigger: Trigger | None = None,
        store: type[Entries] = RaggedEntries,
        records: bool = False,
    ) -> None:
        if trigger is not None and not isinstance(trigger, Trigger):
            raise ConfigurationError(f"trigger must be an object of a class derived from Trigger; got {trigger!r}")
        if not (isinstance(store, type) and issubclass(store, Entries)) or isabstract(store):
            raise ConfigurationError(
                f"store must be a class derived from Entries, with all it asks for; got {store!r}"
            )
        if trigger is not None and method.lookahead:
            raise ConfigurationError(
                f"lookahead={method.lookahead} and trigger={trigger!r} both say when to evict; choose one"
            )
        self.method = method
        self.trigger = trigger
        self.store = store
        self.records = records
        self.last: Kept | None = None
        self.recording: Recording | None = None
        self.exchange: Exchange | None = None

    def report(self, path: str | Path, processor: Any = None, *, beside: Run | None = None, row: int = 0) -> Path:
        """Write a page that shows what was kept of the last prompt, and what the answer rested on.

        It needs the extra `inspect`. How the question's attention is split and what each token of the answer looked
        at are on it if the run records (`madakv.evict(..., record=True)`); pictures if it does, or as long as
        somebody holds on to the inputs of the `generate` call.

        Args:
            path: of one HTML file, which needs no other.
            processor: the model's processor or tokenizer; None: loaded from where the model came from.
            beside: another run of the same prompt, with another method or budget.
            row: of the answers of a batch.

        Returns:
            The path.

        Raises:
            InputError: nothing was generated yet; another prompt or model beside it; no such row.
            ConfigurationError: no processor was found.
            MissingExtraError: the extra is not installed.
        """
        from madakv.inspection.write import write_report

        return write_report(Path(path), [self] if beside is None else [self, beside], processor, row)
