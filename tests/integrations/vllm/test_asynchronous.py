"""Steps that are scheduled before the last one has answered, as vLLM does on GPUs: `make test-vllm`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integrations.vllm.engines import IN_VLLM, Engine, Prompt, Said, engine
from tests.integrations.vllm.test_equality import Expected, check, expectations

pytestmark = IN_VLLM


@pytest.fixture(scope="module")
def expected(folder: Path, prompts: list[Prompt]) -> Expected:
    return expectations(folder, prompts, [("madakv", 0.2)])


@pytest.fixture(autouse=True)
def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, vLLM itself says no."""
    from vllm.platforms.cpu import CpuPlatform

    original = CpuPlatform.check_and_update_config.__func__

    def check_and_update(platform: Any, config: Any) -> None:
        original(platform, config)
        config.scheduler_config.async_scheduling = True

    monkeypatch.setattr(CpuPlatform, "check_and_update_config", classmethod(check_and_update))


@pytest.mark.parametrize("chunk", [None, 91])
def test_nothing_differs(folder: Path, prompts: list[Prompt], expected: Expected, chunk: int | None) -> None:
    want = expected["madakv", 0.2]
    options = {} if chunk is None else {"max_num_batched_tokens": chunk}
    with engine(folder, {"budget": 0.2, "method": "madakv"}, **options) as ours:
        assert type(ours.core.scheduler).__name__ == "AsyncScheduler"
        assert ours.core.batch_queue_size == 2
        before = ours.free_blocks
        check(ours.says(prompts), want)
        check(ours.says(prompts), want)
        assert ours.found > 0
        said = ours.says(prompts, preempt=20 if chunk else 7)
        assert said.preempted >= 4
        check(said, want)
        stopped(ours, prompts, want)
        check(ours.says(prompts), want)
        assert ours.free_blocks == before


def stopped(ours: Engine, prompts: list[Prompt], want: Said) -> None:
    """Answers that end where nobody knew it when the next step was scheduled, and aborts in between."""
    from vllm import SamplingParams

    llm, ends = ours.llm.llm_engine, {}
    greedy: dict[str, Any] = {"temperature": 0, "max_tokens": 24, "ignore_eos": True, "detokenize": False}
    for number, prompt in enumerate(prompts):
        last = want.tokens[number][number % 4]
        ends[str(number)] = want.tokens[number][: want.tokens[number].index(last) + 1]
        params = SamplingParams(stop_token_ids=[last], **greedy)
        llm.add_request(str(number), {"prompt_token_ids": prompt}, params)
        if number % 2:
            llm.add_request(f"aborted {number}", {"prompt_token_ids": prompt}, SamplingParams(**greedy))
    done, steps = {}, 0
    while llm.has_unfinished_requests():
        for out in llm.step():
            if out.finished:
                done[out.request_id] = list(out.outputs[0].token_ids)
        steps += 1
        llm.abort_request([f"aborted {number}" for number in (1, 3, 5, 7) if steps == 2 * number], internal=False)
    assert {name: done[name] for name in ends} == ends
