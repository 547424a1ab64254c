"""Attention over pages, by each kernel, against plain loops: uneven heads, in memory of NaN wherever nothing lies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from madakv import ConfigurationError, backend
from madakv.attention import Pages, paged_attention, paged_attention_reference
from madakv.native import build
from tests.tolerance import TOLERANCE, assert_same

Case = tuple[Tensor, Tensor, Pages]
KERNELS = ("native", "triton", "torch")


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each kernel that runs here is the one that is asked for."""
    name = request.param
    if name == "native" and build.kernels() is None:
        pytest.skip("needs a C++ compiler")
    if name == "triton":
        pytest.importorskip("triton")
    monkeypatch.setenv(backend.VARIABLE, name)
    backend.chosen.cache_clear()
    yield name
    backend.chosen.cache_clear()


def case(
    counts: list[list[int]],
    tails: list[tuple[int, int]],
    *,
    G: int = 2,
    D: int = 64,
    size: int = 8,
    tail_size: int = 16,
    dtype: torch.dtype = torch.float32,
) -> Case:
    """A query of each sequence, the memory's rows, and where in them the sequences' entries lie: anywhere.

    Args:
        counts: kept entries, [S, H].
        tails: where in its first page each sequence's tail begins, and how many entries it holds.
        G, D, dtype: of the query.
        size, tail_size: entries of a page, of kept ones and of tails; the one divides the other.
    """
    S, H, layer = len(counts), len(counts[0]), 3
    needed = [-(-n // size) for own in counts for n in own]
    behind = [-(-(begin + n) // tail_size) for begin, n in tails]
    # Cells of 2 * tail_size rows: a block is one of each head. Kept pages may lie in any cell, tails in whole blocks.
    of_block = H * tail_size // size
    blocks = sum(behind) + -(-sum(needed) // of_block) + 2
    order = torch.randperm(blocks)
    of_tails = (order[: sum(behind)] * H * 2 * tail_size).split(behind)
    places = (order[sum(behind) :][:, None] * of_block + torch.arange(of_block)).flatten()
    pages = (places[torch.randperm(len(places))] * 2 * size + layer)[: sum(needed)]
    tail_pages = torch.full((S, max(behind) + 1), -(1 << 40))
    for own, found in zip(tail_pages, of_tails, strict=True):
        own[: len(found)] = found
    made = Pages(
        size=size,
        tail_size=tail_size,
        pages=pages,
        first=(torch.tensor(needed).cumsum(0) - torch.tensor(needed)).view(S, H),
        counts=torch.tensor(counts),
        longest=max(map(max, counts)),
        tail_pages=tail_pages,
        tail_begin=torch.tensor([begin for begin, _ in tails]),
        tail_counts=torch.tensor([n for _, n in tails]),
        tail_row=layer,
        head_rows=2 * tail_size,
    )
    rows = torch.full((blocks * H * 2 * tail_size + layer, D), float("nan"), dtype=dtype)
    *at, there = made.rows()
    for some in (own[there] for own in at):
        rows[some] = torch.randn(len(some), D).to(dtype)
    return torch.randn(S, H * G, D).to(dtype), rows, made


UNEVEN = [[3, 70, 0], [16, 0, 33]]
TAILS = [(15, 1), (7, 40)]


def check(attend: Callable[..., Tensor], given: Case, tolerance: float, **how: Any) -> None:
    want = paged_attention_reference(*given, **how)
    got = attend(*given, **how)
    assert got.dtype == given[0].dtype
    assert_same(got, want, tolerance)


def test_the_reference_is_attention_over_what_was_written() -> None:
    query, rows, pages = case(UNEVEN, TAILS, G=1)
    keys = [rows[pages.pages[pages.first[0, 1] + n // 8] + n % 8] for n in range(70)]
    values = [rows[pages.pages[pages.first[0, 1] + n // 8] + n % 8 + 8] for n in range(70)]
    block = pages.tail_pages[0, 0] + 3 + 1 * 32
    keys, values = torch.stack([*keys, rows[block + 15]]), torch.stack([*values, rows[block + 31]])
    want = torch.nn.functional.scaled_dot_product_attention(query[:1, 1:2], keys[None], values[None], scale=0.3)
    assert_same(paged_attention_reference(query, rows, pages, scaling=0.3)[:1, 1:2], want, 1e-5)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_every_kernel_reads_pages_of_uneven_heads(kernel: str, dtype: torch.dtype) -> None:
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 1e-3}[dtype]
    sizes = [(1, 64, 8, 32), (8, 32, 128, 128), (3, 128, 8, 16), (5, 32, 16, 16), (2, 128, 16, 32), (7, 64, 32, 32)]
    sizes += [(4, 64, 4, 16), (6, 32, 8, 128)]
    # Triton's interpreter is slow, and what differs between dtypes does not depend on sizes there.
    for G, D, *pages in sizes if kernel != "triton" else sizes[::3] if dtype == torch.float32 else sizes[7:]:
        check(
            paged_attention,
            case(UNEVEN, TAILS, G=G, D=D, size=pages[0], tail_size=pages[1], dtype=dtype),
            tolerance,
            scaling=0.2,
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_softcaps_and_sinks(kernel: str, dtype: torch.dtype) -> None:
    given, tolerance = case([[3, 70], [0, 33]], TAILS, G=3, dtype=dtype), TOLERANCE[dtype]
    sinks = torch.randn(6).to(dtype) + 3
    check(paged_attention, given, tolerance, scaling=0.5, softcap=2.0)
    check(paged_attention, given, tolerance, scaling=0.5, sinks=sinks)
    check(paged_attention, given, tolerance, scaling=0.5, softcap=20.0, sinks=sinks)


def test_long_heads_are_cut(kernel: str) -> None:
    counts, tails = ([[2500, 5], [1, 700]], [(3, 301), (0, 2)]) if kernel == "native" else ([[300, 5]], [(3, 201)])
    for size in (8, 20, 128):
        check(paged_attention, case(counts, tails, size=size, tail_size=2 * size), 1e-5, scaling=0.2)


@pytest.mark.parametrize("sinks", [None, torch.ones(6)], ids=["", "sinks"])
def test_nothing_is_zero(kernel: str, sinks: Tensor | None) -> None:
    query, rows, pages = case([[0, 5, 9], [3, 0, 1]], [(2, 0), (0, 1)])
    out = paged_attention(query, rows, pages, scaling=0.2, sinks=sinks)
    assert not bool(out[0, :2].any())
    assert bool(out[0, 2:].all())
    assert bool(out[1].all())


def test_several_tokens_are_sequences_of_growing_tails(kernel: str) -> None:
    query, rows, pages = case([[9, 40]] * 3, [(14, 3)] * 3)
    pages = replace(pages, first=pages.first[:1].repeat(3, 1), tail_counts=torch.tensor([1, 2, 3]))
    pages = replace(pages, tail_pages=pages.tail_pages[:1].repeat(3, 1))
    check(paged_attention, (query, rows, pages), 1e-5, scaling=0.2)


@pytest.mark.parametrize("splits", [3, 20])
def test_splits_of_the_triton_kernel(splits: int) -> None:
    pytest.importorskip("triton")
    from madakv.attention.triton import triton_paged

    given = case([[10, 0]], [(5, 5)], D=32)
    check(lambda *args, **how: triton_paged(*args, splits=splits, **how), given, 1e-5, scaling=0.2)


@pytest.mark.skipif(build.kernels() is None, reason="needs a C++ compiler")
@pytest.mark.usefixtures("threads", "exact")
def test_the_cpu_kernel_is_right_with_threads_and_other_vectors() -> None:
    for threads, dtype in ((1, torch.float32), (3, torch.float32), (3, torch.bfloat16)):
        torch.set_num_threads(threads)
        given = case([[1500, 3], [40, 600]], [(9, 300), (0, 3)], G=3, D=32, dtype=dtype)
        check(paged_attention, given, TOLERANCE[dtype], scaling=0.2)


def test_what_kernels_cannot_serve_is_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    given = case(UNEVEN, TAILS, D=12)
    check(paged_attention, given, 1e-5, scaling=0.2)
    monkeypatch.setattr(build, "kernels", lambda: None)
    check(paged_attention, case(UNEVEN, TAILS), 1e-5, scaling=0.2)


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    query, rows, pages = case(UNEVEN, TAILS)
    for wrong in ((query[:1], rows), (query[:, :5], rows), (query.half(), rows), (query, rows[:, :8])):
        with pytest.raises(ValueError, match="do not fit 2 sequences of 3 heads"):
            paged_attention(*wrong, pages, scaling=1.0)
    with pytest.raises(ValueError, match="first has to be contiguous int64"):
        replace(pages, first=pages.first.int())
    monkeypatch.setattr("madakv.attention.paged.chosen", lambda device: "flash")
    with pytest.raises(ConfigurationError, match="flash: its kernels read no pages"):
        paged_attention(query, rows, pages, scaling=1.0)
