"""What stayed of prompts, counted where a server answers: for Prometheus, and for the usage of a response.

How much stays follows from a prompt's length and its budget alone (`settings.py`), so that no worker has to say.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from typing import Any

from madakv.integrations.vllm.settings import ACCOUNT, Settings, first_kept_block, kept_entries


@dataclass(frozen=True)
class Kept:
    """What stays of prompts. An entry is one token's key and value in one head of one layer.

    Attributes:
        prompt_entries: that were read.
        kept_entries: of them, that stay.
        freed_blocks: that went back to the pool.
        saved_bytes: what those hold.
    """

    prompt_entries: int = 0
    kept_entries: int = 0
    freed_blocks: int = 0
    saved_bytes: int = 0

    def __add__(self, other: Kept) -> Kept:
        return Kept(*(getattr(self, own.name) + getattr(other, own.name) for own in fields(self)))


@dataclass(frozen=True)
class Cache:
    """What a server's cache holds.

    Attributes:
        heads: of all layers.
        block_size: tokens of a block.
        block_bytes: of a block, in all layers.
    """

    heads: int
    block_size: int
    block_bytes: int

    @classmethod
    def of(cls, config: Any, itemsize: int) -> Cache:
        """That of vLLM's `VllmConfig`, once the engine runs.

        Args:
            config: the config.
            itemsize: bytes of a number in the cache.
        """
        model = config.model_config
        heads = model.get_num_layers(config.parallel_config) * model.get_total_num_kv_heads()
        size = config.cache_config.block_size
        return cls(heads, size, 2 * heads * size * model.get_head_size() * itemsize)

    def kept(self, tokens: int, budget: float) -> Kept:
        """What stays of a prompt of so many tokens; see `first_kept_block`."""
        freed = first_kept_block(budget, tokens, self.block_size)
        entries = kept_entries(budget, tokens) if freed else tokens
        return Kept(tokens * self.heads, entries * self.heads, freed, freed * self.block_bytes)


class Prompt:
    """One that is answered. It stays whole until its answer's second token: nothing is decided for the first.

    Attributes:
        kept: what stays of it so far.
    """

    def __init__(self, whole: Kept, later: Kept) -> None:
        self.kept = whole
        self._later = later

    def settle(self) -> bool:
        """Its second token has come; returns whether anything was decided."""
        self.kept = self._later
        return self.kept.freed_blocks > 0


class Account(list[Prompt]):
    """The prompts of one request of the protocol."""

    @property
    def kept(self) -> Kept:
        """What stays of all of them so far."""
        return sum((prompt.kept for prompt in self), Kept())


class Ledger:
    """Counts what stays of the prompts of one engine, in the process that answers.

    Args:
        settings: of the server.
        cache: what it holds.
    """

    def __init__(self, settings: Settings, cache: Cache) -> None:
        self._settings = settings
        self._cache = cache
        # What is counted once is shown before it happens, as zero.
        counters()

    def open(self, params: Any, tokens: int, choice: int = 0) -> Prompt:
        """A prompt is about to be read.

        Args:
            params: its `SamplingParams`; the account that a front end put into them is taken out again, as it goes no
                further than this process.
            tokens: of the prompt.
            choice: which of a request's. Each reads the prompt anew, but usage counts it once, as vLLM's own does.
        """
        extra = dict(params.extra_args or {})
        account = extra.pop(ACCOUNT, None)
        prompt = Prompt(self._cache.kept(tokens, 1.0), self._cache.kept(tokens, self._settings.budget_of(extra)))
        if isinstance(account, Account) and choice == 0:
            account.append(prompt)
        params.extra_args = extra or None
        return prompt

    def settle(self, prompt: Prompt) -> None:
        """Its second token has come."""
        if prompt.settle():
            counted = counters()
            counted["plans"].inc()
            for own in fields(prompt.kept):
                counted[own.name].inc(getattr(prompt.kept, own.name))


@functools.cache
def counters() -> dict[str, Any]:
    """Prometheus' counters of this process, by name; they say `madakv_plans_total` and so on."""
    from prometheus_client import Counter

    said = {
        "plans": "Prompts that were decided about and packed.",
        "prompt_entries": "Entries that those prompts had, over all layers and heads.",
        "kept_entries": "Entries that stayed of them.",
        "freed_blocks": "Blocks that they gave back to the pool once they were read.",
        "saved_bytes": "Bytes that those blocks hold.",
    }
    return {name: Counter(f"madakv_{name}", text) for name, text in said.items()}
