"""What eviction inside vLLM is worth: requests that answer at once, requests and tokens per second.

    python scripts/vllm_speed.py attention --tokens 410,2048 --requests 16 --out results/speed/vllm/attention.json
    python scripts/vllm_speed.py capacity --requests 72 --pool 6 --say 64 --out results/speed/vllm/capacity.json
    python scripts/vllm_speed.py serving --batched 1 --pool 1,1.33,2 --say 1024 --out results/speed/vllm/serving.json

Runs in the environment of `make test-vllm`, with vLLM in this process. The pool holds so many requests whole.
Seconds are a wall clock's: the machine should have nothing else to do. With `--device cuda` numbers are bfloat16, and
models are compiled, with CUDA graphs between attention.

    attention   decode attention of one layer alone, on a CPU: pages in place, the same copied first, vLLM's own
                kernel over as many entries
    capacity    how many requests answer at once, with a tiny model of random weights: what fits does not depend on it
    serving     a published model on text
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from madakv.attention import paged_attention, ragged_attention
from madakv.cache import RaggedEntries, Tail
from madakv.integrations.vllm.decoding import Decoding, Span
from madakv.integrations.vllm.pages import Memory, PageTable, token_rows
from madakv.integrations.vllm.requests import Request
from madakv.integrations.vllm.settings import page_size
from madakv.methods.registry import from_text
from madakv.plan import KeepPlan
from madakv.provenance import provenance, write_whole

BUDGETS = (1.0, 0.2, 0.05)
# What is ours of a step, by where it is called; `attend` besides holds what scores prompts.
PARTS = ("finish", "begin", "store", "attend", "attend_aside")
DTYPES = {"cpu": "float32", "cuda": "bfloat16"}


def tiny(folder: Path) -> str:
    """A model of random weights whose cache is shaped as a real one's."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=8192, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@contextmanager
