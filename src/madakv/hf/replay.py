"""Read a prompt once, and evict it many times: every method starts from the same prefill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import (
    Cache,
    DynamicCache,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from madakv.errors import UnsupportedModelError
from madakv.hf.cache import RaggedCache
from madakv.hf.echo import most_echoed
from madakv.hf.full import record_full
from madakv.hf.patch import patched
from madakv.hf.record import record
from madakv.methods import Full, Method
from madakv.reading import AfterTokens, Scores
from madakv.run import Run
from madakv.scoring import LayerView


@dataclass(frozen=True, kw_only=True)
class _Recorder(Full):
    """Evicts nothing, and keeps what every layer's prefill looked like."""

    name: ClassVar[str] = "recorder"
    views: list[LayerView] = field(default_factory=list, repr=False)

    def score(self, view: LayerView) -> Tensor:
        self.views.append(view)
        return super().score(view)


@dataclass(frozen=True, eq=False)
class ReadPrompt:
    """A prompt that has been read, before anything is evicted.

    Attributes:
        views: of all layers, in order.
        modality: [B, N] of `Modality` values.
        logits: [B, V] at the last position.
        ids: of the prompt's tokens.
    """

    views: tuple[LayerView, ...]
    modality: Tensor
    logits: Tensor
    ids: list[int]
    _scored: dict[tuple[str, bool, int, tuple[int, ...]], Scores] = field(default_factory=dict, repr=False)

    @classmethod
    @torch.no_grad()
    def of(cls, model: Any, inputs: Any) -> ReadPrompt:
        """Read a prompt with the model's own attention.

        Args:
            model: as for `madakv.evict`.
            inputs: what its forward pass takes; one row without padding.

        Raises:
            UnsupportedModelError: a layer of the model has a state of another kind, which is not replayed.
        """
        recorder = _Recorder()
        with patched(model, Run(recorder)):
            out = model(**inputs, use_cache=True, logits_to_keep=1)
        cache: RaggedCache = out.past_key_values
        if len(cache.evicted_layers) != len(cache.layers) or cache.prompt is None:
            raise UnsupportedModelError("a prompt can be replayed only if all layers have full attention")
        ids: list[int] = inputs["input_ids"][0].tolist()
        return cls(tuple(recorder.views), cache.prompt.modality, out.logits[:, -1], ids)

    @torch.no_grad()
    def evicted(self, model: Any, run: Run, *, max_new_tokens: int | None = None) -> Cache:
        """A fresh cache that has read this prompt under a method, as if the model had just done so.

        Args:
            model: the model that read it, inside `madakv.evict`.
            run: the block's handle.
            max_new_tokens: of the answer; a draft is no longer than that.
        """
        if type(run.method) is Full:
            return self._full(model, run)
        cache = self._read_by(model, run)
        if not run.method.lookahead:
            record(cache, run)
        if run.method.draft:
            most = run.method.draft if max_new_tokens is None else min(run.method.draft, max_new_tokens)
            drafted = continue_greedily(
                model, cache, self.logits, seen=self.ids, end=end_ids(model), max_new_tokens=most
            )
            cache = self._read_by(model, run, drafted)
            record(cache, run)
        return cache

    def _full(self, model: Any, run: Run) -> DynamicCache:
        cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        for number, view in enumerate(self.views):
            cache.update(view.key, view.value, number)
        record_full(cache, self.modality, run, range(len(self.views)))
        return cache

    def _read_by(self, model: Any, run: Run, drafted: Sequence[int] = ()) -> RaggedCache:
        """A cache that has read the prompt; not evicted yet if the method waits for more."""
        cache = RaggedCache(model.config, run.method, trigger=run.trigger, store=run.store)
        reading = cache.begin(self.modality, scores=self.heard_by(model, run.method, drafted).copy())
        for view in self.views:
            reading.settle(view)
        return cache

    def heard_by(self, model: Any, method: Method, drafted: Sequence[int] = ()) -> Scores:
        """All that scores the prompt, apart from the answer itself; heard once for all budgets.

        Args:
            model: the model that read it, inside `madakv.evict`.
            method: how to score.
            drafted: ids of a draft.
        """
        scored_alike = replace(method, budget=1.0, lookahead=0)
        # An echo needs to know which tokens its text is.
        echoes = method.echoes and bool(self.ids)
        key = (repr(scored_alike), method.keeps_everything, echoes, tuple(drafted))
        if key not in self._scored:
            # What comes after the prompt is heard as long as the prompt is whole.
            waiting = RaggedCache(model.config, method, trigger=AfterTokens(len(drafted) + 1))
            reading = waiting.begin(self.modality)
            if echoes:
                reading.hold_for_echo(most_echoed(reading, model.config))
            if drafted or echoes:
                for view in self.views:
                    reading.layer(view)
            else:
                for view in self.views:
                    reading.scores.add_layer(view)
            if echoes:
                places, heard = reading.echo_places()
                with reading.hearing_echo(places, heard):
                    if places.shape[1]:
                        read_more(model, waiting, [self.ids[place] for place in places[0].tolist()])
                waiting.forget_tail()
            for token in drafted:
                read_more(model, waiting, [token])
            self._scored[key] = reading.scores
        return self._scored[key]


