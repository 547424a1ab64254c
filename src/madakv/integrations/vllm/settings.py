"""What a server, and a request, ask for. Knows nothing of vLLM but the shape of its dictionaries."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from madakv.budget.entries import check_budget, prompt_entries
from madakv.errors import ConfigurationError
from madakv.methods import Method, resolve
from madakv.methods.registry import from_text

_PAGE = 8
"""As many as a vector of most CPUs has numbers, and no more than half of them are idle in one of 16."""

KEY = "madakv"
"""The name under which settings stand in `additional_config`, and a request's in its `extra_args`."""

ACCOUNT = f"{KEY}_account"
"""The name under which `extra_args` carry what a front end counts; it never leaves the process."""


@dataclass(frozen=True)
class Settings:
    """How a server evicts. Plain values, so that every process can be sent them.

    Attributes:
        budget: share of a prompt that stays, in (0, 1].
        method: as typed on a command line: a name, then options as `:name=value`.
    """

    budget: float = 0.2
    method: str = KEY

    def __post_init__(self) -> None:
        if isinstance(self.budget, bool) or not isinstance(self.budget, float | int) or not 0 < self.budget <= 1:
            raise ConfigurationError(f"madakv's budget must be a share of the prompt in (0, 1]; got {self.budget!r}")
        object.__setattr__(self, "budget", float(self.budget))
        check_budget(self.budget)
        if not isinstance(self.method, str):
            raise ConfigurationError(f"madakv's method must be typed, such as 'madakv:echo=0'; got {self.method!r}")
        if self.resolved().budget != self.budget:
            raise ConfigurationError(f"method {self.method!r} names a budget of its own; give it as 'budget'")

    @classmethod
    def of(cls, additional: Any) -> Settings | None:
        """Those in vLLM's `additional_config`; None if nobody asks for eviction.

        Raises:
            ConfigurationError: an unknown setting or a bad value.
        """
        if not isinstance(additional, Mapping) or additional.get(KEY) is None:
            return None
        given = additional[KEY]
        if not isinstance(given, Mapping):
            raise ConfigurationError(f'madakv\'s settings are an object, such as {{"budget": 0.2}}; got {given!r}')
        known = list(cls.__dataclass_fields__)
        if unknown := [name for name in given if name not in known]:
            raise ConfigurationError(f"madakv has no setting {unknown[0]!r}; its settings: {', '.join(known)}")
        return cls(**given)

    def resolved(self, budget: float | None = None) -> Method:
        """The method, with another budget if one is given."""
        chosen = from_text(self.method, self.budget)
        return chosen if budget is None else resolve(chosen, budget=budget)

    def budget_of(self, extra: Any) -> float:
        """The budget of one request: its own, or the server's.

        Args:
            extra: the request's `extra_args`: `{"madakv": {"budget": 0.5}}`, or flat, as the protocol's `vllm_xargs`
                has to be: `{"madakv_budget": 0.5}`.

        Raises:
            ConfigurationError: it asks for less than the server keeps, for more than all, or for something else.
        """
        extra = extra if isinstance(extra, Mapping) else {}
        own = {} if extra.get(KEY) is None else extra[KEY]
        if not isinstance(own, Mapping):
            raise ConfigurationError(f'a request sets madakv as {{"budget": 0.5}}; got {reprlib.repr(own)}')
        prefix = f"{KEY}_"
        flat = {name.removeprefix(prefix): extra[name] for name in extra if str(name).startswith(prefix)}
        flat.pop(ACCOUNT.removeprefix(prefix), None)
        given = flat | dict(own)
        if unknown := [name for name in given if name != "budget"]:
            raise ConfigurationError(
                f"a request sets madakv's budget, and nothing else; got {reprlib.repr(unknown[0])}"
            )
        asked = given.get("budget")
        if asked is None:
            return self.budget
        if isinstance(asked, bool) or not isinstance(asked, float | int) or not self.budget <= asked <= 1:
            raise ConfigurationError(
                f"a request's madakv budget must lie between the server's, {self.budget:g}, and 1; "
                f"got {reprlib.repr(asked)}"
            )
        return float(asked)


def page_size(block_size: int) -> int:
    """Entries of a page. Small ones, so that uneven heads leave little of their last pages empty."""
    return math.gcd(_PAGE, block_size)


def kept_entries(budget: float, tokens: int) -> int:
    """Entries that a budget leaves of a prompt, per head and layer on average."""
    return int(prompt_entries(budget, torch.tensor([tokens]))[0])


def kept_blocks(budget: float, tokens: int, block_size: int) -> int:
    """Blocks that hold what a budget leaves of a prompt.

    Counts sum to at most `kept_entries` per head and layer; rounding a head up to whole pages adds less than one.
    """
    return -(-(kept_entries(budget, tokens) + page_size(block_size) - 1) // block_size)


def first_kept_block(budget: float, tokens: int, block_size: int) -> int:
    """The prompt's full blocks before this one are freed, those from it on hold its pages; 0: it stays whole.

    Both the scheduler and the workers ask this, so that they agree without a message.
    """
    if budget == 1.0:
        return 0
    return max(0, tokens // block_size - kept_blocks(budget, tokens, block_size))
