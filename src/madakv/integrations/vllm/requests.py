"""What a worker knows of one request that is evicted, from its first chunk to its last token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from madakv.cache import Entries, LayerMemory, RaggedEntries
from madakv.integrations.vllm.devices import on
from madakv.integrations.vllm.layout import Layout
from madakv.integrations.vllm.pages import PageTable
from madakv.methods import Method
from madakv.modality import Modality
from madakv.plan import KeepPlan
from madakv.reading import Prompt, Reading
from madakv.scoring import LayerView

_MODALITIES = {"image": Modality.IMAGE, "video": Modality.VIDEO, "audio": Modality.AUDIO}


def visual_places(feature: Any) -> Tensor:
    """[n] int64: where the embeddings of a picture or the like stand in a prompt, of vLLM's `mm_features`."""
    place = feature.mm_position
    inside = torch.arange(place.length) if place.is_embed is None else place.is_embed.cpu().nonzero()[:, 0]
    places: Tensor = inside + place.offset
    return places


def modality_of(tokens: int, features: Sequence[Any]) -> Tensor:
    """[1, N] of `Modality` values of a prompt.

    Args:
        tokens: N.
        features: vLLM's `mm_features`: where pictures and the like lie in the prompt.
    """
    modality = torch.full((1, tokens), int(Modality.TEXT))
    for feature in features:
        modality[0, visual_places(feature)] = int(_MODALITIES[feature.modality])
    return modality


@dataclass(eq=False)
class Stash:
    """A layer of a prompt whose plan was known before it was read, as of a request that was preempted.

    Attributes:
        entries: what is kept.
        keys, values: [H, n, D] of tokens behind the prompt that came in the same pass.
    """

    entries: Entries
    keys: Tensor
    values: Tensor


@dataclass(eq=False)
class Request:
    """One request.

    Attributes:
        prompt: N, tokens.
        first: the first of the engine's blocks that holds pages, see `first_kept_block`.
        method: how it is evicted.
        modality: [1, N], on the host.
        blocks: all its blocks, in order; the engine's own list, which grows.
        block_size: of the engine.
        device: of the model.
        found: how many of its tokens were in the cache before it was read; None until it is.
        waits: whether it was read, but for queries of tokens that were found.
        plans: what each layer keeps, once that is decided. They outlive preemption: what was read is read again, but
            not decided again, and tokens that come behind the prompt find what they found.
        table: where that lies; None until the prompt was read.
    """

    prompt: int
    first: int
    method: Method
    modality: Tensor
    blocks: Callable[[], Sequence[int]]
    block_size: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    found: int | None = None
    waits: bool = False
    plans: list[KeepPlan] | None = None
    table: PageTable | None = None
    reading: Reading | None = None
    memories: list[LayerMemory] = field(default_factory=list)
    stash: dict[int, Stash] = field(default_factory=dict)
    _queries: dict[int, Tensor] = field(default_factory=dict)

    def forget_pages(self) -> None:
        """Its blocks are gone: it was preempted. If it was not decided yet, it is read anew."""
        self.table, self.reading = None, None
        self.memories, self.stash, self._queries = [], {}, {}
        self.found, self.waits = None, False

    def block_ids(self) -> Tensor:
        """[b] int64."""
        return torch.tensor(self.blocks())

    def page_blocks(self) -> Tensor:
        """[K] int64: those that hold its pages."""
        return self.block_ids()[self.first : self.prompt // self.block_size]

    @cached_property
    def _heard(self) -> Tensor:
        """[q] int64 on the host: the places of the queries that the method scores by."""
        return self.method.listened(self.modality)[0].nonzero()[:, 0]

    @cached_property
    def _on_device(self) -> tuple[Tensor, Tensor]:
        """`_heard` and `modality`, where the model is."""
        return on(self.device, self._heard), on(self.device, self.modality)

    def unheard(self) -> Tensor:
        """[u] int64 on the host: those of them that were not computed, since their keys were found."""
        return self._heard[self._heard < (self.found or 0)]

    def hear(self, layer: int, query: Tensor, start: int) -> None:
        """Keep those queries of a chunk, [n, Hq, D] from position `start` on, that the method scores by."""
        low, high = torch.searchsorted(self._heard, torch.tensor([start, start + len(query)])).tolist()
        self._told(layer, query)[low:high] = query.index_select(0, self._on_device[0][low:high] - start)

    def hear_found(self, layer: int, query: Tensor) -> None:
        """Add the queries of `unheard`, [u, Hq, D]."""
        self._told(layer, query)[: len(query)] = query

    def _told(self, layer: int, query: Tensor) -> Tensor:
        if layer not in self._queries:
            self._queries[layer] = query.new_zeros(len(self._heard), *query.shape[1:])
        return self._queries[layer]

    def view(self, layer: int, keys: Tensor, values: Tensor, **how: Any) -> LayerView:
        """What the method looks at: the whole prompt's keys and values, and the queries that it scores by."""
        told = self._queries.pop(layer)
        heard, modality = self._on_device
        query = told.new_zeros(self.prompt, *told.shape[1:]).index_copy_(0, heard, told)
        return LayerView(query=query.transpose(0, 1)[None], key=keys, value=values, modality=modality, **how)

    def open(self, layers: int, most_echoed: Callable[[Reading], Tensor]) -> Reading:
        """Begin to score."""
        if self.reading is None:
            self.memories = [LayerMemory() for _ in range(layers)]
            self.reading = Reading(self.method, Prompt(self._on_device[1]), self.memories)
            if self.method.echoes and bool((most := most_echoed(self.reading)).any()):
                self.reading.hold_for_echo(most)
        return self.reading

    def keep(self, layer: int, keys: Tensor, values: Tensor, later: tuple[Tensor, Tensor]) -> Stash:
        """A layer of a prompt that is read again; `later`: keys and values [n, H, D] behind it."""
        if self.plans is None:
            raise RuntimeError("tokens behind a prompt came with it, and nothing was decided about it")
        entries = RaggedEntries.gather(keys, values, self.plans[layer])
        behind = (x.transpose(0, 1).clone() for x in later)
        self.stash[layer] = Stash(entries, *behind)
        return self.stash[layer]

    @property
    def is_read(self) -> bool:
        """Whether its prompt was read, and nothing was packed yet."""
        layers = len(self.stash) if self.reading is None else self.reading.layers_read
        return self.table is None and (self.waits or layers > 0)


def gathered(layout: Layout, cache: Tensor, request: Request) -> tuple[Tensor, Tensor]:
    """A prompt's keys and values, [1, H, N, D], out of the engine's blocks."""
    return layout.gather(cache, request.block_ids(), request.prompt)
