"""Attention over what was kept: uneven heads, packed without padding, beside a tail of new tokens."""

from madakv.attention.prompt import prompt_attention
from madakv.attention.ragged import ragged_attention
from madakv.attention.reference import ragged_attention_reference

__all__ = ["prompt_attention", "ragged_attention", "ragged_attention_reference"]
