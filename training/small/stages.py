"""What is trained, in which order, for how long and at which learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from madakv.evaluation.documents import Shape

SEED = 11
TOKENS_PER_STEP = 6000
CAPTIONS_PER_STEP = 160

Asked = Mapping[str, int]
"""Questions per kind and document."""

MANY = {"code": 2, "read": 3, "twin": 2, "owner": 4, "differ": 5, "plan": 1, "change": 2, "album": 2, "show": 4}

SHAPES: Mapping[str, Shape] = {
    "facts": Shape(codes=3, owners=2, painted=1, twins=1, albums=1, changes=1, steps=2, pairs=1, named=3, prose=10),
    "pairs": Shape(pairs=5, prose=4),
    "few": Shape(twins=1, albums=1, owners=2, named=2, prose=3),
    "lookups": Shape(twins=2, albums=2, owners=4, named=5, prose=6),
    "match": Shape(twins=6, albums=5, named=4, unnamed=4, prose=10),
    "lists": Shape(twins=1, albums=8, named=3, unnamed=3, prose=8),
    "dense-1000": Shape(
        codes=3, owners=4, painted=3, twins=4, albums=3, changes=3, pairs=2, steps=5, named=10, unnamed=4, prose=40
    ),
    "dense-2000": Shape(
        codes=6,
        owners=8,
        painted=5,
        twins=6,
        albums=4,
        changes=5,
        pairs=4,
        steps=5,
        named=20,
        unnamed=8,
        scenery=22,
        prose=140,
    ),
    "dense-4000": Shape(
        codes=10,
        owners=14,
        painted=8,
        twins=8,
        albums=7,
        changes=7,
        pairs=6,
        steps=5,
        named=24,
        unnamed=12,
        scenery=84,
        prose=350,
    ),
    "search-4000": Shape(
        codes=4,
        owners=8,
        painted=4,
        twins=18,
        albums=10,
        changes=3,
        pairs=2,
        steps=5,
        named=16,
        unnamed=8,
        scenery=90,
        prose=300,
    ),
    "hunt-1000": Shape(
        codes=2, owners=6, painted=2, twins=8, albums=5, changes=1, pairs=1, steps=5, named=8, unnamed=2, prose=60
    ),
    "hunt-4000": Shape(
        codes=4,
        owners=12,
        painted=4,
        twins=24,
        albums=12,
        changes=3,
        pairs=2,
        steps=5,
        named=16,
        unnamed=8,
        scenery=70,
        prose=300,
    ),
    "albums-1000": Shape(
        codes=2, owners=4, painted=2, twins=4, albums=9, changes=1, pairs=1, steps=5, named=6, unnamed=2, prose=60
    ),
    "albums-4000": Shape(
        codes=4,
        owners=8,
        painted=4,
        twins=12,
        albums=22,
        changes=3,
        pairs=2,
        steps=5,
        named=12,
        unnamed=8,
        scenery=70,
        prose=300,
    ),
}
"""Documents that are shorter than any of the suite, or that hold more of what can be asked."""

LENGTHS = {"500": 500, "1000": 1024, "2000": 2048, "4000": 4096}


@dataclass(frozen=True)
class Stage:
    """`mix` gives the chance of every task, one of which is drawn per step.

    The learning rate warms up over `warmup` steps, is constant, and falls linearly over the last `decay`
    steps to `end` times its height. With `hints`, what can be copied, the
    names of pictures and differences of pairs are also read off the middle of the text model: from answers alone
    these settle in the last layers, and there it is too late for what builds on them.
    """

    name: str
    steps: int
    mix: Mapping[str, float]
    lr: float = 1e-3
    warmup: int = 0
    decay: int = 0
    end: float = 0.03
    hints: bool = False

    def learning_rate(self, step: int) -> float:
        """At `step`, counted from 0 within the stage."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        left = self.steps - step
        if left >= self.decay:
            return self.lr
        return self.lr * (self.end + (1 - self.end) * left / self.decay)


