"""Attention over what was kept: uneven heads, packed without padding, beside a tail of new tokens."""

from madakv.attention.memory import attend
from madakv.attention.paged import paged_attention
from madakv.attention.pages import Pages
from madakv.attention.prompt import attention_of_newest, prompt_attention
from madakv.attention.ragged import (
    ragged_attention,
    ragged_partial,
    weights_on_entries,
    weights_on_prompt,
    weights_on_tail,
)
from madakv.attention.reference import paged_attention_reference, ragged_attention_reference

__all__ = [
    "Pages",
    "attend",
    "attention_of_newest",
    "paged_attention",
    "paged_attention_reference",
    "prompt_attention",
    "ragged_attention",
    "ragged_attention_reference",
    "ragged_partial",
    "weights_on_entries",
    "weights_on_prompt",
    "weights_on_tail",
]
