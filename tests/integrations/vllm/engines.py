"""vLLM in this process, beside transformers: what both keep of a prompt, and what both say then."""

from __future__ import annotations

import gc
import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import madakv
from madakv.methods.registry import from_text
from madakv.plan import KeepPlan

IN_VLLM = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None,
        reason="vLLM is not installed here; scripts/vllm_env.sh makes an environment that has it",
    ),
]
"""The `pytestmark` of all that runs vLLM."""

BLOCK = 32
TOKENS = 24


@dataclass(frozen=True)
class Seen:
    """A prompt with pictures.

    Attributes:
        ids: as a model reads it, a token for each part of a picture.
        inputs: a transformers model's, batch size 1.
        asked: what vLLM is given.
    """

    ids: list[int]
    inputs: dict[str, Tensor]
    asked: dict[str, Any]


Prompt = list[int] | Seen


def ids_of(prompt: Prompt) -> list[int]:
    """As a model reads it."""
    return prompt.ids if isinstance(prompt, Seen) else prompt


def _inputs(prompt: Prompt) -> dict[str, Tensor]:
    if isinstance(prompt, Seen):
        return prompt.inputs
    ids = torch.tensor([prompt])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def quietly() -> None:
    """Before vLLM is imported: in this process, with little memory, and no more threads than it was given."""
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }


@dataclass
class Said:
    """What was kept of prompts and said after them.

    Attributes:
        plans: by prompt; of those that stayed whole there are none.
        tokens: of each prompt, in order.
        preempted: how often a request was.
        answering: how many had begun to answer at once, at most.
    """

    plans: dict[tuple[int, ...], list[KeepPlan]] = field(default_factory=dict)
    tokens: list[list[int]] = field(default_factory=list)
    preempted: int = 0
    answering: int = 0


def transformers_says(
    model: Any, prompts: Sequence[Prompt], method: str, budget: float, tokens: int = TOKENS
) -> Said:
    """Read alone, one by one; a budget of 1.0 leaves madakv out."""
    said = Said()
    for prompt in prompts:
        ids = ids_of(prompt)
        how: dict[str, Any] = {name: value.to(model.device) for name, value in _inputs(prompt).items()}
        how |= {"max_new_tokens": tokens, "do_sample": False}
        if budget == 1.0:
            out = model.generate(**how)
        else:
            with madakv.evict(model, from_text(method, budget)) as run:
                out = model.generate(**how)
            assert run.last is not None
            said.plans[tuple(ids)] = [plan.to("cpu") for plan in run.last.plans]
        said.tokens.append(out[0, len(ids) :].tolist())
    return said


class Engine:
    """An engine of vLLM.

    Attributes:
        found: tokens of prompts that were in the cache when they came, altogether.
    """

    found = 0

    def __init__(self, folder: Path, settings: dict[str, Any] | None, **options: Any) -> None:
        from vllm import LLM

        asked = {} if settings is None else {"additional_config": {"madakv": settings}}
        self.llm = LLM(
            str(folder),
            dtype="float32",
            block_size=BLOCK,
            disable_log_stats=True,
            **{"skip_tokenizer_init": True, "max_model_len": 704, "max_num_seqs": 8, "num_gpu_blocks_override": 160}
            | {"enforce_eager": True}
            | asked
            | options,
        )
        self.core: Any = self.llm.llm_engine.engine_core.engine_core

    @property
    def free_blocks(self) -> int:
        return int(self.core.scheduler.kv_cache_manager.block_pool.get_num_free_blocks())

    def says(
        self, prompts: Sequence[Prompt], extra: Sequence[Any] | None = None, tokens: int = TOKENS, preempt: int = 0
    ) -> Said:
        """All at once.

        Args:
            prompts: token ids.
            extra: `extra_args` of each.
            tokens: to say.
            preempt: after every so many steps, every running request is preempted; 0: none is.
        """
        from vllm import SamplingParams

        engine, said = self.llm.llm_engine, Said()
        for number, prompt in enumerate(prompts):
            params = SamplingParams(
                temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False,
                extra_args=None if extra is None else extra[number],
            )  # fmt: skip
            asked = prompt.asked if isinstance(prompt, Seen) else {"prompt_token_ids": prompt}
            engine.add_request(str(number), asked, params)
        done, steps = {}, 0
        with kept(said, prompts):
            while engine.has_unfinished_requests():
                for out in engine.step():
                    if out.finished:
                        self.found += out.num_cached_tokens
                        done[int(out.request_id)] = list(out.outputs[0].token_ids)
                steps += 1
                running = self.core.scheduler.running
                said.answering = max(said.answering, sum(one.num_output_tokens > 0 for one in running))
                if preempt and steps % preempt == 0:
                    said.preempted += len(self.core.scheduler.running)
                    self.core.scheduler.reset_prefix_cache(reset_running_requests=True)
        said.tokens = [done[number] for number in range(len(prompts))]
        return said


@contextmanager
def kept(said: Said, prompts: Sequence[Prompt]) -> Iterator[None]:
    """Note what is packed of prompts, which requests are numbered by."""
    from madakv.integrations.vllm.evictor import Evictor

    original = Evictor._pack

    def noted(self: Evictor, request: Any) -> None:
        (name,) = (name for name, other in self.requests.items() if other is request)
        said.plans[tuple(ids_of(prompts[int(name.partition("-")[0])]))] = [plan.to("cpu") for plan in request.plans]
        original(self, request)

    Evictor._pack = noted  # type: ignore[method-assign]
    try:
        yield
    finally:
        Evictor._pack = original  # type: ignore[method-assign]


@contextmanager
def engine(folder: Path, settings: dict[str, Any] | None, **options: Any) -> Iterator[Engine]:
    """One that is gone behind the block."""
    made = Engine(folder, settings, **options)
    try:
        yield made
    finally:
        made.llm.llm_engine.engine_core.shutdown()
        del made
        gc.collect()


def entries(plan: KeepPlan) -> Tensor:
    """Each as one number."""
    return plan.owners() * (1 << 20) + plan.positions


def agreement(said: Said, other: Said) -> tuple[int, int]:
    """Of the entries that were kept of the prompts that both evicted: how many both did, and how many any did."""
    same = either = 0
    for prompt, plans in said.plans.items():
        for one, two in zip(plans, other.plans[prompt], strict=True):
            both = int(torch.isin(entries(one), entries(two)).sum())
            same, either = same + both, either + len(one.positions) + len(two.positions) - both
    return same, either
