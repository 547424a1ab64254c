"""Real tokenizers of few words, for prompts that say into which tiles pictures were cut."""

from __future__ import annotations

from typing import Any

import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from tests.families.zoo import IMAGE

hf: Any = transformers


def tokenizer(*special: str) -> Any:
    """A real tokenizer, of few words; <image> is the zoo's placeholder."""
    words = ["<unk>", "<pad>", "look", "\n", "at", "this"]
    named = {IMAGE: special[0]} | dict(zip([*range(20, IMAGE), *range(IMAGE + 1, 200)], special[1:], strict=False))
    vocabulary = {word: number for number, word in enumerate(words)} | {
        word: number for number, word in named.items()
    }
    core = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", pad_token="<pad>", additional_special_tokens=list(special)
    )
