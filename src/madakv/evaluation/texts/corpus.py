"""The texts of the suite, as `scripts/text_corpus.py` has built them, in three splits by source."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from madakv.errors import ConfigurationError

FOLDER = Path(__file__).parent / "corpus"

SPLITS: Mapping[str, int] = {"held-out": 0, "tune": 100_000, "unseen": 200_000}
"""The splits and the seed that each begins with.

Reported tables come from `held-out`, choices are made on `tune`, and `unseen` is looked at once, at the end.
"""
_LAST = 300_000


@dataclass(frozen=True)
class Source:
    """One text, of which every document holds a part.

    Attributes:
        name: of its file.
        split: one of `SPLITS`.
        kind: "prose" or "code".
        title, licence: for people.
        package: where it comes from.
        archive_sha256: of the package's archive.
        sha256: of the text, uncompressed.
    """

    name: str
    split: str
    kind: str
    title: str
    licence: str
    package: str
    archive_sha256: str
    sha256: str

    @property
    def text(self) -> str:
        """The whole text; paragraphs have an empty line between them."""
        return _text(self.name)


@cache
def sources() -> tuple[Source, ...]:
    """All of them, in the order of `sources.json`."""
    return tuple(Source(**one) for one in json.loads((FOLDER / "sources.json").read_text(encoding="utf-8")))


@cache
def _text(name: str) -> str:
    return gzip.decompress((FOLDER / f"{name}.txt.gz").read_bytes()).decode("utf-8")


def split_of(seed: int, documents: int) -> str:
    """Which split the documents of these seeds are from.

    Args:
        seed: of the first.
        documents: how many; each has the seed after the one before.

    Raises:
        ConfigurationError: seeds of two splits, or of none.
    """
    last = seed + documents - 1
    found = [name for name, first in SPLITS.items() if first <= last]
    if SPLITS[found[-1]] > seed or last >= _LAST:
        firsts = ", ".join(f"{first} ({name})" for name, first in SPLITS.items())
        raise ConfigurationError(
            f"the documents {seed} to {last} are not of one split of the texts: splits begin at {firsts} and end "
            f"before {_LAST}; choose another --seed, or fewer --samples"
        )
    return found[-1]
