"""Tokens that a mask hides are not attended to, whatever kind of mask says so and whenever it does; or it is refused.

In loops of one's own, tokens that a 4-D mask hid from the prompt, or that a mask first hid at a later step, were
still attended to once the prompt was read, at a budget of 1.0 too.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import madakv
from madakv import UnsupportedOptionError
from madakv.hf.record import _say_once
from tests import tiny
from tests.tolerance import assert_same

HIDDEN = slice(3, 7)


@pytest.fixture(params=["llama", "llava"])
def case(request: pytest.FixtureRequest) -> tuple[Any, dict[str, Tensor]]:
    if request.param == "llava":
        return tiny.llava(), tiny.document(text=8, images=1)
    return tiny.llama(), {"input_ids": tiny.ids(20)[0]}


def four_d(tokens: int, kind: str) -> Tensor:
    """A causal mask that hides some tokens from all others."""
    mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool).tril()
    mask[..., HIDDEN] = False
    mask |= torch.eye(tokens, dtype=torch.bool)
    return mask if kind == "bool" else torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)


def two_d(tokens: int) -> Tensor:
    mask = torch.ones(1, tokens, dtype=torch.int64)
    mask[:, HIDDEN] = 0
    return mask


@torch.no_grad()
def steps(model: Any, inputs: dict[str, Tensor], masks: list[Tensor | None]) -> list[Tensor]:
    """Logits of a loop: the prompt, then a token per further mask."""
    inputs = {name: x for name, x in inputs.items() if name != "attention_mask"}
    N = inputs["input_ids"].shape[1]
    positions = torch.arange(N)[None]
    out = model(**inputs, attention_mask=masks[0], position_ids=positions, use_cache=True)
    logits = [out.logits[:, -1]]
    for place, mask in enumerate(masks[1:], N):
        out = model(
            input_ids=torch.tensor([[11]]),
            attention_mask=mask,
            position_ids=torch.tensor([[place]]),
            past_key_values=out.past_key_values,
        )
        logits.append(out.logits[:, -1])
    return logits


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_what_a_mask_of_every_pair_hides_stays_hidden(case: tuple[Any, dict[str, Tensor]], kind: str) -> None:
    model, inputs = case
    N = inputs["input_ids"].shape[1]
    masks = [four_d(N, kind), two_d(N + 1), two_d(N + 2)]
    want = steps(model, inputs, masks)
    with madakv.evict(model, budget=1.0) as run:
        got = steps(model, inputs, masks)
    for own, full in zip(got, want, strict=True):
        assert_same(own, full, 1e-4)
    assert run.last is not None
    assert (run.last.modality[0] < 0).nonzero()[:, 0].tolist() == list(range(3, 7))


def test_what_such_a_mask_hides_is_not_kept(case: tuple[Any, dict[str, Tensor]]) -> None:
    model, inputs = case
    N = inputs["input_ids"].shape[1]
    with madakv.evict(model, budget=0.5) as run:
        steps(model, inputs, [four_d(N, "bool"), two_d(N + 1)])
    assert run.last is not None
    for plan in run.last.plans:
        assert not set(plan.positions.tolist()) & set(range(3, 7))


def test_hiding_prompt_tokens_at_a_step_is_refused(case: tuple[Any, dict[str, Tensor]]) -> None:
    model, inputs = case
    N = inputs["input_ids"].shape[1]
    with madakv.evict(model, budget=1.0), pytest.raises(UnsupportedOptionError, match="hides other prompt tokens"):
        steps(model, inputs, [torch.ones(1, N, dtype=torch.int64), two_d(N + 1)])


def test_showing_what_the_prompt_hid_is_refused(case: tuple[Any, dict[str, Tensor]]) -> None:
    model, inputs = case
    N = inputs["input_ids"].shape[1]
    with madakv.evict(model, budget=1.0), pytest.raises(UnsupportedOptionError, match="hides other prompt tokens"):
        steps(model, inputs, [four_d(N, "bool"), torch.ones(1, N + 1, dtype=torch.int64)])


def test_a_later_token_that_is_hidden_later_still_is(case: tuple[Any, dict[str, Tensor]]) -> None:
    model, inputs = case
    N = inputs["input_ids"].shape[1]
    last = torch.ones(1, N + 3, dtype=torch.int64)
    last[:, N] = 0
    masks = [None, *(torch.ones(1, N + n, dtype=torch.int64) for n in (1, 2)), last]
    want = steps(model, inputs, masks)
    with madakv.evict(model, budget=1.0):
        got = steps(model, inputs, masks)
    for own, full in zip(got, want, strict=True):
        assert_same(own, full, 1e-4)


def test_generate_looks_once() -> None:
    """Comparing masks makes the host wait for a device, which no step of `generate` does."""
    model, (tokens, mask) = tiny.llama(), tiny.ids(20, 14)
    asked = []

    from madakv.hf.cache import RaggedCache

    right = RaggedCache.trusts_masks

    def trusts(self: RaggedCache) -> bool:
        asked.append(right(self))
        return asked[-1]

    RaggedCache.trusts_masks = trusts  # type: ignore[method-assign]
    try:
        with madakv.evict(model, budget=0.5):
            tiny.greedy(model, {"input_ids": tokens, "attention_mask": mask}, 6)
    finally:
        RaggedCache.trusts_masks = right  # type: ignore[method-assign]
    assert asked == [False, True, True, True, True]


def test_masks_that_differ_between_heads_are_refused() -> None:
    model, (tokens, _) = tiny.llama(), tiny.ids(12)
    mask = torch.ones(1, 8, 12, 12, dtype=torch.bool).tril()
    mask[:, 3, :, 2] = False
    with madakv.evict(model, budget=0.5, echo=0), pytest.raises(UnsupportedOptionError, match="some heads alone"):
        model(tokens, attention_mask=mask)


def test_a_bias_of_distance_hides_nothing() -> None:
    """As of ALiBi: added to logits, negative, and no mask."""
    model, (tokens, _) = tiny.llama(), tiny.ids(24)
    far = torch.arange(24)[None] - torch.arange(24)[:, None]
    bias = (far * 1.5).masked_fill(far > 0, torch.finfo(torch.float32).min)[None, None]
    with madakv.evict(model, budget=0.5, echo=0) as run:
        model(tokens, attention_mask=bias)
    assert run.last is not None
    assert run.last.prompt_tokens == {"text": 24}


def test_a_prompt_that_is_cut_by_hand_is_said_to_be_kept_whole(caplog: pytest.LogCaptureFixture) -> None:
    """Two passes of many tokens on one cache: the first is evicted, the second is not, and `run.last` says so."""
    model, (tokens, _) = tiny.llama(), tiny.ids(60)
    # Said once in a process.
    _say_once.cache_clear()
    with madakv.evict(model, budget=0.2) as run, caplog.at_level("WARNING", logger="madakv"):
        cache = model(tokens[:, :20]).past_key_values
        assert run.last is not None
        assert "later" not in str(run.last)
        model(tokens[:, 20:40], past_key_values=cache)
        model(tokens[:, 40:], past_key_values=cache)
        model(tokens[:, :1], past_key_values=cache)
    assert run.last.later_tokens == 40
    assert "40 later tokens kept whole" in str(run.last)
    assert sum("kept whole" in record.getMessage() for record in caplog.records) == 1