def timed(spent: dict[str, float]) -> Iterator[None]:
    """Add up time in the evictor's methods, without what a GPU does meanwhile; those that others call count twice."""
    from madakv.integrations.vllm.evictor import Evictor

    originals = {name: getattr(Evictor, name) for name in PARTS}

    def noted(name: str, *args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        try:
            return originals[name](*args, **kwargs)
        finally:
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - begun

    for name in PARTS:
        # A function, so that it is bound.
        setattr(Evictor, name, lambda *args, _name=name, **kwargs: noted(_name, *args, **kwargs))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(Evictor, name, original)


def served(
    model: str,
    prompts: Sequence[list[int]],
    tokens: Sequence[int],
    pool: float,
    budget: float,
    asked: argparse.Namespace,
) -> dict[str, Any]:
    """All prompts sent at once to an engine of its own; a budget of 1.0 leaves the plug-in out.

    Steps that read a part of a prompt are prefill steps, also where others answer in them; all else is decoding.
    """
    from vllm import LLM, SamplingParams

    length, size = max(map(len, prompts)), asked.block_size
    blocks = int(pool * -(-(length + max(tokens)) // size)) + 1
    evicting = {} if budget == 1.0 else {"additional_config": {"madakv": {"budget": budget, "method": asked.method}}}
    on_gpu = asked.device == "cuda"
    room = {"gpu_memory_utilization": 0.5} if on_gpu else {}
    llm = LLM(
        model, dtype=DTYPES[asked.device], enforce_eager=not on_gpu, skip_tokenizer_init=True, block_size=size,
        max_model_len=length + max(tokens), max_num_seqs=len(prompts), num_gpu_blocks_override=blocks,
        max_num_batched_tokens=asked.batched * length, enable_prefix_caching=False, **evicting, **room,
    )  # fmt: skip
    engine = llm.llm_engine
    scheduler = engine.engine_core.engine_core.scheduler
    for number, prompt in enumerate(prompts):
        params = SamplingParams(temperature=0, max_tokens=tokens[number], ignore_eos=True, detokenize=False)
        engine.add_request(str(number), {"prompt_token_ids": prompt}, params)
    spent: dict[str, float] = {}
    seconds = {"prefill": 0.0, "decode": 0.0}
    decoded, answering = [], []
    preempted: set[tuple[str, int]] = set()
    with timed(spent):
        while engine.has_unfinished_requests():
            before, start = dict(spent), time.perf_counter()
            reads = any(one.num_computed_tokens < one.num_prompt_tokens for one in scheduler.running)
            waiting = len(scheduler.waiting)
            engine.step()
            took = time.perf_counter() - start
            reads = reads or len(scheduler.waiting) < waiting
            seconds["prefill" if reads else "decode"] += took
            at_once = sum(one.num_output_tokens > 0 for one in scheduler.running)
            answering.append(at_once)
            preempted |= {(one.request_id, one.num_preemptions) for one in scheduler.waiting if one.num_preemptions}
            if not reads:
                ours = sum(spent.get(name, 0.0) - before.get(name, 0.0) for name in PARTS)
                decoded.append((at_once, took, ours))
    total = sum(seconds.values())
    busiest = max((n for n, _, _ in decoded), default=0)
    full = [(took, ours) for n, took, ours in decoded if n >= 0.8 * busiest and n]
    engine.engine_core.shutdown()
    del llm, engine, scheduler
    gc.collect()
    row = {
        "pool": pool,
        "budget": budget,
        "block_size": size,
        "prompt": length,
        "requests": len(prompts),
        "blocks": blocks,
        "most_at_once": max(answering),
        "at_once": round(statistics.mean(answering), 1),
        "preempted": len(preempted),
        "seconds": {"total": round(total, 2), **{k: round(v, 2) for k, v in seconds.items()}},
        "requests_per_second": round(len(prompts) / total, 4),
        "tokens_per_second": round(sum(tokens) / total, 2),
        "ours_seconds": {name: round(own, 2) for name, own in spent.items()},
    }
    if full:
        step, ours = (statistics.median(own) for own in zip(*full, strict=True))
        row["busy_decode_step"] = {
            "at_once": busiest,
            "ms": round(1e3 * step, 1),
            "ours_ms": round(1e3 * ours, 1),
            "tokens_per_second": round(
                statistics.median(n / took for n, took, _ in decoded if n >= 0.8 * busiest), 1
            ),
        }
    return row


def capacity(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Requests that answer at once."""
    with tempfile.TemporaryDirectory() as folder:
        model = tiny(Path(folder))
        for length in asked.tokens:
            generator = torch.Generator().manual_seed(1)
            prompts = [torch.randint(3, 512, (length,), generator=generator).tolist() for _ in range(asked.requests)]
            for size in asked.block_sizes:
                asked.block_size = size
                for pool in asked.pools:
                    for budget in asked.budgets:
                        yield served(model, prompts, [asked.say] * len(prompts), pool, budget, asked)


def serving(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Requests and tokens per second."""
    from transformers import AutoTokenizer

    from madakv.evaluation.texts import corpus
    from madakv.model_names import folder_of

    folder = folder_of(asked.model)
    words = "\n".join(source.text for source in corpus.sources() if source.split == "tune")
    ids = AutoTokenizer.from_pretrained(folder)(words[: 40 * max(asked.tokens) * asked.requests])["input_ids"]
    for length in asked.tokens:
        # Where the text ends before the prompts do, it begins again.
        starts = [number * length % (len(ids) - length + 1) for number in range(asked.requests)]
        prompts = [ids[start : start + length] for start in starts]
        said = [
            asked.say // 2 + number * (asked.say - asked.say // 2) // max(1, asked.requests - 1)
            for number in range(asked.requests)
        ]
        for size in asked.block_sizes:
            asked.block_size = size
            for pool in asked.pools:
                for budget in asked.budgets:
                    yield served(str(folder), prompts, said, pool, budget, asked)


def copying(memory: Memory, tables: Sequence[PageTable], tails: Sequence[Tensor], query: Tensor) -> Tensor:
    """As it was before pages were read in place: each request's entries and tail are copied first."""
    rows, size, outs = memory.rows, memory.block_size, []
    for number, table in enumerate(tables):
        at = table.key_rows(0)
        entries = RaggedEntries.pack(rows[at], rows[at + memory.page_size], table.counts[:1])
        tail = Tail()
        tail.append(rows[tails[number]][None], rows[tails[number] + size][None], 0)
        outs.append(ragged_attention(query[number][None, :, None], entries, tail, scaling=0.125)[0, :, 0])
    return torch.stack(outs)


def vllm_attention(memory: Tensor, lengths: Tensor, blocks: Tensor, query: Tensor) -> Callable[[], Tensor]:
    """vLLM's kernel over a cache [blocks, H, size, 2 * D] whose sequences lie in `blocks` [S, b]."""
    from vllm import _custom_ops as ops
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    n, H, size, _ = memory.shape
    S, Hq, D = query.shape
    isa = _get_attn_isa(memory.dtype, size, D, "auto")
    keys, values = memory.view(n, H, 2 * size, D).chunk(2, dim=2)
    ops.cpu_attn_reshape_and_cache(
        *torch.randn(2, n * size, H, D).unbind(0), keys, values, torch.arange(n * size), isa
    )
    starts = torch.arange(S + 1, dtype=torch.int32)
    how = ops.cpu_attn_get_scheduler_metadata(
        num_reqs=S, num_heads=Hq, num_kv_heads=H, head_dim=D, seq_lens=lengths, dtype=memory.dtype,
        query_start_loc=starts, causal=True, sliding_window_size=-1, isa=isa, enable_kv_split=True,
    )  # fmt: skip
    out = torch.empty_like(query)

    def run() -> Tensor:
        ops.cpu_attention_with_kv_cache(
            query=query, key_cache=keys, value_cache=values, output=out, query_start_loc=starts, seq_lens=lengths,
            scale=0.125, causal=True, alibi_slopes=None, sliding_window=-1, block_table=blocks, softcap=0.0,
            scheduler_metadata=how, s_aux=None,
        )  # fmt: skip
        return out

    return run


def attention(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Decode attention of one layer: `requests` sequences of so many kept entries a head on average, uneven heads."""
    H, Hq, D = 3, 9, 64
    for entries in asked.tokens:
        for size in asked.block_sizes:
            S, kept, tail = asked.requests, -(-(entries + page_size(size) - 1) // size), 40
            each, own = kept + -(-tail // size) + 1, -(-(entries + tail) // size)
            cache = torch.zeros(S * each + 1, H, size, 2 * D)
            memory, order = Memory.behind([cache]), torch.randperm(S * each).view(S, each) + 1
            memory.rows.copy_(torch.randn(memory.rows.shape))
            tables, spans, tails = [], [], []
            for number, blocks in enumerate(order):
                counts = torch.tensor([[entries // 4, entries // 2, 3 * entries - entries // 4 - entries // 2]])
                plan = KeepPlan.from_mask((torch.arange(3 * entries) < counts.T)[None])
                prompt = kept * size
                request = Request(
                    prompt=prompt, first=0, method=from_text("snapkv", 0.2), modality=torch.zeros(1, prompt),
                    blocks=partial(blocks.tolist), block_size=size,
                    table=PageTable(memory, [plan], blocks[:kept]),
                )  # fmt: skip
                tables.append(request.table)
                spans.append(Span(request, number, number, 1, prompt + tail - 1))
                tails.append(token_rows(memory, blocks, torch.arange(prompt, prompt + tail)))
            decoding, query = Decoding(memory, spans), torch.randn(S, Hq, D)
            engine = torch.empty(S * own + 1, H, size, 2 * D)
            works: dict[str, Callable[[], Tensor]] = {
                "in place": lambda m=memory, d=decoding, q=query: paged_attention(
                    q, m.rows, d.layers[0], scaling=0.125
                ),
                "copied first": partial(copying, memory, tables, tails, query),
                "vLLM": vllm_attention(
                    engine,
                    torch.full((S,), entries + tail, dtype=torch.int32),
                    (torch.randperm(S * own) + 1).view(S, own).int(),
                    query,
                ),
            }
            torch.testing.assert_close(works["in place"](), works["copied first"]())
            times: dict[str, list[float]] = {name: [] for name in works}
            for _ in range(asked.repeats):
                for name, work in works.items():
                    begun = time.perf_counter()
                    work()
                    times[name].append(time.perf_counter() - begun)
            read = 2 * 4 * D * H * S * (entries + tail)
            yield (
                {"sequences": S, "entries_per_head": entries, "tail": tail, "block_size": size}
                | {
                    name: {"ms": round(1e3 * min(own), 3), "GB_per_second": round(read / min(own) / 1e9, 2)}
                    for name, own in times.items()
                }
            )


def floats(text: str) -> list[float]:
    """Numbers of the command line, split at commas."""
    return [float(own) for own in text.split(",")]


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("attention", "capacity", "serving"))
    parser.add_argument("--device", choices=tuple(DTYPES), default="cpu", help="that this vLLM is for")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--method", default="madakv")
    parser.add_argument("--tokens", type=lambda text: [int(own) for own in text.split(",")], default=[2048])
    parser.add_argument("--budgets", type=floats, default=BUDGETS)
    parser.add_argument("--block-sizes", type=lambda text: [int(own) for own in text.split(",")], default=[32])
    parser.add_argument("--requests", type=int, default=12)
    parser.add_argument("--say", type=int, default=128, help="new tokens; serving: half of it to all of it")
    parser.add_argument("--pool", type=floats, dest="pools", default=[3.0], help="whole requests that the pool holds")
    parser.add_argument("--batched", type=int, default=2, help="prompts that are read in one step, at most")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }  # fmt: skip
    torch.manual_seed(0)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    from vllm import __version__

    about = provenance(
        command=" ".join(sys.argv), vllm=__version__, threads=torch.get_num_threads(), device=asked.device,
        dtype=DTYPES[asked.device],
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    for row in {"attention": attention, "capacity": capacity, "serving": serving}[asked.what](asked):
        print(row, flush=True)
        rows.append(row)
        write_whole(asked.out, {"about": about, "rows": rows})


if __name__ == "__main__":
    main()