@torch.no_grad()
def prefill(model: Any, inputs: Any) -> tuple[Cache, Tensor]:
    """Read a prompt inside `madakv.evict`; returns its cache and the logits [B, V] at the last position."""
    out = model(**inputs, use_cache=True, logits_to_keep=1)
    return out.past_key_values, out.logits[:, -1]


@torch.no_grad()
def continue_greedily(
    model: Any, cache: Cache, logits: Tensor, *, seen: Sequence[int], end: set[int], max_new_tokens: int
) -> list[int]:
    """Generate greedily for one row, from the logits of its last token, with the penalties of the model's settings.

    Args:
        model: inside `madakv.evict`.
        cache: has read all tokens so far.
        logits: [1, V].
        seen: ids of all tokens so far, which penalties look at.
        end: ids that end the answer.
        max_new_tokens: most tokens of the answer.

    Returns:
        The new ids, an end id included. The last one has not been read by the cache.
    """
    ids: list[int] = []
    penalties: Any = _penalties(model)
    while True:
        if penalties:
            known = torch.tensor([[*seen, *ids]], device=logits.device)
            logits = penalties(known, logits.float())
        ids.append(int(logits[0].argmax()))
        if ids[-1] in end or len(ids) == max_new_tokens:
            return ids
        logits = read_more(model, cache, ids[-1:])


def _penalties(model: Any) -> LogitsProcessorList:
    """What `generate` makes of logits before it takes the best token, by the settings that models come with."""
    settings, found = model.generation_config, LogitsProcessorList()
    if settings.repetition_penalty not in (None, 1.0):
        found.append(RepetitionPenaltyLogitsProcessor(penalty=settings.repetition_penalty))
    if settings.no_repeat_ngram_size:
        found.append(NoRepeatNGramLogitsProcessor(settings.no_repeat_ngram_size))
    if settings.suppress_tokens:
        found.append(SuppressTokensLogitsProcessor(settings.suppress_tokens, device=str(model.device)))
    return found


@torch.no_grad()
def read_more(model: Any, cache: Cache, ids: list[int]) -> Tensor:
    """Read more tokens of one row into a cache; returns the logits [1, V] of the last."""
    return _read(model, cache, ids, logits_to_keep=1)[:, -1]


def _read(model: Any, cache: Cache, ids: Sequence[int], *, logits_to_keep: int) -> Tensor:
    device = model.get_input_embeddings().weight.device
    # No mask: nothing is padded, and some models take positions from its width.
    given = torch.tensor([ids], device=device)
    logits: Tensor = model(input_ids=given, past_key_values=cache, logits_to_keep=logits_to_keep).logits
    return logits


@torch.no_grad()
def loss_on(model: Any, cache: Cache, logits: Tensor, ids: Sequence[int], *, one_by_one: int = 0) -> float:
    """Mean next-token loss on tokens that follow what one row has read: cross-entropy in nats, in fp32.

    Args:
        model: inside `madakv.evict`.
        cache: has read all tokens so far; reads all of these but the last.
        logits: [1, V], of the last token read.
        ids: what follows.
        one_by_one: how many are read each in a pass of its own, the others together: as many as a method listens to
            before it evicts, so that what comes after them meets the evicted cache.
    """
    found = [logits[None]]
    for token in ids[: min(one_by_one, len(ids) - 1)]:
        found.append(read_more(model, cache, [token])[None])
    if rest := ids[one_by_one:-1]:
        found.append(_read(model, cache, rest, logits_to_keep=0))
    told = torch.cat(found, 1)[0].float()
    return float(torch.nn.functional.cross_entropy(told, torch.tensor(ids, device=told.device)))


def end_ids(model: Any) -> set[int]:
    """The ids with which the model ends an answer."""
    end = model.generation_config.eos_token_id
    return set(end) if isinstance(end, list) else set() if end is None else {end}
