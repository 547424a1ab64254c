"""What is read behind the prompt, and when it is decided: nothing is lost, and nothing is heard that was not said."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import madakv
from madakv.errors import UnsupportedOptionError
from madakv.reading import AfterPrefill, Trigger
from tests import tiny
from tests.tolerance import assert_same
from tests.toys.every_tokens import EveryTokens


@dataclass(frozen=True)
class WholeForSome(Trigger):
    """The prompt is whole until so many tokens came, and is decided over again after as many more."""

    tokens: int

    @property
    def repeats(self) -> bool:
        return True

    def after_pass(self, since: int) -> bool:
        return since >= self.tokens


@torch.no_grad()
@pytest.mark.parametrize("method", ["meda", "prefixkv", "snapkv"])
def test_after_the_prefill_is_after_the_prefill_for_every_method(method: str) -> None:
    """Also where all layers have to be seen first."""
    model = tiny.llama()
    with madakv.evict(model, method, budget=0.3, trigger=AfterPrefill()) as run:
        cache: Any = model(tiny.ids(40)[0]).past_key_values
    assert run.last is not None
    assert cache.nbytes == run.last.kv_bytes <= 0.3 * run.last.kv_bytes_full


def test_a_mask_that_changes_between_calls_of_generate_is_looked_at() -> None:
    """Within a call, `generate` hides what it hid before; what the next call hides is up to whoever makes it."""
    model = tiny.llama()
    tokens, mask = tiny.ids(40, 30)
    with madakv.evict(model, budget=0.5, echo=0):
        first = model.generate(
            tokens, attention_mask=mask, max_new_tokens=4, do_sample=False, return_dict_in_generate=True
        )
        other = torch.ones_like(first.sequences)
        other[:, :10] = 0
        with pytest.raises(UnsupportedOptionError, match="hides other prompt tokens"):
            model.generate(
                first.sequences, attention_mask=other, past_key_values=first.past_key_values, max_new_tokens=3
            )


def test_what_is_read_before_the_first_of_several_decisions_is_kept() -> None:
    """At a budget of 1.0, attention reads what it reads of a full cache."""
    model, inputs = tiny.llama(), dict(zip(("input_ids", "attention_mask"), tiny.ids(40, 23), strict=True))
    wanted = tiny.greedy(model, inputs, 12)
    with madakv.evict(model, budget=1.0, trigger=WholeForSome(3)) as run:
        assert torch.equal(tiny.greedy(model, inputs, 12), wanted)
    assert run.last is not None
    assert run.last.modality.shape == (2, 49)
    assert run.last.kept_share == 1.0


@torch.no_grad()
@pytest.mark.parametrize("groups", ["mean", "max"])
def test_a_turn_is_heard_as_its_tokens_are_one_by_one(groups: str) -> None:
    model, tokens, turn = tiny.llama(), tiny.ids(40)[0], tiny.ids(6)[0]
    found = []
    for several in ([turn], list(turn.split(1, dim=1))):
        with madakv.evict(model, "h2o", budget=0.3, groups=groups, trigger=EveryTokens(6)) as run:
            cache = model(tokens).past_key_values
            for ids in several:
                model(ids, past_key_values=cache)
        assert run.last is not None
        assert run.last.modality.shape[1] == 46
        found.append([plan.positions.tolist() for plan in run.last.plans])
    assert found[0] == found[1]


@torch.no_grad()
def test_padding_of_a_turn_is_not_heard_when_it_is_decided_again() -> None:
    """A row decides as it does alone."""
    model, tokens, (turn, mask) = tiny.llama(), tiny.ids(30, 30)[0], tiny.ids(4, 7)
    found = []
    for rows, own in ((slice(None), slice(None)), (slice(1), slice(3, None))):
        with madakv.evict(model, budget=0.4, echo=0, trigger=EveryTokens(1)) as run:
            prompt = tokens[rows]
            cache = model(prompt).past_key_values
            seen = torch.cat([torch.ones_like(prompt), mask[rows, own]], 1)
            places = (seen.cumsum(1) - 1)[:, 30:]
            model(turn[rows, own], attention_mask=seen, position_ids=places, past_key_values=cache)
        assert run.last is not None
        found.append(run.last)
    both, alone = found
    for plan, lone in zip(both.plans, alone.plans, strict=True):
        for kept, wanted in zip(plan.indices[0], lone.indices[0], strict=True):
            assert torch.where(kept < 30, kept, kept - 3).tolist() == wanted.tolist()


@torch.no_grad()
def test_a_copy_of_a_cache_goes_on_by_itself() -> None:
    """Also after a step, which leaves tables for kernels behind."""
    model, tokens = tiny.llama(), tiny.ids(40)[0]
    with madakv.evict(model, budget=0.5):
        cache = model(tokens).past_key_values
        model(tokens[:, :1], past_key_values=cache)
        other = copy.deepcopy(cache)
        wanted = model(tokens[:, 1:2], past_key_values=cache).logits
        cache.reset()
        assert_same(model(tokens[:, 1:2], past_key_values=other).logits, wanted)
