"""A transformers `Cache` whose full-attention layers keep an uneven share of the prompt per head."""

from __future__ import annotations

from itertools import count
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from madakv.attention.backend import decode_attention
from madakv.attention.ragged import ragged_partial, weights_on_prompt
from madakv.cache import RaggedEntries, Tail
from madakv.errors import UnsupportedModelError, UnsupportedOptionError
from madakv.eviction import PromptEviction
from madakv.merge import merge_evicted
from madakv.methods import Method
from madakv.modality import Modality
from madakv.plan import KeepPlan
from madakv.scoring import LayerView, attention_paid

_LAYER_TAG = "_madakv_layer"


def layer_behind(states: Tensor) -> RaggedLayer | None:
    """The cache layer that handed out these keys or values; None if they come from somewhere else."""
    return getattr(states, _LAYER_TAG, None)


IMPLEMENTATION = "madakv"
"""The name under which transformers knows madakv's attention; configs carry it inside `madakv.evict` only."""


def attention_to_prefix(view: LayerView, heard: Tensor) -> Tensor:
    """What those of the last tokens that are `heard` ([B, n] bool) attend to among all before the last n.

    Returns:
        [B, H, G, N] fp32.
    """
    N = view.key.shape[2] - heard.shape[1]
    return attention_paid(view, pad(heard.to(view.key.device), (N, 0)))[..., :N]


class _PromptSlot:
    """Where a cache and its layers meet: what is known of the prompt.

    Layers hold this and not their cache, so that no reference cycle keeps freed caches in memory.

    Attributes:
        config: the text config that the attention modules consult.
        modality: [B, N] of the prompt, once it is announced; follows the cache's rows.
        draft: [B, n] bool, where the last n of the tokens that are read are a draft of the answer, which is not kept:
            those of them that score.
        eviction: the decisions, while the prompt is being read.
    """

    def __init__(self, config: Any) -> None:
        self.config = config
        self.modality: Tensor | None = None
        self.draft: Tensor | None = None
        self.eviction: PromptEviction | None = None

    def reading(self) -> PromptEviction:
        """The eviction in progress."""
        if self.eviction is None:
            raise RuntimeError("no prompt is being read: call begin_prompt before the prefill")
        return self.eviction


