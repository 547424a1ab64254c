"""Pictures that were cut into tiles."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from tests.families.zoo import IMAGE
from tests.inspection.local import PLACES, Box, Call, check, clear, flat, model_of, picture

hf: Any = transformers
SIZES = [(60, 90), (30, 20), (90, 40)]
TAGS = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]


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


def idefics3(side: int = 32) -> Any:
    words = tokenizer("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *TAGS)
    image_processor = hf.Idefics3ImageProcessorPil(
        size={"longest_edge": 96}, max_image_size={"longest_edge": side}, do_image_splitting=True
    )
    return hf.Idefics3Processor(image_processor, words, image_seq_len=16)


def named_call(name: str, sizes: list[tuple[int, int]], changed: int, square: Box) -> Call:
    model, processor = model_of(name), idefics3()

    def made(with_square: bool) -> Any:
        drawn = [picture(*s, square if with_square and n == changed else None) for n, s in enumerate(sizes)]
        return dict(processor(text="look at this " + "<image> " * len(sizes), images=[drawn], return_tensors="pt"))

    without, having = made(False), made(True)

    def features(given: Any) -> Any:
        taken = {name: given[name] for name in ("pixel_values", "pixel_attention_mask")}
        return flat(model.model.get_image_features(**taken).pooler_output)

    ids = without["input_ids"]
    return Call(model.config, processor, ids, without, clear(without, having), features)


@pytest.mark.parametrize("square", PLACES)
@pytest.mark.parametrize("name", ["idefics3", "smolvlm"])
def test_named_tiles_are_put_together(name: str, square: Box) -> None:
    for changed, title in enumerate(["picture 1", "picture 2", "picture 3"]):
        call = named_call(name, SIZES, changed, square)
        check(call, title, square)
        check(call, f"{title}, whole", square)
