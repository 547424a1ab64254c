"""A trigger that evicts while the answer is generated, as AGENTS.md says to write one: this file and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from madakv.reading import Trigger


@dataclass(frozen=True)
class EveryTokens(Trigger):
    """While the prompt is read, and again after so many tokens, as often as they come."""

    tokens: int

    @property
    def at_once(self) -> bool:
        return True

    @property
    def repeats(self) -> bool:
        return True

    def after_pass(self, since: int) -> bool:
        return since >= self.tokens
