"""When a reading decides what stays."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from madakv.methods import Method


class Trigger(ABC):
    """When to decide. A reading asks after each pass, and before a pass of several tokens that follows the prompt."""

    @property
    def at_once(self) -> bool:
        """Whether layers are decided one by one while the prompt is read, which keeps the peak of memory low."""
        return False

    @property
    def repeats(self) -> bool:
        """Whether it decides again later. Scores then live as long as the cache, and later tokens are heard."""
        return False

    @abstractmethod
    def after_pass(self, since: int) -> bool:
        """Whether to decide now that a pass is over.

        Args:
            since: tokens that were read since the last decision, or, before the first, since the prompt.
        """

    def before_turn(self, since: int) -> bool:
        """Whether to decide before a pass of several tokens: a turn of a conversation, or the next chunk of a prompt.

        Args:
            since: as above; at least 1.
        """
        return self.after_pass(since)


@dataclass(frozen=True)
class AfterPrefill(Trigger):
    """Layer by layer, right after its own attention over the prompt."""

    @property
    def at_once(self) -> bool:
        """That is what it is for."""
        return True

    def after_pass(self, since: int) -> bool:  # noqa: ARG002
        """All is decided by then."""
        return False


@dataclass(frozen=True)
class AfterTokens(Trigger):
    """Once so many tokens came after the prompt, which is kept whole until then; at the latest before the next turn.

    Attributes:
        tokens: 0 waits for all layers of the prompt alone.
    """

    tokens: int

    def after_pass(self, since: int) -> bool:
        """Whether they are there."""
        return since >= self.tokens

    def before_turn(self, since: int) -> bool:  # noqa: ARG002
        """The answer was shorter than that."""
        return True


def trigger_of(method: Method) -> Trigger:
    """When a method decides, if nobody says otherwise."""
    return AfterTokens(method.lookahead) if method.waits else AfterPrefill()
