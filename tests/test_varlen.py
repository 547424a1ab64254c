"""Attention by kernels for uneven sequences, with a plain function in the place of the kernels, which need a GPU."""

from __future__ import annotations

import gc
import sys
import types
import weakref
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import madakv
from madakv import ConfigurationError, backend
from madakv.attention import cpu, decode, ragged_attention_reference, varlen
from madakv.attention.decode import decode_attention
from madakv.attention.varlen import VarlenSchedule, varlen_decode
from madakv.cache import RaggedEntries, Tail
from madakv.plan import KeepPlan
from tests.families.zoo import FAMILIES, left_padded
from tests.tolerance import TOLERANCE, assert_same

LENGTHS = {
    "uneven": [[7, 40, 1], [90, 3, 33]],
    "empty heads": [[0, 5, 0], [64, 0, 0]],
    "an empty row": [[0, 0, 0], [9, 8, 7]],
    "nothing": [[0, 0, 0], [0, 0, 0]],
}


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Any:
    """flash-attn's function of that name, as of 2.8.3, sequence by sequence and head by head in float64."""
    del dropout_p, window_size, deterministic
    assert not causal
    assert alibi_slopes is None
    assert block_table is None
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert q.dtype == k.dtype == v.dtype
    assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
    assert k.shape == v.shape == (int(cu_seqlens_k[-1]), k.shape[1], q.shape[2])
    assert q.shape[0] == int(cu_seqlens_q[-1])
    group = q.shape[1] // k.shape[1]
    out = torch.full(q.shape, float("nan"), dtype=torch.float64)
    lse = torch.full((q.shape[1], q.shape[0]), float("nan"))
    spans = zip(pairwise(cu_seqlens_q.tolist()), pairwise(cu_seqlens_k.tolist()), strict=True)
    for (first, last), (begin, end) in spans:
        assert last - first <= max_seqlen_q
        assert end - begin <= max_seqlen_k
        for head in range(q.shape[1]):
            keys, values = (x[begin:end, head // group].double() for x in (k, v))
            logits = q[first:last, head].double() @ keys.T * (softmax_scale or q.shape[2] ** -0.5)
            if softcap > 0:
                logits = softcap * torch.tanh(logits / softcap)
            # Where there are no keys, its kernels write zeros and a denominator of +inf.
            out[first:last, head] = logits.softmax(-1) @ values if end > begin else 0.0
            lse[head, first:last] = logits.logsumexp(-1).float() if end > begin else float("inf")
    return (out.to(q.dtype), lse, None) if return_attn_probs else out.to(q.dtype)


@pytest.fixture(autouse=True)
def _package(monkeypatch: pytest.MonkeyPatch) -> None:
    package = types.ModuleType("flash_attn")
    # transformers looks for it as well.
    package.__spec__ = ModuleSpec("flash_attn", None)
    package.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", package)


def made(lengths: list[list[int]], group: int, dim: int = 8, dtype: torch.dtype = torch.float32) -> Any:
    """A query, entries of the given lengths and a tail of five."""
    counts = torch.tensor(lengths)
    B, H = counts.shape
    keys, values = (torch.randn(B, H, 100, dim, dtype=dtype) for _ in range(2))
    entries = RaggedEntries.gather(keys, values, KeepPlan.from_mask(torch.arange(100) < counts[..., None]))
    tail = Tail()
    tail.append(torch.randn(B, H, 5, dim, dtype=dtype), torch.randn(B, H, 5, dim, dtype=dtype), 100)
    return torch.randn(B, H * group, 1, dim, dtype=dtype) * 3, entries, tail


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("group", [1, 7])
@pytest.mark.parametrize("chunk", [None, 1, 16], ids=["whole", "ones", "chunks"])
def test_it_is_the_reference(lengths: list[list[int]], group: int, chunk: int | None) -> None:
    query, entries, tail = made(lengths, group)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], dtype=torch.bool)[:, None, None]
    options: dict[str, Any] = {"scaling": 0.4, "mask": mask, "softcap": 2.0, "sinks": torch.randn(3 * group)}
    schedule = VarlenSchedule.of(entries, chunk=chunk)
    got = varlen_decode(query, entries, tail, varlen.flash_attn, schedule=schedule, **options)
    assert_same(got, ragged_attention_reference(query, entries, tail, **options), 1e-5)
    bare = varlen_decode(query, entries, tail, varlen.flash_attn, scaling=0.4)
    assert_same(bare, ragged_attention_reference(query, entries, tail, scaling=0.4), 1e-5)


def test_a_row_whose_tail_is_hidden_sees_its_prompt_alone() -> None:
    query, entries, tail = made(LENGTHS["an empty row"], 2)
    options: dict[str, Any] = {"scaling": 0.4, "mask": torch.zeros(1, 1, 1, 5, dtype=torch.bool)}
    got = varlen_decode(query, entries, tail, varlen.flash_attn, **options)
    assert_same(got[1], ragged_attention_reference(query, entries, tail, **options)[1], 1e-5)
    assert bool((got[0] == 0).all())


def test_chunks_cover_every_entry_once_and_none_is_empty() -> None:
    _, entries, _ = made(LENGTHS["uneven"], 1)
    schedule = VarlenSchedule.of(entries, chunk=16)
    sizes = schedule.starts.diff()
    assert int(schedule.starts[-1]) == len(entries.keys)
    assert int(sizes.min()) >= 1
    assert int(sizes.max()) == schedule.longest == 16
    held = torch.zeros(6, dtype=torch.int64).index_add(0, schedule.owner, sizes.long())
    assert held.tolist() == list(entries.lengths)


