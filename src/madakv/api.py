"""`madakv.evict`: the library's front door."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from madakv.cache import Entries, RaggedEntries
from madakv.hf.patch import patched
from madakv.methods import Method, resolve
from madakv.reading import Trigger
from madakv.run import Run


@contextmanager
def evict(
    model: Any,
    method: str | Method = "madakv",
    *,
    budget: float | int | None = None,
    trigger: Trigger | None = None,
    store: type[Entries] = RaggedEntries,
    record: bool = False,
    **options: Any,
) -> Iterator[Run]:
    """Evict the KV cache of every prompt that `model` reads inside the block.

    Works with `model.generate()`, with pipelines around the model, and with plain forward loops that hand
    `past_key_values` on. The model is restored on exit, after an exception too.

    The first forward pass on a cache is its prompt; what is read later on the same cache, such as the next turn of
    a conversation, is kept whole, unless the trigger decides again. The cache can only be used inside such a block.

    `generate(..., cache_implementation="static")` keeps later tokens at fixed addresses, with room for as many as the
    call may generate, so that transformers compiles the steps into CUDA graphs as it does for a static cache; on
    models whose layers all have full attention, and without beams.

    Args:
        model: a transformers model in eval mode, text-only or of a known multimodal family.
        method: a name from `madakv.list_methods()` or a method object such as `madakv.MadaKV(safeguard=0.2)`.
        budget: share of the prompt's KV entries that stays, a float in (0, 1], rounded down; or an int, entries
            per head and layer on average; see `Method.budget`. None: the method's own.
        trigger: when to evict, a `madakv.reading.Trigger`. None: as the method has it, which is while the prompt is
            read, or after its `lookahead`.
        store: how kept entries are held, a class derived from `madakv.cache.Entries`.
        record: look at attention on the way, for `Run.report`. It costs some of the prefill's time and of every
            step's, and holds on to the last call's inputs; answers stay the same.
        options: further options of the method, see its class; or `compression_ratio`, 1 - budget, in place of
            a budget.

    Yields:
        A `Run`, whose `last` tells what the most recent prompt's eviction kept.

    Raises:
        ConfigurationError: unknown method or option, or a bad value; a trigger or store that is none.
        UnsupportedModelError: see `madakv.register_family` for unknown multimodal families.
        UnsupportedOptionError: training mode; or, inside the block, a generation option that cannot be combined
            with eviction.
        NestedEvictionError: the model is already inside such a block.
    """
    run = Run(resolve(method, budget=budget, **options), trigger=trigger, store=store, records=record)
    with patched(model, run):
        yield run
