"""Several processes: a layer's heads dealt out between them, two machines, engines side by side: `make test-vllm`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import madakv
from madakv.budget.entries import prompt_entries
from madakv.methods.registry import from_text
from madakv.plan import KeepPlan
from tests.integrations.vllm.engines import BLOCK, IN_VLLM, TOKENS, Engine, Prompt, Said, agreement, engine, ids_of
from tests.integrations.vllm.server import (
    NAME,
    Server,
    free_port,
    madakv_serve,
    running,
    server,
    with_tokenizer,
)
from tests.integrations.vllm.test_equality import Expected, expectations

pytestmark = IN_VLLM
RANKS, LAYERS = 2, 3
TOGETHER: dict[str, Any] = {"tensor_parallel_size": RANKS, "distributed_executor_backend": "mp"}


@pytest.fixture(scope="module")
def expected(folder: Path, prompts: list[Prompt]) -> Expected:
    return expectations(folder, prompts, [("snapkv", 0.2), ("snapkv", 0.5), ("madakv", 0.2), ("", 1.0)])


@dataclass
class Packed:
    """What one process kept of a prompt.

    Attributes:
        prompt: N, tokens.
        plans: of each layer, its own heads alone.
        entries: that its page table has.
        echoed: where the tokens stand that were read once more behind it.
    """

    prompt: int
    plans: list[KeepPlan]
    entries: int
    echoed: list[int]


def listen(worker: Any) -> None:
    """Inside a worker's process: note all that is packed from now on."""
    from madakv.integrations.vllm import worker as hooks
    from madakv.integrations.vllm.evictor import Evictor

    worker.packed, echoed = [], {}
    pack, again = Evictor._pack, hooks._again

    def noted_again(runner: Any, name: str, places: Tensor, behind: bool) -> None:
        if behind:
            echoed[name] = places.tolist()
        again(runner, name, places, behind)

    def noted_pack(self: Evictor, request: Any) -> None:
        pack(self, request)
        (name,) = (name for name, other in self.requests.items() if other is request)
        entries = int(request.table.counts.sum())
        worker.packed.append(Packed(request.prompt, request.plans, entries, echoed.get(name, [])))

    hooks._again, Evictor._pack = noted_again, noted_pack  # type: ignore[method-assign]


def heard(worker: Any) -> list[Packed]:
    """Inside a worker's process: what was packed since it was asked last."""
    packed, worker.packed = worker.packed, []
    return list(packed)


@contextmanager
def together(folder: Path, settings: dict[str, Any], **options: Any) -> Iterator[Engine]:
    """An engine whose workers are two processes, and whose scheduler is in this one."""
    with engine(folder, settings, **TOGETHER | options) as ours:
        ours.llm.collective_rpc(listen)
        yield ours


def packed(ours: Engine, prompts: Sequence[Prompt]) -> list[dict[tuple[int, ...], Packed]]:
    """By rank and prompt; the lengths of prompts differ."""
    names = {len(ids_of(prompt)): tuple(ids_of(prompt)) for prompt in prompts}
    return [{names[one.prompt]: one for one in rank} for rank in ours.llm.collective_rpc(heard)]


def by_rank(model: Any, prompts: Sequence[Prompt], method: str, budget: float) -> list[Said]:
    """What each rank keeps if it decides about its own heads alone, from transformers' scores of all of them."""
    from madakv.reading.allocate import Decisions

    own = [Said() for _ in range(RANKS)]
    decide = Decisions.decide
    for prompt in prompts:
        ids, psi = torch.tensor([ids_of(prompt)]), []

        def noted(self: Decisions, scores: Tensor, psi: list[Tensor] = psi) -> KeepPlan:
            psi.append(scores)
            return decide(self, scores)

        with pytest.MonkeyPatch.context() as patched, madakv.evict(model, from_text(method, budget)):
            patched.setattr(Decisions, "decide", noted)
            model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, do_sample=False)
        assert len(psi) == LAYERS
        for rank, said in enumerate(own):
            heads = [scores.chunk(RANKS, 1)[rank] for scores in psi]
            said.plans[tuple(ids_of(prompt))] = madakv.allocate(
                heads, torch.zeros_like(ids), from_text(method, budget)
            )
    return own


def check_ranks(ranks: list[dict[tuple[int, ...], Packed]], want: list[Said], budget: float) -> None:
    """Each kept what it should have, and no more than the budget of its heads."""
    for own, wanted in zip(ranks, want, strict=True):
        same, either = agreement(Said({prompt: one.plans for prompt, one in own.items()}), wanted)
        assert set(own) == set(wanted.plans)
        assert same == either > 100 * len(own) > 0
        for one in own.values():
            heads = one.plans[0].counts.numel()
            account = int(prompt_entries(budget, torch.tensor([one.prompt]))[0]) * LAYERS * heads
            assert one.entries == sum(len(plan.positions) for plan in one.plans) <= account
    for one, other in zip(*(own.values() for own in ranks), strict=True):
        assert one.echoed == other.echoed