class RaggedLayer(CacheLayerMixin):
    """One layer: the kept entries of the prompt, and a tail of all that came after it.

    In the prefill, `update` stores nothing: it hands the keys on to the attention function, which runs and then
    calls `read_prompt`, so that this layer never owns more than what it keeps.

    Attributes:
        number: which of the cache's evicted layers this is.
    """

    is_sliding = False
    is_compileable = False
    is_croppable = False
    supports_early_init = False

    def __init__(self, slot: _PromptSlot, number: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._slot = slot
        self.number = number
        self.entries: RaggedEntries | None = None
        self.tail = Tail()
        self.prompt_length = 0
        self.full_nbytes = 0
        self.device = torch.device("cpu")
        self._mean_entries = 0

    @property
    def awaits_prompt(self) -> bool:
        """Whether nothing has been evicted yet, so that the next tokens are the prompt."""
        return self.entries is None

    def modality(self, device: torch.device) -> Tensor:
        """[B, N] of the prompt, on a device."""
        if self._slot.modality is None:
            raise RuntimeError("the prompt was not announced: call begin_prompt before the prefill")
        return self._slot.modality.to(device)

    @torch.no_grad()
    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Take in new tokens; returns the new ones alone, tagged so that attention finds this layer.

        Args:
            key_states: [B, H, n, Dk].
            value_states: [B, H, n, Dv].
        """
        if self._slot.config._attn_implementation != IMPLEMENTATION:
            raise UnsupportedOptionError(
                "past_key_values=RaggedCache holds an evicted prompt that only madakv's attention finds; "
                "use it inside `with madakv.evict(model, ...)`"
            )
        if self.entries is None:
            self.prompt_length = key_states.shape[2]
        else:
            self.tail.append(key_states, value_states, self._mean_entries)
        for states in (key_states, value_states):
            setattr(states, _LAYER_TAG, self)
        return key_states, value_states

    @torch.no_grad()
    def read_prompt(self, view: LayerView) -> None:
        """Score the prompt and keep only what is decided; or all of it, if the method waits for more.

        Without gradients: an autograd graph behind the kept entries would keep the evicted ones alive.
        """
        eviction = self._slot.reading()
        if self._slot.draft is not None:
            whole, view = view, view.prefix(view.key.shape[2] - self._slot.draft.shape[1])
            eviction.score(view)
            for token in torch.eye(self._slot.draft.shape[1], dtype=torch.bool):
                # One after another, as a lookahead hears them: a maximum over groups is not linear.
                heard = self._slot.draft & token.to(self._slot.draft.device)
                eviction.add_later(self.number, attention_to_prefix(whole, heard))
            self.prompt_length = view.key.shape[2]
        else:
            eviction.score(view)
        if eviction.method.waits:
            plan = KeepPlan.everything(view.modality, view.key.shape[1])
            self.entries = RaggedEntries.gather(view.key, view.value, plan)
        else:
            plan = eviction.decide().to(view.key.device)
            self.entries = RaggedEntries.gather(view.key, view.value, plan)
            self._merge(view.key, view.value, plan, view.modality)
        self.device = view.key.device
        self.full_nbytes = sum(x.numel() * x.element_size() for x in (view.key, view.value))
        self._mean_entries = sum(self.entries.lengths) // len(self.entries.lengths)
        self.is_initialized = True

    @torch.no_grad()
    def evict_later(self) -> None:
        """Evict a prompt that was kept whole so far."""
        whole = self.entries
        if whole is None:
            raise RuntimeError("there is no prompt to evict")
        plan = self._slot.reading().decide().to(whole.keys.device)
        valid = self.modality(whole.keys.device) != Modality.PADDING
        self.entries = whole.narrow(plan, valid.cumsum(-1) - 1)
        if self._slot.reading().method.merge is not None:
            self._merge(*whole.rectangle(valid), plan, self.modality(whole.keys.device))
        self._mean_entries = sum(self.entries.lengths) // len(self.entries.lengths)

    def _merge(self, keys: Tensor, values: Tensor, plan: KeepPlan, modality: Tensor) -> None:
        """Leave a trace of evicted entries in those that stay, if the method does so."""
        how = self._slot.reading().method.merge
        if how is not None and self.entries is not None:
            self.entries = self.entries.replaced(*merge_evicted(keys, values, plan, modality, how))

    def attend(
        self,
        query: Tensor,
        *,
        scaling: float,
        mask: Tensor | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Attention of the newest tokens over this layer; see `ragged_attention`."""
        if self.entries is None:
            raise RuntimeError("attend was called before the prompt was read")
        options: dict[str, Any] = {"scaling": scaling, "mask": mask, "softcap": softcap, "sinks": sinks}
        if self._slot.eviction is None:
            out = decode_attention(query, self.entries, self.tail, **options)
            if out is not None:
                return out
        part = ragged_partial(query, self.entries, self.tail, **options)
        if self._slot.eviction is not None:
            self._note(query, part.lse, scaling, softcap)
        B, Hq, Q, _ = query.shape
        return part.out.to(query.dtype).view(B, Hq, Q, -1)

    @torch.no_grad()
    def _note(self, query: Tensor, lse: Tensor, scaling: float, softcap: float | None) -> None:
        """Add what a generated token attends to to the scores of the prompt, which is still whole."""
        if self.entries is None:
            return
        modality = self.modality(query.device)
        weights = weights_on_prompt(query, self.entries, lse, scaling=scaling, softcap=softcap)
        B, N = modality.shape
        seen = weights[0].new_zeros(B, *weights[0].shape[:2], N)
        for b, paid in enumerate(weights):
            seen[b, :, :, modality[b] != Modality.PADDING] = paid.sum(2)
        self._slot.reading().add_later(self.number, seen)

    def move(self, device: torch.device | str) -> None:
        """Keep everything on another device from now on."""
        if self.entries is not None:
            self.entries = self.entries.to(device)
            self.tail.to(device)

    def offload(self) -> None:
        """Move to the host's memory; `prefetch` brings back."""
        self.move("cpu")

    def prefetch(self) -> None:
        """Move back to the device that the layer runs on."""
        self.move(self.device)

    @property
    def nbytes(self) -> int:
        """Bytes of live storage."""
        return (self.entries.nbytes if self.entries is not None else 0) + self.tail.nbytes

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to prepare: memory is taken when it is known how much is kept."""

    def get_seq_length(self) -> int:
        """LOGICAL length: all tokens seen, evicted ones included; transformers derives positions from it."""
        return self.prompt_length + self.tail.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Width and offset of the mask: after the prompt it covers the tail alone, kept entries are all seen."""
        if self.entries is None:
            return query_length, 0
        return self.tail.length + query_length, self.prompt_length

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Follow beam search."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the given batch rows, in that order."""
        if self.entries is not None:
            rows = indices.to(self.entries.counts.device)
            self.entries = self.entries.select_rows(rows)
            self.tail.select_rows(rows)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every batch row."""
        if self.entries is not None:
            rows = torch.arange(self.entries.counts.shape[0], device=self.entries.counts.device)
            self.batch_select_indices(rows.repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: evicted entries cannot come back."""
        raise UnsupportedOptionError(
            f"crop({tokens_to_remove}) on an evicted cache: assisted decoding and prompt lookup cannot be combined "
            "with eviction"
        )

    def reset(self) -> None:
        """Forget everything; the next tokens are a new prompt."""
        self._slot.eviction = self._slot.modality = None
        self.entries, self.tail, self.prompt_length, self.is_initialized = None, Tail(), 0, False


class RaggedCache(Cache):
    """The cache of one generation under eviction.

    Full-attention layers are `RaggedLayer`s; sliding-window and linear-attention layers have small states of
    their own and stay what transformers makes them.

    Args:
        config: the model's config; its text part decides the layers.
        method: how to evict.

    Raises:
        UnsupportedModelError: no layer could be evicted, or layers share each other's entries.
    """

    def __init__(self, config: Any, method: Method) -> None:
        text_config = config.get_text_config(decoder=True)
        if getattr(text_config, "num_kv_shared_layers", None):
            raise UnsupportedModelError(
                f"{text_config.model_type!r} lets layers share KV entries (num_kv_shared_layers = "
                f"{text_config.num_kv_shared_layers}); evicting them per layer is not supported"
            )
        self._slot = _PromptSlot(text_config)
        number = count()
        layers = [
            RaggedLayer(self._slot, next(number)) if type(layer) is DynamicLayer else layer
            for layer in DynamicCache(config=text_config).layers
        ]
        super().__init__(layers=layers)
        self.method = method
        self.evicted_layers = tuple(i for i, layer in enumerate(layers) if isinstance(layer, RaggedLayer))
        if not self.evicted_layers:
            kinds = sorted({type(layer).__name__ for layer in layers})
            raise UnsupportedModelError(
                f"{text_config.model_type!r} has no full-attention layer to evict (its cache layers: {kinds})"
            )

    @property
    def awaits_prompt(self) -> bool:
        """Whether the next forward pass is the prefill; a one-token prompt is one too."""
        return self._slot.modality is None

    def forget_tail(self) -> None:
        """Forget what was read after the prompt."""
        for layer in self.ragged_layers:
            layer.tail = Tail()

    def expect_draft(self, heard: Tensor) -> None:
        """Announce that a draft follows the prompt, [B, n] bool: which of its tokens score. None of them is kept."""
        self._slot.draft = heard

    @property
    def reads_prompt(self) -> bool:
        """Whether the prompt has been announced and `end_prompt` has not been called."""
        return self._slot.eviction is not None

    @property
    def is_due(self) -> bool:
        """Whether the method has seen as many tokens after the prompt as it waits for."""
        later = self.ragged_layers[0].tail.length
        return later >= self.method.lookahead

    @property
    def modality(self) -> Tensor | None:
        """[B, N] of the prompt; None before it is announced."""
        return self._slot.modality

    def begin_prompt(self, modality: Tensor) -> None:
        """Announce the prompt that the next forward pass reads.

        Args:
            modality: [B, N] of `Modality` values.
        """
        self._slot.modality = modality
        drafted = 0 if self._slot.draft is None else self._slot.draft.shape[1]
        own = modality[:, : modality.shape[1] - drafted]
        self._slot.eviction = PromptEviction(self.method, own, len(self.evicted_layers))

    def end_prompt(self) -> list[KeepPlan]:
        """Hand over the plans of the evicted layers, in order; the cache lets go of them.

        Layers whose eviction was put off are evicted now, whatever the method still waits for.
        """
        eviction = self._slot.reading()
        self._slot.modality, self._slot.draft = eviction.modality, None
        if eviction.method.waits:
            for layer in self.ragged_layers:
                layer.evict_later()
        self._slot.eviction = None
        return eviction.plans

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the given batch rows, in that order."""
        self._refuse_while_waiting()
        super().batch_select_indices(indices)
        if self._slot.modality is not None:
            self._slot.modality = self._slot.modality[indices.to(self._slot.modality.device)]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every batch row."""
        self._refuse_while_waiting()
        super().batch_repeat_interleave(repeats)
        if self._slot.modality is not None:
            self._slot.modality = self._slot.modality.repeat_interleave(repeats, dim=0)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Follow beam search."""
        self._refuse_while_waiting()
        super().reorder_cache(beam_idx)
        if self._slot.modality is not None:
            self._slot.modality = self._slot.modality[beam_idx.to(self._slot.modality.device)]

    def _refuse_while_waiting(self) -> None:
        if self._slot.eviction is not None:
            raise UnsupportedOptionError(
                f"lookahead={self.method.lookahead} scores the rows of the prompt, and cannot be combined with "
                "beam search or other changes of rows before eviction"
            )

    @property
    def unread_layers(self) -> list[int]:
        """Model indices of the layers that should have been evicted and have not been."""
        return [i for i in self.evicted_layers if cast(RaggedLayer, self.layers[i]).awaits_prompt]

    @property
    def ragged_layers(self) -> list[RaggedLayer]:
        """The layers that are evicted."""
        return [layer for layer in self.layers if isinstance(layer, RaggedLayer)]

    @property
    def nbytes(self) -> int:
        """Bytes of live storage of the evicted layers, tails included."""
        return sum(layer.nbytes for layer in self.ragged_layers)

    @property
    def prompt_nbytes(self) -> int:
        """Bytes of live storage of what the evicted layers keep of the prompt."""
        return sum(layer.entries.nbytes for layer in self.ragged_layers if layer.entries is not None)

    @property
    def full_nbytes(self) -> int:
        """Bytes that the evicted layers would store for the same prompt in a full cache."""
        return sum(layer.full_nbytes for layer in self.ragged_layers)

    @property
    def other_nbytes(self) -> int:
        """Bytes of the layers that are left as they are: sliding windows, states of linear attention."""
        total = 0
        for layer in self.layers:
            if not isinstance(layer, RaggedLayer):
                states = [getattr(layer, name, None) for name in ("keys", "values")]
                for name in ("conv_states", "recurrent_states"):
                    states += list(getattr(layer, name, {}).values())
                total += sum(x.untyped_storage().nbytes() for x in states if isinstance(x, Tensor))
        return total
