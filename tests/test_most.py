"""The most that queries attend to: kernels and PyTorch's operations against plain loops."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
import torch

from madakv.attention import prompt_attention
from madakv.native.build import kernels
from madakv.scoring import LayerView, most_and_attended, most_attention, most_attention_reference
from madakv.scoring.most import most_of_pieces
from madakv.scoring.most.native import native_most

N = 150
BEHIND = torch.ones(N, N).triu(1) > 0
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "softcap": {"softcap": 1.5},
    "sinks": {"sinks": torch.linspace(-1, 2, 6)},
    "bool mask": {"mask": torch.arange(N)[:, None] * 7 % 11 >= torch.arange(N) * 5 % 11},
    "additive mask": {"mask": torch.linspace(-3, 3, N * N).view(N, N).masked_fill(BEHIND, float("-inf"))},
    "padded": {},
}  # fmt: skip


def make_view(case: str, D: int = 24, dtype: torch.dtype = torch.float32) -> LayerView:
    options = dict(CASES[case])
    if "mask" in options:
        options["mask"] = options["mask"][None, None].expand(2, 1, N, N)
    modality = torch.zeros(2, N, dtype=torch.int64)
    if case == "padded":
        modality[0, :40] = -1
    query, key = torch.randn(2, 6, N, D), torch.randn(2, 2, N, D)
    return LayerView(query.to(dtype), key.to(dtype), torch.randn(2, 2, N, D), modality, 0.4, **options)


def some_queries() -> torch.Tensor:
    """Other counts in each row, so that rows fill other numbers of blocks."""
    queries = torch.zeros(2, N, dtype=torch.bool)
    queries[0, 45:149:2] = True
    queries[1, 140:] = True
    return queries


def needs_compiler() -> None:
    if kernels() is None:
        pytest.skip("no compiler")


@pytest.mark.parametrize("case", CASES)
def test_pieces_match_the_reference(case: str) -> None:
    view, queries = make_view(case), some_queries()
    torch.testing.assert_close(
        most_of_pieces(view, queries).double(), most_attention_reference(view, queries), rtol=0, atol=3e-6
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES)
def test_the_cpu_kernel_matches_the_reference(case: str, dtype: torch.dtype) -> None:
    needs_compiler()
    view, queries = make_view(case, dtype=dtype), some_queries()
    found = native_most(view, queries)
    assert found is not None
    torch.testing.assert_close(found.double(), most_attention_reference(view, queries), rtol=0, atol=2e-6)


@pytest.mark.parametrize("D", [1, 7, 80])
def test_the_cpu_kernel_takes_heads_of_any_dim_and_any_layout(D: int) -> None:
    needs_compiler()
    view, queries = make_view("plain", D=D), some_queries()
    # As projections leave heads: side by side; and with a stride within a row.
    for one, other in ((1, 2), (2, 3)):
        apart = replace(
            view,
            query=view.query.transpose(one, other).contiguous().transpose(one, other),
            key=view.key.transpose(one, other).contiguous().transpose(one, other),
        )
        found = native_most(apart, queries)
        assert found is not None
        torch.testing.assert_close(found, most_of_pieces(view, queries), rtol=0, atol=3e-6)


def test_a_query_that_sees_nothing_pays_nothing() -> None:
    needs_compiler()
    blind = torch.zeros(1, 1, N, N, dtype=torch.bool).expand(2, 1, N, N)
    found = native_most(replace(make_view("plain"), mask=blind), some_queries())
    assert found is not None
    assert (found == 0).all()


def test_what_is_not_a_number_is_told() -> None:
    needs_compiler()
    view = make_view("plain")
    view.key[0, 1, 3, 2] = float("nan")
    found = native_most(view, some_queries())
    assert found is not None
    assert found[0, 1].isnan().any(-1).all()
    assert found[0, 0].isfinite().all()


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(threads: int) -> None:
    needs_compiler()
    view, queries = make_view("plain"), some_queries()
    before = torch.get_num_threads()
    expected = native_most(view, queries)
    torch.set_num_threads(threads)
    try:
        found = native_most(view, queries)
    finally:
        torch.set_num_threads(before)
    assert found is not None
    assert expected is not None
    assert torch.equal(found, expected)


def attended_reference(view: LayerView, queries: torch.Tensor) -> torch.Tensor:
    """What attention gives those that are asked for, [B, Hq, Q, Dv]; zeros for the others."""
    out = prompt_attention(
        view.query,
        view.key,
        view.value,
        scaling=view.scaling,
        mask=view.mask,
        softcap=view.softcap,
        sinks=view.sinks,
        hidden=view.modality < 0,
    )
    return out.masked_fill(~queries[:, None, -view.query.shape[2] :, None], 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES)
def test_the_cpu_kernel_attends_besides(case: str, dtype: torch.dtype) -> None:
    needs_compiler()
    view, queries = make_view(case, dtype=dtype), some_queries()
    # Values of another width, and with strides of their own.
    view = replace(view, value=torch.randn(2, 2, 19, N).mT.to(dtype))
    found = most_and_attended(view, queries)
    assert found is not None
    assert torch.equal(found[0], native_most(view, queries))  # type: ignore[arg-type]
    assert found[1].dtype is dtype
    close = {} if dtype is not torch.float32 else {"rtol": 0.0, "atol": 3e-6}
    torch.testing.assert_close(found[1], attended_reference(view, queries), **close)


@pytest.mark.parametrize("keys", [40, 700])
def test_the_newest_attend_to_few_keys_and_to_more_than_a_block(keys: int) -> None:
    needs_compiler()
    Q, D = 37, 64
    view = LayerView(
        torch.randn(1, 6, Q, D), torch.randn(1, 2, keys, D), torch.randn(1, 2, keys, D),
        torch.zeros(1, keys, dtype=torch.int64), 0.125,
    )  # fmt: skip
    queries = (torch.arange(keys) >= keys - Q)[None]
    found = most_and_attended(view, queries)
    assert found is not None
    torch.testing.assert_close(found[0].double(), most_attention_reference(view, queries), rtol=0, atol=2e-6)
    torch.testing.assert_close(found[1], attended_reference(view, queries), rtol=0, atol=3e-6)


@pytest.mark.parametrize("padding", [0, 5])
def test_what_is_not_a_number_is_given_behind_padding(padding: int) -> None:
    needs_compiler()
    view, queries = make_view("plain"), some_queries()
    view.modality[:, :padding] = -1
    view.query[0, :, 60:] = float("nan")
    found = most_and_attended(view, queries)
    assert found is not None
    most, attended = found
    assert most[0].isnan().any(-1).all()
    wrong = queries[0] & (torch.arange(N) >= 60)
    assert attended[0, :, wrong].isnan().all()
    assert attended[0, :, ~wrong].isfinite().all()
    assert attended[1].isfinite().all()


def test_the_kernel_is_not_asked_for_gradients() -> None:
    needs_compiler()
    view, queries = make_view("plain"), some_queries()
    view.value.requires_grad_()
    assert most_and_attended(view, queries) is None
    with torch.no_grad():
        assert most_and_attended(view, queries) is not None


def test_who_sees_nothing_is_given_nothing() -> None:
    needs_compiler()
    blind = torch.zeros(1, 1, N, N, dtype=torch.bool).expand(2, 1, N, N)
    found = most_and_attended(replace(make_view("plain"), mask=blind), some_queries())
    assert found is not None
    assert (found[1] == 0).all()


def test_the_backend_that_is_asked_for_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_compiler()
    view, queries = make_view("plain"), some_queries()
    assert torch.equal(most_attention(view, queries), native_most(view, queries))  # type: ignore[arg-type]
    monkeypatch.setattr("madakv.scoring.most.native.chosen", lambda _device: "torch")
    assert native_most(view, queries) is None
    assert most_and_attended(view, queries) is None
    assert torch.equal(most_attention(view, queries), most_of_pieces(view, queries))


triton = pytest.importorskip("triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_the_gpu_kernel_matches_the_reference(case: str, dtype: torch.dtype) -> None:
    from madakv.scoring.most.gpu import triton_most

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not os.environ.get("TRITON_INTERPRET"):
        pytest.skip("no GPU, and triton was loaded without its interpreter")
    view, queries = make_view(case, dtype=dtype), some_queries()
    moved = replace(
        view,
        **{
            name: value.to(device)
            for name in ("query", "key", "value", "modality", "mask", "sinks")
            if (value := getattr(view, name)) is not None
        },
    )
    found = triton_most(moved, queries.to(device)).cpu()
    torch.testing.assert_close(found.double(), most_attention_reference(view, queries), rtol=0, atol=3e-6)
