"""A transformers `Cache` whose full-attention layers keep an uneven share of the prompt per head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from madakv.cache import Entries, FixedTail, RaggedEntries
from madakv.errors import UnsupportedModelError, UnsupportedOptionError
from madakv.hf.layer import RaggedLayer
from madakv.kept import Kept
from madakv.methods import Method
from madakv.plan import KeepPlan
from madakv.reading import Prompt, Reading, Revision, Scores, Trigger
from madakv.reading.probes import Probe
from madakv.recording import Recording

_READING_TAG = "_madakv_reading"
_RECORDING_TAG = "_madakv_recording"


def reading_behind(states: Tensor) -> Reading | Revision | None:
    """Whoever reads or hears the pass that these keys are of; None if nobody does."""
    return getattr(states, _READING_TAG, None)


def recording_behind(states: Tensor) -> Recording | None:
    """Who looks on at the pass that these keys are of; None if nobody does."""
    return getattr(states, _RECORDING_TAG, None)


class RaggedCache(Cache):
    """The cache of one generation under eviction.

    Full-attention layers are `RaggedLayer`s; sliding-window and linear-attention layers have small states of
    their own and stay what transformers makes them. All that is known of a pass in progress is here: nothing of it
    lives on the model or on a hook.

    Args:
        config: the model's config; its text part decides the layers.
        method: how to evict.
        room: tokens after the prompt; see `reserve`.
        trigger: when to evict; None: as the method has it.
        store: how kept entries are held.
        records: whether a `Recording` looks on.

    Attributes:
        recording: who looks on at the prompt that was announced last, and its answer; None if nobody does.
        kept: what was noted after the last decision; None before the first.
        prompt: what was decided over, or is being read; None before it is announced. Follows the cache's rows.
        reading: who reads the prompt, or hears what comes after it; None once all is decided for good.
        checked: whether the pass in progress has been seen to, and is not to be looked at again.
        generating: whether `generate` makes the passes: it hides in no step what it did not hide in the one before.

    Raises:
        UnsupportedModelError: no layer could be evicted, or layers share each other's entries.
        UnsupportedOptionError: room for a model with other layers.
    """

    def __init__(
        self,
        config: Any,
        method: Method,
        *,
        room: int | None = None,
        trigger: Trigger | None = None,
        store: type[Entries] = RaggedEntries,
        records: bool = False,
    ) -> None:
        text_config = config.get_text_config(decoder=True)
        if getattr(text_config, "num_kv_shared_layers", None):
            raise UnsupportedModelError(
                f"{text_config.model_type!r} lets layers share KV entries (num_kv_shared_layers = "
                f"{text_config.num_kv_shared_layers}); evicting them per layer is not supported"
            )
        number = count()
        layers = [
            RaggedLayer(text_config, next(number), store) if type(layer) is DynamicLayer else layer
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
        if trigger is not None and trigger.repeats:
            Revision.check(method)
        self.prompt: Prompt | None = None
        self.reading: Reading | Revision | None = None
        self.recording: Recording | None = None
        self.kept: Kept | None = None
        self.checked = False
        self.generating = False
        self._mask_seen = False
        self._trigger = trigger
        self._records = records
        self._expected: list[Probe] = []
        self._cut: int | None = None
        self._room: int | None = None
        self._used = 0
        self._masks_inside = False
        self.reserve(room)

    # -- a pass

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Take in a layer's new tokens; the tags on what comes back die with the pass."""
        states = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if self.reading is not None and isinstance(self.layers[layer_idx], RaggedLayer):
            setattr(states[0], _READING_TAG, self.reading)
        if self.recording is not None:
            setattr(states[0], _RECORDING_TAG, self.recording)
        return states

    def expect(self, probe: Probe) -> None:
        """Announce, before the prompt's pass, that its last tokens are somebody who is heard and not kept."""
        self._expected.append(probe)

    def begin(
        self, modality: Tensor, norms: Mapping[int, torch.nn.Module] | None = None, *, scores: Scores | None = None
    ) -> Reading:
        """Announce the prompt that the next forward pass reads.

        Args:
            modality: [B, T] of `Modality` values, those whom the cache was told to `expect` included.
            norms: of the model between attention and the residual stream, by the ids of the attention modules.
            scores: of all layers, where they are known already.
        """
        probes, self._expected, self._used = self._expected, [], 0
        self.prompt = Prompt(modality[:, : modality.shape[1] - sum(probe.span for probe in probes)])
        for layer in self.ragged_layers:
            layer.norms = norms or {}
        memories = [layer.memory for layer in self.ragged_layers]
        self.recording = Recording(self.prompt.modality) if self._records else None
        reading = Reading(
            self.method,
            self.prompt,
            memories,
            probes=probes,
            trigger=self._trigger,
            scores=scores,
            recording=self.recording,
        )
        self.reading = reading
        return reading

    def decide(self) -> list[KeepPlan]:
        """Decide what is open, whatever was still waited for; returns the plans of the evicted layers, in order.

        Raises:
            RuntimeError: nobody reads.
        """
        reading = self.reading
        if reading is None:
            raise RuntimeError("there is nothing to decide: no prompt is being read")
        plans = reading.decide()
        if isinstance(reading, Revision):
            self.prompt = reading.prompt
        else:
            self.reading = reading.revision()
        for layer in self.ragged_layers:
            layer.norms, layer.rope = {}, None
        if self._room is not None:
            self._set_tails()
        return plans

    @contextmanager
    def seen_to(self) -> Iterator[None]:
        """What is passed inside the block has been checked; also where it was to be compiled, and is not."""
        self.checked = True
        try:
            yield
        finally:
            self.checked = False

    @contextmanager
    def in_generate(self) -> Iterator[None]:
        """Passes inside the block are those of one `generate` call."""
        self.generating, self._mask_seen = True, False
        try:
            yield
        finally:
            self.generating = False

    def cut_at(self, tokens: int | None) -> int | None:
        """Note how many of the tokens of the decoder's pass its caller asked for, or None; returns what was noted."""
        before, self._cut = self._cut, tokens
        return before

    def trusts_masks(self) -> bool:
        """Whether a step's mask hides what the one before it hid; where it may not, it has to be looked at.

        Looking makes the host wait for the device, so that `generate`'s are looked at once.
        """
        before, self._mask_seen = self._mask_seen, self.generating
        return before and self.generating

    # -- where it stands

    @property
    def awaits_prompt(self) -> bool:
        """Whether the next forward pass is the prefill; a one-token prompt is one too."""
        return self.prompt is None

    @property
    def reads_prompt(self) -> bool:
        """Whether the prompt has been announced and is not decided yet."""
        return isinstance(self.reading, Reading)

    @property
    def prompt_ahead(self) -> Reading | None:
        """The reading of the prompt that the pass in progress is about to read; None in others."""
        reading = self.reading
        return reading if isinstance(reading, Reading) and not reading.layers_read else None

    @property
    def is_interrupted(self) -> bool:
        """Whether the pass that read the prompt, or its echo, did not come to its end."""
        reading = self.reading
        return bool(self.unread_layers) or (isinstance(reading, Reading) and reading.awaits_echo)

    @property
    def unread_layers(self) -> list[int]:
        """Model indices of the layers that should have been evicted and have not been."""
        return [
            i
            for i, layer in enumerate(self.layers)
            if isinstance(layer, RaggedLayer) and layer.memory.entries is None
        ]

    @property
    def ragged_layers(self) -> list[RaggedLayer]:
        """The layers that are evicted."""
        return [layer for layer in self.layers if isinstance(layer, RaggedLayer)]

    @property
    def nbytes(self) -> int:
        """Bytes of live storage of the evicted layers, tails included."""
        return sum(layer.memory.nbytes for layer in self.ragged_layers)

    @property
    def prompt_nbytes(self) -> int:
        """Bytes of live storage of what the evicted layers keep of the prompt."""
        entries = (layer.memory.entries for layer in self.ragged_layers)
        return sum(own.nbytes for own in entries if own is not None)

    @property
    def full_nbytes(self) -> int:
        """Bytes that the evicted layers would store for the same prompt in a full cache."""
        return sum(layer.memory.full_nbytes for layer in self.ragged_layers)

    @property
    def other_nbytes(self) -> int:
        """Bytes of the layers that are left as they are: sliding windows, states of linear attention."""
        return sum(state_nbytes(layer) for layer in self.layers if not isinstance(layer, RaggedLayer))

    # -- later tokens at fixed addresses

    def reserve(self, room: int | None) -> None:
        """Say how many more tokens will be read after the prompt, so that they lie at fixed addresses.

        Passes that read one of them can then be captured. The memory is taken once the prompt is evicted.

        Args:
            room: tokens; None if nobody knows: then the cache grows, and cannot be captured.

        Raises:
            UnsupportedOptionError: layers that are left as they are have no fixed addresses, or entries move.
        """
        others = sorted({type(layer).__name__ for layer in self.layers if not isinstance(layer, RaggedLayer)})
        if room is not None and others:
            raise UnsupportedOptionError(
                "cache_implementation='static' needs a model whose layers all have full attention; this one's cache "
                f"also has {', '.join(others)}"
            )
        if room is not None and self._records:
            raise UnsupportedOptionError(
                "cache_implementation='static' cannot be combined with record=True, which looks on at every step"
            )
        if room is not None and self._trigger is not None and self._trigger.repeats:
            raise UnsupportedOptionError(
                f"cache_implementation='static' cannot be combined with {self._trigger}, which evicts again and "
                "moves what has to stay at its address"
            )
        self._room, self._used = room, 0
        if not self.awaits_prompt and not self.reads_prompt:
            self._set_tails()

    def _set_tails(self) -> None:
        for layer in self.ragged_layers:
            if self._room is None:
                layer.memory.free_tail()
            else:
                layer.memory.fix_tail(self._room - self._used)

    @property
    def is_fixed(self) -> bool:
        """Whether the prompt was evicted, and later tokens go to fixed addresses."""
        return self._room is not None and not self.awaits_prompt and not self.reads_prompt

    @property
    def can_be_captured(self) -> bool:
        """Whether all that a step reads is where it stays: after one step that was not captured."""
        return all(
            isinstance(layer.memory.tail, FixedTail) and layer.memory.tail.handle is not None
            for layer in self.ragged_layers
        )

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

    def forget_tail(self) -> None:
        """Forget what was read after the prompt."""
        for layer in self.ragged_layers:
            layer.memory.forget_tail()
        if self.is_fixed:
            self.reserve(self._room)

    # -- rows

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the given batch rows, in that order."""
        self._refuse_while_reading()
        super().batch_select_indices(indices)
        self._select_rows_of_prompt(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every batch row."""
        self._refuse_while_reading()
        super().batch_repeat_interleave(repeats)
        if self.prompt is not None:
            rows = torch.arange(len(self.prompt.modality), device=self.prompt.modality.device)
            self._select_rows_of_prompt(rows.repeat_interleave(repeats))

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Follow beam search."""
        self._refuse_while_reading()
        super().reorder_cache(beam_idx)
        self._select_rows_of_prompt(beam_idx)

    def _select_rows_of_prompt(self, rows: Tensor) -> None:
        self.prompt = None if self.prompt is None else self.prompt.select_rows(rows)

    def _refuse_while_reading(self) -> None:
        if self.reads_prompt:
            raise UnsupportedOptionError(
                f"lookahead={self.method.lookahead} scores the rows of the prompt, and cannot be combined with "
                "beam search or other changes of rows before eviction"
            )
        if self.recording is not None:
            raise UnsupportedOptionError(
                "record=True follows the rows of the prompt, and cannot be combined with beam search or other "
                "changes of rows"
            )
        if self.reading is not None:
            raise UnsupportedOptionError(
                f"{self._trigger} decides again over the rows that it knows, and cannot be combined with beam search "
                "or other changes of rows"
            )

    def reset(self) -> None:
        """Forget everything; the next tokens are a new prompt."""
        super().reset()  # type: ignore[no-untyped-call]
        self.prompt, self.reading, self.recording, self.kept = None, None, None, None
        self._cut, self._expected = None, []


def state_nbytes(layer: Any) -> int:
    """Bytes of the storages that one of transformers' own cache layers holds."""
    states = [getattr(layer, name, None) for name in ("keys", "values")]
    for name in ("conv_states", "recurrent_states"):
        states += list(getattr(layer, name, {}).values())
    return sum(x.untyped_storage().nbytes() for x in states if isinstance(x, Tensor))
