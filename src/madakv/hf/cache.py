"""A transformers `Cache` whose full-attention layers keep an uneven share of the prompt per head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, cast
from weakref import ReferenceType, ref

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from madakv.attention.ragged import ragged_partial, weights_on_prompt
from madakv.attention.step import captured_step, publish, step_attention
from madakv.cache import FixedTail, RaggedEntries, Tail
from madakv.errors import UnsupportedModelError, UnsupportedOptionError
from madakv.eviction import PromptEviction
from madakv.merge import merge_evicted
from madakv.methods import Method
from madakv.modality import Modality
from madakv.plan import KeepPlan
from madakv.scoring import LayerView, attention_paid, most_attention

_LAYER_TAG = "_madakv_layer"


def layer_behind(states: Tensor) -> RaggedLayer | None:
    """The cache layer that handed out these keys or values; None if they come from somewhere else."""
    return getattr(states, _LAYER_TAG, None)


IMPLEMENTATION = "madakv"
"""The name under which transformers knows madakv's attention; configs carry it inside `madakv.evict` only."""


class _PromptSlot:
    """Where a cache and its layers meet: what is known of the prompt.

    Layers hold this and not their cache, so that no reference cycle keeps freed caches in memory.

    Attributes:
        config: the text config that the attention modules consult.
        modality: [B, N] of the prompt, once it is announced; follows the cache's rows.
        draft: [B, n] bool, where the last n of the tokens that are read are a draft of the answer, which is not kept:
            those of them that score.
        echo: [B, n] bool, where text of the prompt is read again as the last n tokens, which are not kept either:
            which of them are such text.
        echoes: whether tokens that are read after the prompt are its echo.
        eviction: the decisions, while the prompt is being read.
        layers: of the cache that reads it, for as long; layers may narrow those before them.
        norms: between attention and the residual stream, by the ids of the attention modules, for as long.
    """

    def __init__(self, config: Any) -> None:
        self.config = config
        self.modality: Tensor | None = None
        self.draft: Tensor | None = None
        self.echo: Tensor | None = None
        self.echoes = False
        self.eviction: PromptEviction | None = None
        self.layers: list[ReferenceType[RaggedLayer]] = []
        self.norms: Mapping[int, torch.nn.Module] = {}

    def reading(self) -> PromptEviction:
        """The eviction in progress."""
        if self.eviction is None:
            raise RuntimeError("no prompt is being read: call begin_prompt before the prefill")
        return self.eviction

    def narrow_layers(self) -> None:
        """Let layers that were read before go of what the newest one has taken from them."""
        for reference, plan in zip(self.layers, self.reading().plans, strict=False):
            if (layer := reference()) is not None:
                layer.narrow(plan)


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
        self._plan: KeepPlan | None = None
        self._handle: Tensor | None = None
        self._before: Tensor | None = None

    @property
    def awaits_prompt(self) -> bool:
        """Whether nothing has been evicted yet, so that the next tokens are the prompt."""
        return self.entries is None

    @property
    def norms(self) -> Mapping[int, torch.nn.Module]:
        """Those between attention and the residual stream, by the ids of the attention modules."""
        return self._slot.norms

    def modality(self, device: torch.device) -> Tensor:
        """[B, N] of the prompt, on a device."""
        if self._slot.modality is None:
            raise RuntimeError("the prompt was not announced: call begin_prompt before the prefill")
        return self._slot.modality.to(device)

    def modality_evicted(self, device: torch.device) -> Tensor:
        """[B, N] of the prompt alone, without a draft or an echo that is read with it, on a device."""
        return self._slot.reading().modality.to(device)

    def modality_read(self, device: torch.device) -> Tensor:
        """[B, T] of all tokens that are read together with the prompt, on a device."""
        modality, echo = self.modality(device), self._slot.echo
        if echo is None:
            return modality
        behind = torch.where(echo.to(device), int(Modality.TEXT), int(Modality.PADDING))
        return torch.cat([modality, behind.to(modality.dtype)], 1)

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
            if key_states.device.type == "cpu" and not key_states.requires_grad:
                # Attention over heads that lie side by side, as projections leave them, takes an eighth longer there.
                key_states, value_states = key_states.contiguous(), value_states.contiguous()
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
        eviction, draft, echo = self._slot.reading(), self._slot.draft, self._slot.echo
        whole, N = view, eviction.modality.shape[1]
        view = whole.prefix(N)
        number = eviction.score(view)
        T = whole.key.shape[2]
        if draft is not None:
            n = draft.shape[1]
            # One after another, as a lookahead hears them: a maximum over groups is not linear.
            apart = torch.eye(n, dtype=torch.bool, device=draft.device)[:, None] & draft
            for attention in attention_paid(whole, pad(apart, (N, T - N - n)).to(whole.key.device)):
                eviction.add_later(number, attention[..., :N])
        if echo is not None:
            heard = pad(echo, (T - echo.shape[1], 0)).to(whole.key.device)
            eviction.add_echo(number, most_attention(whole, heard)[..., :N])
        if eviction.method.waits:
            self.take(view, KeepPlan.everything(view.modality, view.key.shape[1]))
        else:
            plan = eviction.decide()
            # What others lose has to be gone before this layer takes memory.
            self._slot.narrow_layers()
            self.take(view, plan)

    @torch.no_grad()
    def take(self, view: LayerView, plan: KeepPlan) -> None:
        """Copy what is planned out of a prompt; all of it, if the method waits for more."""
        self.prompt_length = view.key.shape[2]
        self.device = view.key.device
        self._plan, plan = plan, plan.to(self.device)
        self.entries = RaggedEntries.gather(view.key, view.value, plan)
        if not self._slot.reading().method.waits:
            self._merge(view.key, view.value, plan, view.modality)
        self.full_nbytes = sum(x.numel() * x.element_size() for x in (view.key, view.value))
        self._mean_entries = sum(self.entries.lengths) // len(self.entries.lengths)
        self.is_initialized = True

    @torch.no_grad()
    def narrow(self, plan: KeepPlan) -> None:
        """Let go of what a plan keeps no more.

        Args:
            plan: some of the entries that are there.
        """
        if plan is self._plan or self.entries is None or self._plan is None:
            return
        device = self.entries.keys.device
        own, self._plan = self._plan, plan
        self.entries.narrow(own.to(device), plan.to(device))
        self._mean_entries = sum(self.entries.lengths) // len(self.entries.lengths)

    @torch.no_grad()
    def evict_later(self, plan: KeepPlan) -> None:
        """Evict a prompt that was kept whole so far."""
        whole = self.entries
        if whole is None:
            raise RuntimeError("there is no prompt to evict")
        if self._slot.reading().method.merge is None:
            self.narrow(plan)
            return
        device = whole.keys.device
        full = whole.rectangle(self.modality(device) != Modality.PADDING)
        self.narrow(plan)
        self._merge(*full, plan.to(device), self.modality(device))

    def forget_plan(self) -> None:
        """The prompt is decided: nobody will ask again which entries these are."""
        self._plan = None

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
        if isinstance(self.tail, FixedTail) and mask is None:
            mask = self.tail.visible(query.shape[2])
        options: dict[str, Any] = {"scaling": scaling, "mask": mask, "softcap": softcap, "sinks": sinks}
        if isinstance(self.tail, FixedTail) and self._handle is not None and torch.compiler.is_compiling():
            return captured_step(query, self._handle, self.tail, **options)
        if self._slot.eviction is None:
            out = step_attention(query, self.entries, self.tail, **options)
            if self._handle is None and isinstance(self.tail, FixedTail) and query.shape[2] == 1:
                # Only now: the step has made the tables that kernels read, which no capture may do.
                self._handle = publish(self.entries)
            return out
        part = ragged_partial(query, self.entries, self.tail, **options)
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
            seen[b, :, :, modality[b] != Modality.PADDING] = paid.amax(2) if self._slot.echoes else paid.sum(2)
        eviction = self._slot.reading()
        (eviction.add_echo if self._slot.echoes else eviction.add_later)(self.number, seen)

    def fix_tail(self, room: int) -> None:
        """From now on, keep later tokens at fixed addresses, with room for so many more."""
        if self.entries is None:
            raise RuntimeError("a tail is fixed after the prompt was evicted")
        B, H = self.entries.counts.shape
        like = (self.entries.keys, self.entries.values)
        self.tail = FixedTail.following(self.tail, like=like, owners=(B, H), room=room)
        self._handle = None
        self._before = torch.tensor(self.prompt_length, device=self.entries.keys.device)
        torch._dynamo.mark_static_address(self._before, guard=False)

    def free_tail(self) -> None:
        """From now on, let the tail grow as it needs to."""
        if isinstance(self.tail, FixedTail):
            self.tail, self._handle, self._before = self.tail.growing(), None, None

    @property
    def can_be_captured(self) -> bool:
        """Whether all that a step reads is where it stays: after one step that was not captured."""
        return self._handle is not None

    def move(self, device: torch.device | str) -> None:
        """Keep everything on another device from now on."""
        if self.entries is not None:
            self.entries = self.entries.to(device)
            self.tail.to(device)
            self._handle = None
            self._before = None if self._before is None else self._before.to(device)

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
        """LOGICAL length: all tokens seen, evicted ones included; transformers derives positions from it.

        Of a fixed tail it is a tensor on the device, as of transformers' static layers.
        """
        if isinstance(self.tail, FixedTail) and self._before is not None:
            return cast(int, self._before + self.tail.count)
        return self.prompt_length + self.tail.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Width and offset of the mask: after the prompt it covers the tail alone, kept entries are all seen."""
        if self.entries is None:
            return query_length, 0
        if isinstance(self.tail, FixedTail):
            return self.tail.length, self.prompt_length
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
            self._handle = None

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
        self._slot.eviction = self._slot.modality = self._slot.draft = self._slot.echo = None
        self._slot.layers, self._slot.norms, self._plan = [], {}, None
        self.entries, self.tail, self.prompt_length, self.is_initialized = None, Tail(), 0, False
        self._handle = self._before = None


class RaggedCache(Cache):
    """The cache of one generation under eviction.

    Full-attention layers are `RaggedLayer`s; sliding-window and linear-attention layers have small states of
    their own and stay what transformers makes them.

    Args:
        config: the model's config; its text part decides the layers.
        method: how to evict.
        room: tokens after the prompt; see `reserve`.

    Raises:
        UnsupportedModelError: no layer could be evicted, or layers share each other's entries.
        UnsupportedOptionError: room for a model with other layers.
    """

    def __init__(self, config: Any, method: Method, *, room: int | None = None) -> None:
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
        self._room: int | None = None
        self._used = 0
        self._masks_inside = False
        self.reserve(room)

    def reserve(self, room: int | None) -> None:
        """Say how many more tokens will be read after the prompt, so that they lie at fixed addresses.

        Passes that read one of them can then be captured. The memory is taken once the prompt is evicted.

        Args:
            room: tokens; None if nobody knows: then the cache grows, and cannot be captured.

        Raises:
            UnsupportedOptionError: layers that are left as they are have no fixed addresses.
        """
        others = sorted({type(layer).__name__ for layer in self.layers if not isinstance(layer, RaggedLayer)})
        if room is not None and others:
            raise UnsupportedOptionError(
                "cache_implementation='static' needs a model whose layers all have full attention; this one's cache "
                f"also has {', '.join(others)}"
            )
        self._room, self._used = room, 0
        if not self.awaits_prompt and not self.reads_prompt:
            self._set_tails()

    def _set_tails(self) -> None:
        for layer in self.ragged_layers:
            if self._room is None:
                layer.free_tail()
            else:
                layer.fix_tail(self._room - self._used)

    @property
    def is_fixed(self) -> bool:
        """Whether the prompt was evicted, and later tokens go to fixed addresses."""
        return self._room is not None and not self.awaits_prompt and not self.reads_prompt

    @property
    def can_be_captured(self) -> bool:
        """Whether all that a step reads is where it stays: after one step that was not captured."""
        return all(layer.can_be_captured for layer in self.ragged_layers)

    @property
    def is_compileable(self) -> bool:
        """Whether `generate` may compile its steps, and prepare their masks."""
        return self._room is not None and not self._masks_inside

    @contextmanager
    def masks_inside(self) -> Iterator[None]:
        """Let the model prepare its own masks, from those that say what is padding."""
        self._masks_inside = True
        try:
            yield
        finally:
            self._masks_inside = False

    def take_room(self, tokens: int) -> None:
        """Note that so many tokens are about to be read; counted on the host, so that nothing waits.

        Raises:
            UnsupportedOptionError: there is not enough room for them.
        """
        if self._room is not None and not self.awaits_prompt:
            if self._used + tokens > self._room:
                raise UnsupportedOptionError(
                    f"the cache has room for {self._room} tokens after the prompt; {self._used} were read, and "
                    f"{tokens} more do not fit"
                )
            self._used += tokens

    @property
    def awaits_prompt(self) -> bool:
        """Whether the next forward pass is the prefill; a one-token prompt is one too."""
        return self._slot.modality is None

    def forget_tail(self) -> None:
        """Forget what was read after the prompt."""
        for layer in self.ragged_layers:
            layer.tail = Tail()
        if self.is_fixed:
            self.reserve(self._room)

    def expect_draft(self, heard: Tensor) -> None:
        """Announce that a draft follows the prompt, [B, n] bool: which of its tokens score. None of them is kept."""
        self._slot.draft = heard

    def expect_echo(self, said: Tensor) -> None:
        """Announce that text of the prompt is read again as the last tokens, [B, n] bool: which of them are text."""
        self._slot.echo = said

    @contextmanager
    def hearing_echo(self) -> Iterator[None]:
        """What is read inside the block, by a cache that waits, is the prompt's own text once more."""
        self._slot.echoes = True
        try:
            yield
        finally:
            self._slot.echoes = False

    @property
    def reads_prompt(self) -> bool:
        """Whether the prompt has been announced and `end_prompt` has not been called."""
        return self._slot.eviction is not None

    @property
    def hears_echo(self) -> bool:
        """Whether a `hearing_echo` block is open."""
        return self._slot.echoes

    @property
    def prompt_ahead(self) -> Tensor | None:
        """[B, N] of `Modality` values of the prompt that the pass in progress is about to read; None in others."""
        due = self.reads_prompt and self.ragged_layers[0].awaits_prompt
        return self._slot.reading().modality if due else None

    @property
    def is_due(self) -> bool:
        """Whether the method has seen as many tokens after the prompt as it waits for."""
        later = self.ragged_layers[0].tail.length
        return later >= self.method.lookahead and not self.hears_echo

    @property
    def modality(self) -> Tensor | None:
        """[B, N] of the prompt; None before it is announced."""
        return self._slot.modality

    def begin_prompt(self, modality: Tensor, norms: Mapping[int, torch.nn.Module] | None = None) -> None:
        """Announce the prompt that the next forward pass reads.

        Args:
            modality: [B, N] of `Modality` values.
            norms: of the model between attention and the residual stream, by the ids of the attention modules.
        """
        self._slot.norms = norms or {}
        self._slot.modality, self._used = modality, 0
        drafted = 0 if self._slot.draft is None else self._slot.draft.shape[1]
        own = modality[:, : modality.shape[1] - drafted]
        self._slot.eviction = PromptEviction(self.method, own, len(self.evicted_layers))
        if not self.method.waits:
            self._slot.layers = [ref(layer) for layer in self.ragged_layers]

    def take_prompt(self, eviction: PromptEviction, views: Sequence[LayerView]) -> None:
        """Take over a prompt that was read and scored elsewhere.

        Args:
            eviction: knows the scores of all layers, and has decided none.
            views: of all layers.
        """
        self._slot.modality, self._slot.eviction, self._used = eviction.modality, eviction, 0
        plans = [KeepPlan.everything(view.modality, view.key.shape[1]) for view in views]
        if not eviction.method.waits:
            for _ in views:
                eviction.decide()
            plans = eviction.plans
        for layer, view, plan in zip(self.ragged_layers, views, plans, strict=True):
            layer.take(view, plan)

    @property
    def eviction(self) -> PromptEviction:
        """The decisions about the prompt that is being read."""
        return self._slot.reading()

    def end_prompt(self) -> list[KeepPlan]:
        """Hand over the plans of the evicted layers, in order; the cache lets go of them.

        Layers whose eviction was put off are evicted now, whatever the method still waits for.
        """
        eviction = self._slot.reading()
        self._slot.modality, self._slot.draft, self._slot.echo = eviction.modality, None, None
        if eviction.method.waits:
            for _ in self.ragged_layers:
                eviction.decide()
            for layer, plan in zip(self.ragged_layers, eviction.plans, strict=True):
                layer.evict_later(plan)
        for layer in self.ragged_layers:
            layer.forget_plan()
        self._slot.eviction, self._slot.layers, self._slot.norms = None, [], {}
        if self._room is not None:
            self._set_tails()
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
