"""Tokens as pieces of text: together they are the text, and none is lost or broken."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from madakv.inspection.pieces import pieces

TEXTS = [
    "Plain words, and more: of  two blanks.",
    " begins with a blank\nand goes on\n\n  below",
    "naïve café, Straße, 東京タワー, Ελλάς, שלום, مرحبا",
    "flags 🇩🇪🇫🇷, a family 👩‍👩‍👧‍👦, 𐍈𐎀",
    "</script><img onerror=1> [/b] {{7*7}} \u202eright to left",
]


@cache
def byte_level() -> Any:
    """A tokenizer of bytes: characters beyond ASCII are several tokens each."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@cache
def metaspace() -> Any:
    """One as SentencePiece's: a word's blank belongs to its token, and what is unknown is bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["a", "▁", "▁Plain", "▁words", ",", "▁and", "▁more", ":", "<unk>"]
    vocabulary = {symbol: number for number, symbol in enumerate(words)}
    vocabulary |= {f"<0x{byte:02X}>": len(words) + byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("make", [byte_level, metaspace])
def test_pieces_are_the_text(make: Any, text: str) -> None:
    ids = make()(text, add_special_tokens=False)["input_ids"]
    found = pieces(make(), ids)
    assert len(found) == len(ids)
    # The blank that SentencePiece puts before a text is one of its tokens.
    assert "".join(found).removeprefix(" ") == text.removeprefix(" ")
    assert not any("\ufffd" in piece for piece in found)


def test_bytes_of_no_character_are_marked_and_hurt_nobody() -> None:
    tokenizer = byte_level()
    ids = tokenizer("é", add_special_tokens=False)["input_ids"]
    words = tokenizer("fine", add_special_tokens=False)["input_ids"]
    assert pieces(tokenizer, [ids[1], *words, ids[0]]) == ["\ufffd", *"fine", "\ufffd"]


def test_nothing_is_no_piece() -> None:
    assert pieces(byte_level(), []) == []
