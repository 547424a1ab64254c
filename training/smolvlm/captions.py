"""What pictures show in words of the language model's own: every caption is a short list of its tokens.

    python training/smolvlm/captions.py EMOJI TOKENIZER.json

lists the files of the folder EMOJI (of the npm package emoji-datasource-twitter, CC-BY 4.0) that training reads.
"""

from __future__ import annotations

import json
import re
import sys
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer

FILLER = "\n"
"""Stands on patches that show nothing."""
_CATEGORIES = ("Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects")
_EMOJI, _FLAGS, _WRITTEN = 160, 40, 160
# fmt: off
_NOT_SEEN = frozenset((
    "parking", "herb", "leaves", "cooking", "beers", "birthday", "dolls", "flags", "art", "runner", "swimmer",
    "label", "memo", "mega", "calling", "repeat", "mag", "back", "end", "soon", "top", "beginner", "customs",
    "seat", "date", "link", "smoking", "metro", "wireless", "unlock", "sound", "package", "pouch", "notes",
    "new", "free", "cool", "office", "station", "hotel", "chart", "eject", "wedding", "pick",
))
# fmt: on
"""Names of emoji that nobody would read off the picture."""


class Words:
    """The tokens that pictures are described in.

    Args:
        tokenizer: the language model's `tokenizer.json`.
        emoji: the folder of `emoji-datasource-twitter`; None leaves emoji and flags out.
    """

    def __init__(self, tokenizer: Path, emoji: Path | None) -> None:
        self.tokenizer: Tokenizer = Tokenizer.from_file(str(tokenizer))
        listed = json.loads((emoji / "emoji.json").read_text()) if emoji else []
        self.emoji = self._named(listed)
        self.flags = self._countries(listed)
        vocabulary = self.tokenizer.get_vocab(with_added_tokens=False)
        frequent = sorted(vocabulary, key=lambda token: vocabulary[token])
        whole = [token[1:] for token in frequent if re.fullmatch("Ġ[a-z]{5}", token)]
        # Tokens of five letters are often beginnings of longer words; what other tokens end in "s" or "ed" is a word.
        self.written = [word for word in whole if "Ġ" + word + "s" in vocabulary][:_WRITTEN]

    def ids(self, text: str) -> tuple[int, ...]:
        """The tokens of a text as it stands."""
        return tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)

    @cache  # noqa: B019 - one instance per process
    def said(self, word: str) -> tuple[int, ...]:
        """The tokens of a word in a sentence."""
        return self.ids(" " + word)

    def _one(self, word: str) -> bool:
        return len(self.said(word)) == 1

    def _named(self, listed: list[dict[str, object]]) -> dict[str, str]:
        """File by name of the emoji whose name is one token."""
        found: dict[str, str] = {}
        for emoji in listed:
            names = [n for n in emoji["short_names"] if re.fullmatch("[a-z]{3,10}", n) and self._one(n)]  # type: ignore[attr-defined]
            if emoji["has_img_twitter"] and emoji["category"] in _CATEGORIES and names and names[0] not in _NOT_SEEN:
                found.setdefault(names[0], str(emoji["image"]))
        kept = sorted(found, key=lambda name: self.said(name)[0])[:_EMOJI]
        return {name: found[name] for name in kept}

    def _countries(self, listed: list[dict[str, object]]) -> dict[str, str]:
        found: dict[str, str] = {}
        for emoji in listed:
            name = str(emoji["name"]).title()
            if (
                emoji["category"] == "Flags"
                and name.endswith(" Flag")
                and self._one(name[:-5])
                and name != "White Flag"
            ):
                found[name[:-5]] = str(emoji["image"])
        kept = sorted(found, key=lambda name: self.said(name)[0])[:_FLAGS]
        return {name: found[name] for name in kept}


def main() -> None:
    """Print the files."""
    folder = Path(sys.argv[1])
    words = Words(Path(sys.argv[2]), folder)
    for name in (*words.emoji.values(), *words.flags.values()):
        print(f"{folder.name}/img/twitter/64/{name}")
    print(f"{folder.name}/emoji.json")


if __name__ == "__main__":
    main()