ALBUMS = Stage(
    "albums, and 4000 with scenery",
    1200,
    {
        "dense-4000": 0.2,
        "4000": 0.07,
        "dense-2000": 0.2,
        "dense-1000": 0.18,
        "1000": 0.04,
        "500": 0.06,
        "lists": 0.1,
        "match": 0.08,
        "caption": 0.07,
    },
    lr=9e-4,
    warmup=30,
    decay=700,
    hints=True,
)

LONG = Stage(
    "4000 above all",
    900,
    {
        "dense-4000": 0.42,
        "4000": 0.16,
        "dense-2000": 0.16,
        "dense-1000": 0.1,
        "1000": 0.02,
        "500": 0.03,
        "lists": 0.04,
        "match": 0.04,
        "caption": 0.03,
    },
    lr=8e-4,
    warmup=40,
    decay=550,
    hints=True,
)
"""From the weights that the stage before it left, with a new optimizer."""

SEARCH = Stage(
    "searching at 4000",
    700,
    {
        "search-4000": 0.5,
        "dense-4000": 0.14,
        "4000": 0.08,
        "dense-2000": 0.08,
        "dense-1000": 0.08,
        "500": 0.04,
        "lists": 0.03,
        "match": 0.03,
        "caption": 0.02,
    },
    lr=7e-4,
    warmup=40,
    decay=450,
    hints=True,
)
"""Pictures found by what they show, far apart; with a new optimizer once more."""

HUNT = Stage(
    "nothing told twice",
    1450,
    {
        "hunt-4000": 0.36,
        "hunt-1000": 0.24,
        "dense-4000": 0.1,
        "4000": 0.06,
        "dense-2000": 0.08,
        "dense-1000": 0.05,
        "500": 0.05,
        "lists": 0.02,
        "match": 0.02,
        "caption": 0.02,
    },
    lr=7e-4,
    warmup=40,
    decay=850,
    hints=True,
)
"""The last long stage of `small-llava`; of the other, albums follow.

Positions turn more slowly (`ROPE` in architecture.py), and the optimizer is a new one.
"""

