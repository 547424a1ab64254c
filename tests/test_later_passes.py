"""What is read behind the prompt, and when it is decided: nothing is lost, and nothing is heard that was not said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

import madakv
from madakv.errors import UnsupportedOptionError
from madakv.reading import AfterPrefill, Trigger
from tests import tiny


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