def test_a_schedule_is_made_once_and_goes_with_its_entries() -> None:
    _, entries, _ = made(LENGTHS["uneven"], 1)
    schedule = weakref.ref(entries.once(VarlenSchedule.of))
    assert entries.once(VarlenSchedule.of) is schedule()
    del entries
    gc.collect()
    assert schedule() is None


def test_pytorchs_own_takes_these_arguments_and_gives_a_denominator_for_every_query() -> None:
    """Its shapes alone: it has no kernel for a CPU."""
    S, G, T, D = 5, 7, 90, 16
    query, keys = (torch.empty(n, 1, D, dtype=torch.bfloat16, device="meta") for n in (S * G, T))
    starts = torch.empty(S + 1, dtype=torch.int32, device="meta")
    out, lse = varlen.torch_varlen(query, keys, keys, starts, starts, G, 40, scaling=0.1, softcap=None)
    assert out.shape == query.shape
    assert lse.numel() == S * G
    assert lse.dtype == torch.float32


def test_pytorchs_own_is_asked_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def varlen_attn(q: Tensor, k: Tensor, v: Tensor, *spans: Any, return_aux: Any, scale: float) -> Any:
        assert return_aux.lse
        plain: Any = flash_attn_varlen_func
        return plain(q, k, v, *spans, softmax_scale=scale, return_attn_probs=True)[:2]

    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
    query, entries, tail = made(LENGTHS["empty heads"], 2)
    got = varlen_decode(query, entries, tail, varlen.torch_varlen, scaling=0.4)
    assert_same(got, ragged_attention_reference(query, entries, tail, scaling=0.4), 1e-5)
    with pytest.raises(ConfigurationError, match="no softcap"):
        varlen_decode(query, entries, tail, varlen.torch_varlen, scaling=0.4, softcap=2.0)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma2", "gpt_oss"])
def test_models_answer_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups, padded rows, softcaps and sinks; in float32, which the plain function takes and the kernels do not."""
    monkeypatch.setattr(varlen, "DTYPES", (torch.float32,))
    zoo = FAMILIES[family]
    model, inputs = zoo.model(), left_padded([zoo.prompt(seed) for seed in (0, 1)])
    logits = {}
    for name in ("torch", "flash"):
        for asks in (cpu, decode):
            monkeypatch.setattr(asks, "chosen", lambda _, name=name: name)
        with madakv.evict(model, budget=0.4, safeguard=0.2):
            answer = model.generate(
                **inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True
            )
        logits[name] = torch.stack(answer.logits)
    assert_same(logits["flash"], logits["torch"], 1e-4)
    assert not torch.equal(logits["flash"], logits["torch"])


@pytest.mark.parametrize("dtype", varlen.DTYPES)
@pytest.mark.parametrize("kernel", ["flash", "varlen"])
def test_the_backend_calls_the_kernel_that_is_asked_for(
    kernel: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def counted(*args: Any, scaling: float, softcap: float | None) -> Any:
        calls.append(softcap)
        return varlen.flash_attn(*args, scaling=scaling, softcap=softcap)

    monkeypatch.setitem(varlen.KERNELS, kernel, counted)
    monkeypatch.setattr(decode, "chosen", lambda _: kernel)
    query, entries, tail = made(LENGTHS["uneven"], 2, 16, dtype)
    options: dict[str, Any] = {"scaling": 0.2, "mask": None, "softcap": 3.0, "sinks": None}
    got = decode_attention(query, entries, tail, **options)
    assert got is not None
    assert got.dtype == dtype
    assert_same(got, ragged_attention_reference(query, entries, tail, **options), TOLERANCE[dtype])
    assert calls == [3.0]
    assert decode_attention(query.expand(-1, -1, 2, -1), entries, tail, **options) is None


@pytest.mark.parametrize(
    ("dtype", "dim", "why"),
    [(torch.float32, 8, "runs in torch.float32"), (torch.bfloat16, 12, "are 12 and 12"), (torch.float16, 264, "264")],
)
def test_what_it_cannot_serve_is_an_error(
    dtype: torch.dtype, dim: int, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "chosen", lambda _: "flash")
    query, entries, tail = made(LENGTHS["uneven"], 1, dim, dtype)
    with pytest.raises(ConfigurationError, match=why):
        decode_attention(query, entries, tail, scaling=1.0, mask=None, softcap=None, sinks=None)


def test_a_package_that_is_missing_or_too_old_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: str) -> str:
        raise PackageNotFoundError

    monkeypatch.setattr(backend, "version", none)
    assert backend.missing("flash", "cuda") == "the package flash-attn is missing"
    monkeypatch.setattr(backend, "version", lambda _: "2.5.9.post1")
    assert "2.5.9.post1 is installed" in str(backend.missing("flash", "cuda"))
    monkeypatch.setattr(backend, "version", lambda _: "2.6.0")
    assert backend.missing("flash", "cuda") is None
    assert backend.missing("varlen", "cuda") is None
    for name in ("flash", "varlen"):
        assert "needs a GPU" in str(backend.missing(name, "cpu"))