STAGES: Mapping[str, tuple[Stage, ...]] = {
    "small-llava": (
        Stage("captions", 350, {"caption": 0.7, "facts": 0.2, "copy": 0.1}, warmup=50),
        Stage("facts", 500, {"facts": 0.65, "pairs": 0.1, "caption": 0.25}),
        Stage("look-ups", 200, {"facts": 0.25, "pairs": 0.3, "lookups": 0.35, "caption": 0.1}),
        Stage("copying", 550, {"copy": 0.7, "facts": 0.12, "few": 0.1, "caption": 0.08}, hints=True),
        Stage(
            "few look-ups",
            950,
            {"facts": 0.2, "pairs": 0.35, "few": 0.15, "lookups": 0.25, "caption": 0.05},
            hints=True,
        ),
        Stage(
            "500, early",
            300,
            {"500": 0.45, "facts": 0.15, "pairs": 0.15, "lookups": 0.15, "caption": 0.1},
            lr=7e-4,
            hints=True,
        ),
        Stage("comparing", 350, {"pairs": 0.3, "few": 0.25, "lookups": 0.35, "caption": 0.1}, hints=True),
        Stage(
            "500",
            250,
            {"500": 0.55, "pairs": 0.2, "lookups": 0.15, "caption": 0.1},
            lr=8e-4,
            hints=True,
        ),
        Stage("1000", 300, {"1000": 0.5, "500": 0.15, "lookups": 0.25, "caption": 0.1}, lr=8e-4, hints=True),
        Stage("2000", 200, {"2000": 0.45, "1000": 0.25, "lookups": 0.2, "caption": 0.1}, lr=8e-4, hints=True),
        Stage(
            "4000",
            400,
            {"4000": 0.4, "2000": 0.2, "1000": 0.15, "500": 0.05, "lookups": 0.12, "caption": 0.08},
            lr=7e-4,
            decay=380,
            hints=True,
        ),
        Stage(
            "matching",
            600,
            {"match": 0.45, "dense-1000": 0.2, "500": 0.15, "pairs": 0.1, "caption": 0.1},
            lr=8e-4,
            warmup=50,
            hints=True,
        ),
        Stage(
            "matching at 2000",
            350,
            {"dense-2000": 0.35, "dense-1000": 0.2, "1000": 0.1, "500": 0.1, "match": 0.15, "caption": 0.1},
            lr=8e-4,
            hints=True,
        ),
        Stage(
            "matching at 4000",
            300,
            {
                "dense-4000": 0.35,
                "4000": 0.15,
                "dense-2000": 0.1,
                "1000": 0.15,
                "500": 0.1,
                "match": 0.1,
                "caption": 0.05,
            },
            lr=8e-4,
            hints=True,
        ),
        Stage(
            "matching, to the end",
            650,
            {
                "match": 0.36,
                "dense-1000": 0.22,
                "500": 0.12,
                "dense-2000": 0.1,
                "4000": 0.08,
                "pairs": 0.04,
                "caption": 0.08,
            },
            lr=9e-4,
            decay=350,
            hints=True,
        ),
        Stage(
            "lists",
            400,
            {
                "lists": 0.4,
                "match": 0.15,
                "dense-1000": 0.2,
                "500": 0.1,
                "4000": 0.08,
                "caption": 0.07,
            },
            lr=8e-4,
            warmup=20,
            decay=280,
            hints=True,
        ),
        Stage(
            "lists of three, and 4000",
            900,
            {
                "lists": 0.2,
                "dense-4000": 0.34,
                "4000": 0.12,
                "dense-2000": 0.1,
                "dense-1000": 0.1,
                "500": 0.08,
                "caption": 0.06,
            },
            lr=8e-4,
            warmup=20,
            decay=450,
            hints=True,
        ),
        ALBUMS,
        LONG,
        SEARCH,
        HUNT,
    ),
    "small-qwen2.5-vl": (
        Stage("copying", 200, {"copy": 0.3, "caption": 0.3, "facts": 0.25, "few": 0.15}, warmup=30, hints=True),
        Stage(
            "look-ups",
            350,
            {"facts": 0.2, "pairs": 0.2, "lookups": 0.15, "match": 0.2, "copy": 0.1, "caption": 0.15},
            hints=True,
        ),
        Stage(
            "500",
            350,
            {"500": 0.25, "dense-1000": 0.25, "match": 0.15, "lists": 0.15, "pairs": 0.08, "caption": 0.12},
            lr=9e-4,
            hints=True,
        ),
        Stage(
            "1000",
            900,
            {
                "caption": 0.22,
                "dense-1000": 0.2,
                "500": 0.16,
                "lists": 0.14,
                "pairs": 0.1,
                "dense-2000": 0.1,
                "1000": 0.08,
            },
            lr=8e-4,
            decay=500,
            hints=True,
        ),
        replace(ALBUMS, steps=1000, decay=560),
        replace(LONG, steps=500, decay=320),
        replace(SEARCH, steps=330, decay=220),
        replace(HUNT, steps=800, decay=440),
        Stage(
            "pictures once more",
            220,
            {"caption": 0.5, "500": 0.12, "dense-1000": 0.12, "lists": 0.08, "hunt-1000": 0.08, "hunt-4000": 0.1},
            lr=5e-4,
            warmup=20,
            decay=180,
            hints=True,
        ),
        Stage(
            "albums once more",
            420,
            {
                "albums-4000": 0.32,
                "albums-1000": 0.26,
                "hunt-4000": 0.1,
                "hunt-1000": 0.1,
                "dense-1000": 0.04,
                "500": 0.08,
                "caption": 0.1,
            },
            lr=5e-4,
            warmup=20,
            decay=330,
            hints=True,
        ),
        Stage(
            "albums and pictures",
            220,
            {
                "caption": 0.3,
                "albums-1000": 0.32,
                "albums-4000": 0.14,
                "hunt-1000": 0.12,
                "500": 0.12,
            },
            lr=4e-4,
            warmup=15,
            decay=190,
            hints=True,
        ),
    ),
}
