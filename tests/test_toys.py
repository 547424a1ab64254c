"""What comes next has a room: a store of entries and a trigger are one file each, and nothing else knows of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import madakv
from madakv import ConfigurationError, UnsupportedOptionError
from madakv.budget.ranked import RankedPlans
from madakv.cache import Entries
from madakv.methods import Allocator, Method
from madakv.plan import KeepPlan
from madakv.scoring import LayerView
from tests import tiny
from tests.tolerance import assert_same
from tests.toys.every_tokens import EveryTokens
from tests.toys.int8_store import Int8Entries


@pytest.fixture(autouse=True)
def _inference() -> Any:
    with torch.no_grad():
        yield


@pytest.mark.parametrize(
    "options",
    # An echo that is read after the prompt sees its rounded keys.
    [{"echo": 0}, {"method": "lookm"}, {"lookahead": 2, "echo": 0}, {"method": "snapkv", "draft": 2}],
    ids=str,
)
def test_a_store_of_ones_own(options: dict[str, Any]) -> None:
    model, inputs = tiny.llava(), tiny.document(text=20)
    how = {
        "max_new_tokens": 6,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": "draft" not in options,
    }
    found = []
    for store in ({}, {"store": Int8Entries}):
        with madakv.evict(model, **{"budget": 0.3} | options, **store) as run:
            out = model.generate(**inputs, **how)
        assert run.last is not None
        found.append((run.last, out))
    (plain, want), (small, got) = found
    for own, other in zip(plain.plans, small.plans, strict=True):
        assert torch.equal(own.positions, other.positions)
    assert small.kv_bytes < 0.55 * plain.kv_bytes
    if want.logits is not None:
        # Up to where the answers part: behind that, other tokens are read.
        parts = (got.sequences != want.sequences)[0, inputs["input_ids"].shape[1] :].nonzero()[:1, 0]
        alike = slice(1, int(parts) + 1 if len(parts) else None)
        assert_same(torch.stack(got.logits[alike]), torch.stack(want.logits[alike]), 0.1)
        # It does matter how they are held.
        assert not torch.equal(torch.stack(got.logits[alike]), torch.stack(want.logits[alike]))


@pytest.mark.parametrize(
    "options",
    [{"store": "int8"}, {"store": Entries}, {"store": int}, {"trigger": "each turn"}, {"trigger": EveryTokens}],
    ids=str,
)
def test_what_is_no_store_and_no_trigger_is_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ConfigurationError, match=f"^{name} must be .*; got "), madakv.evict(tiny.llama(), **options):
        pass


def test_a_store_of_ones_own_follows_beams_and_turns() -> None:
    model, (tokens, mask) = tiny.llama(), tiny.ids(30, 22)
    with madakv.evict(model, budget=0.4, store=Int8Entries):
        out = model.generate(
            tokens, attention_mask=mask, max_new_tokens=4, num_beams=3, do_sample=False, return_dict_in_generate=True
        )
        assert type(out.past_key_values.ragged_layers[0].memory.entries) is Int8Entries
        assert out.past_key_values.ragged_layers[0].memory.entries.counts.shape[0] == 6


def steps(model: Any, inputs: dict[str, Tensor], tokens: int) -> Any:
    """The cache after a prompt and so many further tokens."""
    cache = model(**inputs, use_cache=True).past_key_values
    for token in range(tokens):
        model(input_ids=torch.tensor([[7 + token]]), past_key_values=cache)
    return cache


@pytest.mark.parametrize("method", ["madakv", "madakv-paper", "snapkv", "h2o", "streaming_llm", "adakv", "random"])
@pytest.mark.parametrize("of", [tiny.llama, tiny.llava])
def test_evicting_every_few_tokens(method: str, of: Any) -> None:
    model = of()
    inputs = {"input_ids": tiny.ids(40)[0]} if model is tiny.llama() else tiny.document(text=9, images=1)
    N = inputs["input_ids"].shape[1]
    with madakv.evict(model, method, budget=0.4, trigger=EveryTokens(5)) as run:
        steps(model, inputs, 4)
        assert run.last is not None
        assert run.last.modality.shape[1] == N
        first = run.last
        cache = steps(model, inputs, 13)
    assert run.last.modality.shape[1] == N + 10
    assert [layer.memory.tail.length for layer in cache.ragged_layers] == [3] * 3
    assert cache.get_seq_length() == N + 13
    allowed = int(0.4 * (N + 10)) * 2 * 3
    assert 0 < sum(int(plan.counts.sum()) for plan in run.last.plans) <= allowed
    for before, now, layer in zip(first.plans, run.last.plans, cache.ragged_layers, strict=True):
        entries = layer.memory.entries
        assert entries.counts.equal(now.counts)
        for h in range(2):
            old, new = set(before.indices[0][h].tolist()), now.indices[0][h].tolist()
            assert new == sorted(set(new))
            assert {place for place in new if place < N} <= old, "what is gone does not come back"


def test_what_is_decided_again_is_what_attention_reads() -> None:
    """Keys of a later decision are those that the model computed for these very tokens."""
    model, tokens = tiny.llama(), tiny.ids(40)[0]
    later = torch.randint(5, 97, (1, 12))
    full = model(tokens, use_cache=True).past_key_values
    with madakv.evict(model, budget=1.0, trigger=EveryTokens(4)) as run:
        cache = model(tokens).past_key_values
        for place in range(12):
            model(later[:, place : place + 1], past_key_values=cache)
    for place in range(12):
        model(later[:, place : place + 1], past_key_values=full)
    assert run.last is not None
    assert run.last.kept_share == 1.0
    for layer, whole in zip(cache.ragged_layers, full.layers, strict=True):
        entries = layer.memory.entries
        assert_same(entries.keys.view(1, 2, 52, 8), whole.keys, 1e-4)
        assert_same(entries.values.view(1, 2, 52, 8), whole.values, 1e-4)


def test_scores_of_later_decisions_hear_later_tokens() -> None:
    """A token of the answer that later ones attend to stays before one that they do not."""
    model, tokens = tiny.llama(), tiny.ids(40)[0]
    with madakv.evict(model, "h2o", budget=0.3, trigger=EveryTokens(8)) as run:
        steps(model, {"input_ids": tokens}, 8)
    assert run.last is not None
    assert any(bool((plan.positions >= 40).any()) for plan in run.last.plans)


@pytest.mark.parametrize("method", ["meda", "lookm"])
def test_methods_that_decide_once_say_so(method: str) -> None:
    with pytest.raises(ConfigurationError, match="once"), madakv.evict(tiny.llama(), method, trigger=EveryTokens(5)):
        pass


def test_a_trigger_that_repeats_has_no_fixed_addresses() -> None:
    model = tiny.llama()
    with (
        madakv.evict(model, budget=0.4, trigger=EveryTokens(5)),
        pytest.raises(UnsupportedOptionError, match="EveryTokens"),
    ):
        model.generate(tiny.ids(20)[0], max_new_tokens=4, cache_implementation="static")


def test_rows_of_a_batch_are_told_apart_when_it_repeats() -> None:
    model = tiny.llama()
    tokens, mask = tiny.ids(40, 23)
    with madakv.evict(model, budget=0.4, trigger=EveryTokens(4), echo=0) as run:
        both = tiny.greedy(model, {"input_ids": tokens, "attention_mask": mask}, 10)
        assert run.last is not None
        plans = run.last.plans
        alone = tiny.greedy(model, {"input_ids": tokens[1:, 17:], "attention_mask": mask[1:, 17:]}, 10)
    assert torch.equal(both[1:], alone)
    for plan, lone in zip(plans, run.last.plans, strict=True):
        for kept, own in zip(plan.indices[1], lone.indices[0], strict=True):
            assert (kept - 17).tolist() == own.tolist()


@dataclass(frozen=True, kw_only=True)
class LongKeys(Method):
    """Scores by the key alone."""

    name: ClassVar[str] = "long keys"

    def score(self, view: LayerView) -> Tensor:
        return view.key.float().norm(dim=-1)

    def allocator(self, modality: Tensor, *, heads: int, layers: int) -> Allocator:
        return ByScore(RankedPlans(modality, heads=heads, layers=layers, budget=self.budget))


class ByScore(Allocator):
    def __init__(self, plans: RankedPlans) -> None:
        self.plans = plans

    def decide(self, psi: Tensor) -> KeepPlan:
        return self.plans.keep(psi)


def test_scores_that_are_not_attention_are_given_to_later_tokens_too() -> None:
    """Later tokens once had no score but what attends to them, and all but always went."""
    model, (tokens, _) = tiny.llama(), tiny.ids(40)
    with madakv.evict(model, LongKeys(budget=20), trigger=EveryTokens(20)) as run:
        steps(model, {"input_ids": tokens}, 20)
    assert run.last is not None
    later = sum(int((plan.positions >= 40).sum()) for plan in run.last.plans)
    assert later > 0.15 * sum(len(plan.positions) for plan in run.last.plans)


@pytest.mark.parametrize("options", [{"store": Int8Entries}, {"trigger": EveryTokens(4)}], ids=str)
def test_the_full_cache_has_neither(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="own cache"), madakv.evict(tiny.llama(), "full", **options):
        pass


def test_a_lookahead_and_a_trigger_are_not_combined() -> None:
    trigger = EveryTokens(5)
    with (
        pytest.raises(ConfigurationError, match="choose one"),
        madakv.evict(tiny.llama(), lookahead=3, trigger=trigger),
    ):
        pass
