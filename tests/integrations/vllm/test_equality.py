"""vLLM keeps what transformers keeps, and says what transformers says: `make test-vllm`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integrations.vllm.conftest import text_prompts
from tests.integrations.vllm.engines import (
    IN_VLLM,
    TOKENS,
    Prompt,
    Said,
    agreement,
    engine,
    ids_of,
    quietly,
    transformers_says,
)

pytestmark = IN_VLLM
Expected = dict[tuple[str, float], Said]
METHODS = ("snapkv", "madakv:echo=0", "madakv")


@pytest.fixture(scope="module")
def expected(folder: Path, prompts: list[Prompt]) -> Expected:
    return expectations(folder, prompts, [*((method, 0.2) for method in METHODS), ("madakv:echo=0", 0.5), ("", 1.0)])


def expectations(
    folder: Path, prompts: list[Prompt], cases: list[tuple[str, float]], tokens: int = TOKENS
) -> dict[tuple[str, float], Said]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    return {(method, budget): transformers_says(model, prompts, method, budget, tokens) for method, budget in cases}


def check(said: Said, want: Said) -> None:
    assert set(said.plans) == set(want.plans)
    same, either = agreement(said, want)
    assert same == either > 100 * len(want.plans) > 0
    assert said.tokens == want.tokens


@pytest.mark.parametrize("chunk", [None, 256, 91])
@pytest.mark.parametrize("method", METHODS)
def test_kept_entries_and_tokens_are_those_of_transformers(
    folder: Path, prompts: list[Prompt], expected: Expected, method: str, chunk: int | None
) -> None:
    options = {} if chunk is None else {"max_num_batched_tokens": chunk}
    with engine(folder, {"budget": 0.2, "method": method}, **options) as ours:
        before = ours.free_blocks
        check(ours.says(prompts), expected[method, 0.2])
        assert ours.free_blocks == before


def test_requests_with_budgets_of_their_own_in_one_batch(
    folder: Path, prompts: list[Prompt], expected: Expected
) -> None:
    budgets = [0.2, 1.0, 0.5, 1.0, 0.2, 0.5, 1.0, 0.2]
    extra = [{"madakv": {"budget": own}} if own == 0.5 else {"madakv_budget": own} for own in budgets]
    with engine(folder, {"budget": 0.2, "method": "madakv:echo=0"}) as ours:
        before = ours.free_blocks
        said = ours.says(prompts, extra)
        for number, budget in enumerate(budgets):
            want = expected["" if budget == 1.0 else "madakv:echo=0", budget]
            assert said.tokens[number] == want.tokens[number]
        assert len(said.plans) == 5
        assert ours.free_blocks == before


@pytest.mark.parametrize("chunk", [None, 91])
def test_preempted_requests_say_the_same(
    folder: Path, prompts: list[Prompt], expected: Expected, chunk: int | None
) -> None:
    options = {} if chunk is None else {"max_num_batched_tokens": chunk}
    with engine(folder, {"budget": 0.2, "method": "madakv"}, **options) as ours:
        before = ours.free_blocks
        # Whole prompts are read again in one pass with all that was said, chunks end anywhere.
        said = ours.says(prompts, preempt=38 if chunk else 7)
        assert said.preempted >= 4
        check(said, expected["madakv", 0.2])
        assert ours.free_blocks == before


@pytest.mark.parametrize("chunk", [None, 91])
@pytest.mark.parametrize("method", METHODS)
def test_what_others_have_read_is_not_read_again(
    folder: Path, prompts: list[Prompt], expected: Expected, method: str, chunk: int | None
) -> None:
    """Once the pool holds what requests left behind, a second time and in other company, all stays the same."""
    options = {} if chunk is None else {"max_num_batched_tokens": chunk}
    with engine(folder, {"budget": 0.2, "method": method}, **options) as ours:
        before = ours.free_blocks
        want = expected[method, 0.2]
        check(ours.says(prompts), want)
        assert ours.found == 0
        check(ours.says(prompts), want)
        assert ours.found > 0.3 * sum(map(len, prompts))
        # A whole request finds what evicted ones left, and they what it left.
        whole = ours.says(prompts[:3], [{"madakv_budget": 1.0}] * 3)
        assert whole.tokens == expected["", 1.0].tokens[:3]
        check(ours.says(prompts), want)
        assert ours.free_blocks == before


def test_documents_that_are_shared(folder: Path, prompts: list[Prompt]) -> None:
    """By requests of one step, and by one whose prompt goes on where the last answer ended."""
    base = ids_of(prompts[4])
    asked = [base + ids_of(other)[:length] for other, length in zip(prompts, (20, 40, 60), strict=False)]
    with engine(folder, {"budget": 0.2}) as ours:
        said = ours.says(asked)
        check(said, expectations(folder, asked, [("madakv", 0.2)])["madakv", 0.2])
        assert ours.found > len(base)
        second = [asked[0] + said.tokens[0] + ids_of(prompts[0])[:30]]
        check(ours.says(second), expectations(folder, second, [("madakv", 0.2)])["madakv", 0.2])


def test_aborted_requests_leave_nothing_behind(folder: Path, prompts: list[Prompt], expected: Expected) -> None:
    from vllm import SamplingParams

    with engine(folder, {"budget": 0.2, "method": "madakv"}, max_num_batched_tokens=91) as ours:
        before, llm = ours.free_blocks, ours.llm.llm_engine
        for steps in range(0, 40, 3):
            for number, prompt in enumerate(prompts[:3]):
                params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, detokenize=False)
                llm.add_request(f"{steps}-{number}", {"prompt_token_ids": prompt}, params)
            for _ in range(steps):
                llm.step()
            llm.abort_request([f"{steps}-{number}" for number in range(3)], internal=False)
            while llm.has_unfinished_requests():
                llm.step()
            assert ours.free_blocks == before
        check(ours.says(prompts), expected["madakv", 0.2])


def test_a_pool_holds_more_requests(folder: Path) -> None:
    prompts = [torch.randint(3, 512, (640,)).tolist() for _ in range(24)]
    most = {}
    for budget in (1.0, 0.1):
        options = {"max_num_seqs": 24, "num_gpu_blocks_override": 70, "max_num_batched_tokens": 704}
        with engine(folder, {"budget": budget, "method": "madakv:echo=0"}, **options) as ours:
            said = ours.says(prompts, tokens=40)
            most[budget] = said.answering
    assert most[1.0] == 3
    assert most[0.1] >= 3 * most[1.0]


def test_other_entries_give_other_answers(
    folder: Path, prompts: list[Prompt], expected: Expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: what is compared can differ."""
    from madakv.integrations.vllm.evictor import Evictor

    decide = Evictor._decide

    def wrong(self: Evictor, name: str, request: Any, again: Any) -> None:
        decide(self, name, request, again)
        for memory in request.memories:
            memory.replace(memory.kept.keys.roll(5, 0), memory.kept.values.roll(5, 0))

    monkeypatch.setattr(Evictor, "_decide", wrong)
    with engine(folder, {"budget": 0.2, "method": "madakv:echo=0"}) as ours:
        said = ours.says(prompts)
    assert sum(a == b for a, b in zip(said.tokens, expected["madakv:echo=0", 0.2].tokens, strict=True)) == 0


@pytest.mark.parametrize("settings", [None, {"budget": 1.0}])
def test_all_stays_as_it_was(folder: Path, prompts: list[Prompt], expected: Expected, settings: Any) -> None:
    with engine(folder, settings) as ours:
        said = ours.says(prompts)
    assert not said.plans
    assert said.tokens == expected["", 1.0].tokens


def test_a_published_model_on_text(smollm2: Path) -> None:
    quietly()
    prompts = text_prompts(smollm2)
    want = expectations(smollm2, prompts, [("madakv", 0.2)])["madakv", 0.2]
    with engine(smollm2, {"budget": 0.2}, max_num_batched_tokens=256, num_gpu_blocks_override=64) as ours:
        check(ours.says(prompts), want)
