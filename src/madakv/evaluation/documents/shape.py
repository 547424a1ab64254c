"""How much of everything a document holds."""

from __future__ import annotations

from dataclasses import dataclass, replace

from madakv.errors import InputError
from madakv.evaluation.documents.wording import TERSE, Lengths
from madakv.evaluation.documents.words import NAMES, STEPS

MOST_NAMED = 24
MOST_UNNAMED = 12
"""Beyond these, room for pictures is filled with scenery: a thing is looked for among other things, and from 2,048
tokens on there are no more of these."""


@dataclass(frozen=True)
class Shape:
    """Counts of what a document holds.

    Attributes:
        codes: sentences `code n3 4 7 1 .`.
        owners: sentences `owner n7 n17 .`, each of a named picture.
        painted: named pictures of two painted words.
        twins: couples of named pictures that show the same.
        albums: names that three pictures share.
        changes: things shown `before` and `after`.
        steps: pictures of the plan.
        pairs: couples of pictures of which one cell differs.
        named: further named pictures.
        unnamed: pictures of things that nothing refers to.
        scenery: painted words and grids that nothing refers to.
        prose: tokens of prose.
    """

    codes: int = 0
    owners: int = 0
    painted: int = 0
    twins: int = 0
    albums: int = 0
    changes: int = 0
    steps: int = 0
    pairs: int = 0
    named: int = 0
    unnamed: int = 0
    scenery: int = 0
    prose: int = 0

    def __post_init__(self) -> None:
        if self.steps > len(STEPS):
            raise InputError(f"a plan has at most {len(STEPS)} steps, not {self.steps}")
        if self.names > len(NAMES):
            raise InputError(f"this document needs {self.names} names; there are {len(NAMES)}")
        if self.owners > self.named:
            raise InputError(f"{self.owners} owners need as many named pictures, not {self.named}")

    @property
    def names(self) -> int:
        """The most names that it needs."""
        things = self.codes + self.owners + self.painted + 2 * self.twins + self.albums + self.changes
        return things + self.pairs + self.named

    @classmethod
    def of(cls, tokens: int, visual_share: float, lengths: Lengths = TERSE.lengths) -> Shape:
        """A document of about `tokens` tokens with its question, of which pictures are `visual_share`; `lengths` are
        those of its wording.

        Where text and pictures that the questions need take more than their share, they stay; the rest gives way.

        Raises:
            InputError: fewer than 500 tokens, or a share outside 0.5 to 0.95.
        """
        if tokens < 500 or not 0.5 <= visual_share <= 0.95:
            raise InputError(
                "documents have 500 tokens or more and a visual share of 0.5 to 0.95; "
                f"got {tokens} and {visual_share}"
            )
        room = tokens - lengths.question
        if tokens < 1000:
            core = cls(codes=2, owners=2, painted=2, twins=1, albums=1, changes=1, steps=4, pairs=1, named=3)
        else:
            core = cls(codes=4, owners=4, painted=3, twins=2, albums=2, changes=2, steps=5, pairs=2, named=8)
        told = core.text(lengths)
        shown = min(int(visual_share * room), room - told)
        pictures = max(0, shown // lengths.picture - core.pictures)
        text = max(0, room - (core.pictures + pictures) * lengths.picture - told)
        # Half of the room for text names pictures, so that some can be asked for even where there is little of it.
        named = min(pictures, text // (2 * lengths.heading), MOST_NAMED - core.named)
        unnamed = min(pictures - named, MOST_UNNAMED)
        scenery = pictures - named - unnamed
        return replace(
            core, named=core.named + named, unnamed=unnamed, scenery=scenery, prose=text - lengths.heading * named
        )

    @property
    def pictures(self) -> int:
        """How many pictures."""
        paired = 2 * (self.twins + self.changes + self.pairs)
        return self.painted + paired + 3 * self.albums + self.steps + self.named + self.unnamed + self.scenery

    def text(self, lengths: Lengths) -> int:
        """How many tokens of text."""
        headed = self.pictures - self.unnamed - self.scenery - self.pairs
        facts = lengths.code * self.codes + lengths.owner * self.owners
        return facts + lengths.heading * headed + self.prose
