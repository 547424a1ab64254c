"""How a model is shown documents: in which words, and with pictures of which sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from madakv.evaluation.documents.document import SEVERAL_SIZES, SIZES, TILES
from madakv.evaluation.documents.english import ENGLISH
from madakv.evaluation.documents.wording import TERSE, Wording


@dataclass(frozen=True)
class Presentation:
    """What `make_document` is told for a model: its `wording`, `sizes` and `scale`."""

    wording: Wording
    sizes: Sequence[tuple[int, int]]
    scale: int = 1


ONE_SIZE = Presentation(TERSE, SIZES)
SEVERAL = Presentation(TERSE, SEVERAL_SIZES)
PLAIN_ENGLISH = Presentation(ENGLISH, TILES, scale=2)


def presentation_for(processor: Any) -> Presentation:
    """What the model behind a processor, or a tokenizer, can read."""
    tokenizer = getattr(processor, "tokenizer", processor)
    # A tokenizer of whole words knows those of its documents; others know all of English.
    ids = tokenizer(ENGLISH.asked["differ"], add_special_tokens=False)["input_ids"]
    if tokenizer.unk_token_id is None or tokenizer.unk_token_id not in ids:
        return PLAIN_ENGLISH
    return SEVERAL if hasattr(getattr(processor, "image_processor", None), "merge_size") else ONE_SIZE
