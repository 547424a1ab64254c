"""Evicted requests of one worker: scored while they are read, packed when they were, attended to ever after.

A step goes so: `begin` says what is read; each layer's keys go through `store`, its attention through `attend`.
Before the next one, `finish` decides about the prompts that were read and packs what stays. All that decides is the
library's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from madakv.attention import paged_attention, ragged_attention
from madakv.attention.prompt import prompt_attention
from madakv.cache import Entries, Tail
from madakv.integrations.vllm.decoding import Decoding, Span
from madakv.integrations.vllm.devices import on
from madakv.integrations.vllm.layout import Layout
from madakv.integrations.vllm.pages import Memory, PageTable, token_rows
from madakv.integrations.vllm.requests import Request, gathered
from madakv.reading import Reading
from madakv.scoring import OutputProjection

Again = Callable[[str, Tensor, bool], None]
"""Runs the model once more over tokens of a prompt: its request's name, their places [n] on the host; and behind it,
or there?"""


@dataclass(frozen=True, eq=False)
class LayerHow:
    """How a layer attends.

    Attributes:
        scaling, softcap, sinks, projection: see `LayerView`.
    """

    scaling: float
    softcap: float | None = None
    sinks: Tensor | None = None
    projection: OutputProjection | None = None


class Step:
    """What is read at once.

    Args:
        evicted: of requests that are.
        reading: of those that will be.
        rows: of the batch, all requests.
        decoding: tables of `evicted`; None if there are none.
    """

    def __init__(
        self, evicted: Sequence[Span], reading: Sequence[Span], rows: int, decoding: Decoding | None
    ) -> None:
        self.reading = reading
        self.decoding = decoding
        self._evicted = evicted
        self.engine_attends = rows > len(evicted)
        self._slots: Tensor | None = None

    def engine_lengths(self, lengths: Tensor) -> Tensor:
        """As how long the engine attends to each request."""
        own = [[span.row for span in self._evicted], [span.tokens for span in self._evicted]]
        rows, tokens = on(lengths.device, torch.tensor(own, dtype=torch.int64))
        return lengths.index_copy(0, rows, tokens.to(lengths.dtype))

    def engine_slots(self, slots: Tensor) -> Tensor:
        """Where the engine writes each token: nowhere, if it is behind an evicted prompt."""
        if self._slots is None:
            self._slots = slots.clone()
            if self.decoding is not None:
                self._slots.index_fill_(0, self.decoding.tokens, -1)
            for span in self.reading:
                end = span.begin + span.tokens
                self._slots[end - span.behind : end] = -1
        return self._slots


class Evictor:
    """Sees to the evicted requests of one worker.

    Args:
        caches: of the evicted layers, in order, [blocks, H, block_size, 2 * D].
        layout: how the engine lays out what it reads.
        layers: how each of them attends.
        most_echoed: how many tokens of each row of a reading's prompt are echoed, at most.
        summed: over the processes that share a layer's heads; each of them decides about its own.

    Attributes:
        requests: by name; None stays whole.
        step: what is being read; None between steps.
        aside: takes the place of `attend` while a request's tokens are read once more; None: none are.
    """

    def __init__(
        self,
        caches: Sequence[Tensor],
        layout: Layout,
        layers: Sequence[LayerHow],
        most_echoed: Callable[[Reading], Tensor],
        summed: Callable[[Tensor], Tensor] = lambda own: own,
    ) -> None:
        self._caches = caches
        self._memory = Memory.behind(caches)
        self._layout = layout
        self._layers = layers
        self._most_echoed = most_echoed
        self._summed = summed
        self.requests: dict[str, Request | None] = {}
        self._decoding: Decoding | None = None
        self.step: Step | None = None
        self.aside: Callable[[int, Tensor, Tensor, Tensor], Tensor] | None = None

    @property
    def block_size(self) -> int:
        """Of the engine."""
        return self._memory.block_size

    def begin(self, spans: Iterable[Span], rows: int) -> None:
        """A step begins."""
        evicted: list[Span] = []
        reading: list[Span] = []
        for span in spans:
            (evicted if span.evicted else reading).append(span)
        for span in reading:
            if span.request.table is not None:
                # Whoever took its blocks, it is read from the beginning.
                span.request.forget_pages()
            if span.request.found is None:
                span.request.found = span.start
        self._decoding = Decoding.of(self._memory, evicted, self._decoding)
        self.step = Step(evicted, reading, rows, self._decoding) if evicted or reading else None

    def store(self, layer: int, key: Tensor, value: Tensor, slots: Tensor) -> Tensor:
        """Write tokens behind evicted prompts; returns where the engine is to write the others.

        Args:
            layer: whose.
            key, value: [n, H, D] of the step.
            slots: [n or more] int64, where the engine would write.
        """
        assert self.step is not None
        if self.step.decoding is not None:
            self.step.decoding.store(layer, key, value)
        return self.step.engine_slots(slots)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> None:
        """Score what is read of prompts, and attend with what is behind them.

        Args:
            layer: which.
            query: [n, Hq, D] of the step.
            key, value: [n, H, D].
            out: [n, Hq, D], the engine's; rows of tokens behind evicted prompts are written.
        """
        assert self.step is not None
        if (decoding := self.step.decoding) is not None:
            how = self._layers[layer]
            attended = paged_attention(
                query.index_select(0, decoding.tokens),
                self._memory.rows,
                decoding.layers[layer],
                scaling=how.scaling,
                softcap=how.softcap,
                sinks=how.sinks,
            )
            out.index_copy_(0, decoding.tokens, attended)
        for span in self.step.reading:
            request, end = span.request, span.begin + span.tokens - span.behind
            if request.plans is None:
                request.hear(layer, query[span.begin : end], span.start)
                if span.completes and len(request.unheard()):
                    request.waits = True
                elif span.completes:
                    self._score(layer, request, *gathered(self._layout, self._caches[layer], request))
            elif span.completes:
                keys, values = gathered(self._layout, self._caches[layer], request)
                later = slice(end, span.begin + span.tokens)
                stash = request.keep(layer, keys, values, (key[later], value[later]))
                if span.behind:
                    out[later] = self._attend(layer, query[later], stash.entries, stash.keys, stash.values)

    def _attend(self, layer: int, query: Tensor, entries: Entries, keys: Tensor, values: Tensor) -> Tensor:
        """[n, Hq, D] of the newest tokens of a tail, [H, t, D], over entries and tail."""
        how, tail = self._layers[layer], Tail()
        tail.append(keys[None], values[None], 0)
        n, t = len(query), keys.shape[1]
        mask = None if n == 1 else torch.ones(1, 1, n, t, dtype=torch.bool, device=query.device).tril(t - n)
        # Each call brings entries of its own, so that nothing is gained by deriving tables of them.
        out = ragged_attention(
            query.transpose(0, 1)[None],
            entries,
            tail,
            scaling=how.scaling,
            mask=mask,
            softcap=how.softcap,
            sinks=how.sinks,
        )
        return out[0].transpose(0, 1)

    def _score(self, layer: int, request: Request, keys: Tensor, values: Tensor) -> None:
        reading = request.open(len(self._layers), self._most_echoed)
        reading.layer(request.view(layer, keys, values, **vars(self._layers[layer])))

    def attend_aside(self, layer: int, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> None:
        """Attention of tokens that are read once more, which writes nothing; see `attend` for the arguments."""
        assert self.aside is not None
        attended = self.aside(layer, *(x.transpose(0, 1)[None] for x in (query, key, value)))
        out[: len(query)] = attended[0].transpose(0, 1)

    def _hear_found(
        self, request: Request, places: Tensor, layer: int, query: Tensor, _key: Tensor, _value: Tensor
    ) -> Tensor:
        """Of tokens whose keys were found, where they are; with them, the layer can be scored."""
        how = self._layers[layer]
        keys, values = gathered(self._layout, self._caches[layer], request)
        request.hear_found(layer, query[0].transpose(0, 1))
        self._score(layer, request, keys, values)
        sees = torch.arange(keys.shape[2], device=keys.device) <= on(keys.device, places)[:, None]
        return prompt_attention(
            query, keys, values, scaling=how.scaling, mask=sees[None, None], softcap=how.softcap, sinks=how.sinks
        )

    def _hear_echo(self, request: Request, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Of an echo, behind the prompt."""
        assert request.reading is not None
        how = self._layers[layer]
        request.memories[layer].append(key, value)
        return request.reading.attend(layer, query, scaling=how.scaling, softcap=how.softcap, sinks=how.sinks)

    def finish(self, over: Collection[str], preempted: Collection[str], again: Again) -> None:
        """Between steps: decide about prompts that were read, and pack what stays of them.

        Args:
            over: requests that are no more.
            preempted: requests whose blocks are gone.
            again: how to read once more.
        """
        for name in over:
            self.requests.pop(name, None)
        for name, request in self.requests.items():
            if request is not None and request.is_read:
                self._decide(name, request, again)
                if name not in preempted:
                    self._pack(request)
        for name in preempted:
            if (request := self.requests.get(name)) is not None:
                request.forget_pages()

    def _decide(self, name: str, request: Request, again: Again) -> None:
        if request.plans is not None:
            return
        if request.waits:
            places = request.unheard()
            with self._set_aside(partial(self._hear_found, request, places)):
                again(name, places, False)
        reading = request.reading
        assert reading is not None
        if reading.awaits_echo:
            places, heard = reading.echo_places(self._summed)
            with self._set_aside(partial(self._hear_echo, request)), reading.hearing_echo(places, heard):
                again(name, places[0].cpu(), True)
            for memory in request.memories:
                memory.forget_tail()
        request.plans = reading.decide()

    @contextmanager
    def _set_aside(self, attends: Callable[[int, Tensor, Tensor, Tensor], Tensor]) -> Iterator[None]:
        self.aside = attends
        try:
            yield
        finally:
            self.aside = None

    def _pack(self, request: Request) -> None:
        assert request.plans is not None
        request.table = PageTable(self._memory, request.plans, request.page_blocks())
        for layer in range(len(self._layers)):
            stash = request.stash.get(layer)
            entries = request.memories[layer].kept if stash is None else stash.entries
            request.table.write(layer, entries.keys, entries.values)
        for layer, stash in request.stash.items():
            positions = torch.arange(request.prompt, request.prompt + stash.keys.shape[1])
            rows = token_rows(self._memory, request.block_ids(), positions) + self._memory.layers[layer]
            rows = on(stash.keys.device, rows)
            self._memory.rows[rows], self._memory.rows[rows + self.block_size] = stash.keys, stash.values
        request.reading, request.memories, request.stash = None, [], {}