def test_where_all_heads_keep_equally_many_nothing_differs(
    folder: Path, prompts: list[Prompt], expected: Expected
) -> None:
    want = expected["snapkv", 0.2]
    heads = [
        Said({prompt: [one_head(plan, rank) for plan in plans] for prompt, plans in want.plans.items()})
        for rank in range(RANKS)
    ]
    with together(folder, {"budget": 0.2, "method": "snapkv"}) as ours:
        before = ours.free_blocks
        for found in (False, True):
            assert ours.says(prompts).tokens == want.tokens
            check_ranks(packed(ours, prompts), heads, 0.2)
            assert bool(ours.found) is found
        budgets = [0.2, 1.0, 0.5, 1.0, 0.2, 0.5, 1.0, 0.2]
        mixed = ours.says(prompts, [{"madakv_budget": budget} for budget in budgets])
        for number, budget in enumerate(budgets):
            whole = expected["" if budget == 1.0 else "snapkv", budget]
            assert mixed.tokens[number] == whole.tokens[number]
        again = ours.says(prompts, preempt=7)
        assert again.preempted >= 4
        assert again.tokens == want.tokens
        assert ours.free_blocks == before


def one_head(plan: KeepPlan, head: int) -> KeepPlan:
    """Of a plan of one row, what one head keeps."""
    return KeepPlan(plan.positions[plan.owners() == head], plan.counts[:, head : head + 1])


@pytest.mark.parametrize(("method", "chunk"), [("madakv:echo=0", None), ("madakv", 91)])
def test_each_process_decides_about_its_own_heads(
    folder: Path, prompts: list[Prompt], expected: Expected, method: str, chunk: int | None
) -> None:
    """On an account of its own: it keeps what `madakv.allocate` makes of its heads' scores alone."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    want = by_rank(model, prompts, method, 0.2)
    options = {} if chunk is None else {"max_num_batched_tokens": chunk}
    with together(folder, {"budget": 0.2, "method": method}, **options) as ours:
        before = ours.free_blocks
        first = ours.says(prompts)
        ranks = packed(ours, prompts)
        check_ranks(ranks, want, 0.2)
        assert all(bool(one.echoed) is (method == "madakv") for own in ranks for one in own.values())
        assert ours.found == 0
        second = ours.says(prompts)
        assert ours.found > 0
        check_ranks(packed(ours, prompts), want, 0.2)
        assert second.tokens == first.tokens
        assert ours.says(prompts, preempt=38 if chunk else 7).tokens == first.tokens
        assert ours.says(prompts[:3], [{"madakv_budget": 1.0}] * 3).tokens == expected["", 1.0].tokens[:3]
        assert ours.free_blocks == before


def test_a_server_that_keeps_all_says_what_the_full_cache_does(
    folder: Path, prompts: list[Prompt], expected: Expected
) -> None:
    with together(folder, {"budget": 1.0}) as ours:
        for _ in range(2):
            assert ours.says(prompts).tokens == expected["", 1.0].tokens


OPTIONS = (
    "--dtype", "float32", "--enforce-eager", "--block-size", str(BLOCK), "--max-model-len", "704",
    "--max-num-seqs", "8", "--num-gpu-blocks-override", "160", "--served-model-name", NAME,
)  # fmt: skip


@pytest.fixture(scope="module")
def served(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_tokenizer(folder, tmp_path_factory.mktemp("served"))


def answers(live: Server, prompts: Sequence[Prompt]) -> list[list[int]]:
    """All at once."""

    async def ask() -> list[list[int]]:
        extra = {"ignore_eos": True, "return_token_ids": True}
        async with live.many() as client:
            got = await asyncio.gather(
                *(
                    client.completions.create(
                        model=NAME, prompt=ids_of(prompt), temperature=0, max_tokens=TOKENS, extra_body=extra
                    )
                    for prompt in prompts
                )
            )
        return [answer.choices[0].token_ids for answer in got]

    return asyncio.run(ask())


def test_two_machines_say_what_one_does(folder: Path, served: Path, prompts: list[Prompt], tmp_path: Path) -> None:
    """Both of them are this one."""
    with together(folder, {"budget": 0.2}) as ours:
        want = ours.says(prompts).tokens
    node = madakv_serve(
        served, *OPTIONS, "--tensor-parallel-size", str(RANKS), "--distributed-executor-backend", "mp",
        "--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(free_port()),
    )  # fmt: skip
    with (
        running([*node, "--node-rank", "1", "--headless"], tmp_path / "second.log"),
        server([*node, "--node-rank", "0"], tmp_path / "first.log") as live,
    ):
        for _ in range(2):
            assert answers(live, prompts) == want


def test_engines_side_by_side_say_what_one_does(
    served: Path, prompts: list[Prompt], expected: Expected, tmp_path: Path
) -> None:
    want = expected["madakv", 0.2].tokens
    words = madakv_serve(served, *OPTIONS, "--data-parallel-size", "2")
    with server(words, tmp_path / "server.log") as live:
        for _ in range(2):
            assert answers(live, prompts) == want
        # Each front end counts what it answered, and whichever is asked knows the sum.
        found = live.metrics()
        assert found["madakv_plans_total"] == 2 * len(prompts)
        assert found["vllm:request_success_total"] == 2 * len(prompts)
