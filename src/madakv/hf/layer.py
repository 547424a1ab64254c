"""A layer of a transformers cache whose memory is uneven: what transformers asks of layers, and nothing more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from madakv.cache import Entries, LayerMemory, RaggedEntries
from madakv.errors import UnsupportedOptionError
from madakv.hf.rotary import Rope

IMPLEMENTATION = "madakv"
"""The name under which transformers knows madakv's attention; configs carry it inside `madakv.evict` only."""

_LAYER_TAG = "_madakv_layer"


def layer_behind(states: Tensor) -> RaggedLayer | None:
    """The cache layer that handed out these keys or values; None if they come from somewhere else."""
    return getattr(states, _LAYER_TAG, None)


def take_tags_off(*states: Tensor) -> None:
    """Of what a view keeps, which would hold its reading in a circle through tensors that Python does not collect."""
    for tagged in states:
        for name in [name for name in vars(tagged) if name.startswith("_madakv_")]:
            delattr(tagged, name)


class RaggedLayer(CacheLayerMixin):
    """One layer and its memory.

    In the prefill, `update` stores nothing: it hands the keys on to the attention function, which runs and then lets
    the cache's reading fill the memory, so that this layer never owns more than what is kept.

    Args:
        config: the text config that the attention modules consult.
        number: which of the cache's evicted layers this is.
        store: the kind of entries.

    Attributes:
        number: as given.
        memory: what the layer holds.
        norms: between attention and the residual stream, by the ids of the attention modules, while a prompt is read.
        rope: the positions of the prompt's tokens and what they turn, while it is read.
    """

    is_sliding = False
    is_compileable = False
    is_croppable = False
    supports_early_init = False

    def __init__(self, config: Any, number: int, store: type[Entries] = RaggedEntries) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._config = config
        self.number = number
        self.memory = LayerMemory(store)
        self.norms: Mapping[int, torch.nn.Module] = {}
        self.rope: Rope | None = None
        self.device = torch.device("cpu")
        self._arriving = 0

    @torch.no_grad()
    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Take in new tokens; returns the new ones alone, tagged so that attention finds this layer.

        Args:
            key_states: [B, H, n, Dk].
            value_states: [B, H, n, Dv].
        """
        if self._config._attn_implementation != IMPLEMENTATION:
            raise UnsupportedOptionError(
                "past_key_values=RaggedCache holds an evicted prompt that only madakv's attention finds; "
                "use it inside `with madakv.evict(model, ...)`"
            )
        if self.memory.entries is None:
            self.device, self._arriving, self.is_initialized = key_states.device, key_states.shape[2], True
            if key_states.device.type == "cpu" and not key_states.requires_grad:
                # Attention over heads that lie side by side, as projections leave them, takes an eighth longer there.
                key_states, value_states = key_states.contiguous(), value_states.contiguous()
        else:
            self.memory.append(key_states, value_states)
        for states in (key_states, value_states):
            setattr(states, _LAYER_TAG, self)
        return key_states, value_states

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to prepare: memory is taken when it is known how much is kept."""

    def get_seq_length(self) -> int:
        """LOGICAL length: all tokens seen, evicted ones included; transformers derives positions from it.

        Of a fixed tail it is a tensor on the device, as of transformers' static layers.
        """
        return self._arriving if self.memory.entries is None else cast(int, self.memory.seen)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Width and offset of the mask: after the prompt it covers the tail alone, kept entries are all seen."""
        if self.memory.entries is None:
            return query_length, 0
        return self.memory.tail.width_with(query_length), self.memory.span

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Follow beam search."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the given batch rows, in that order."""
        if self.memory.entries is not None:
            self.memory.select_rows(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every batch row."""
        if self.memory.entries is not None:
            counts = self.memory.entries.counts
            self.memory.select_rows(torch.arange(len(counts), device=counts.device).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: evicted entries cannot come back."""
        raise UnsupportedOptionError(
            f"crop({tokens_to_remove}) on an evicted cache: assisted decoding and prompt lookup cannot be combined "
            "with eviction"
        )

    def offload(self) -> None:
        """Move to the host's memory; `prefetch` brings back."""
        self.memory.to("cpu")

    def prefetch(self) -> None:
        """Move back to the device that the layer runs on."""
        self.memory.to(self.device)

    def reset(self) -> None:
        """Forget everything; the next tokens are a new prompt."""
        self.memory.clear()
        self.norms, self.rope, self._arriving, self.is_initialized = {}, None, 0, False
