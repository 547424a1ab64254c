"""What is read behind the prompt, and when it is decided: nothing is lost, and nothing is heard that was not said."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

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
