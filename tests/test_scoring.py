"""psi against the plain-loop reference, for every feature of real attention functions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from madakv.methods import from_text
from madakv.reading import Scores
from madakv.scoring import (
    LayerView,
    OutputProjection,
    attention_paid,
    context_attention_reference,
    proxy_and_context_attention,
    proxy_attention,
    proxy_attention_reference,
    proxy_mask,
)
from madakv.scoring.relevance import relevance
from madakv.scoring.values import output_norms, value_norms
from tests.tolerance import assert_same

MODALITY = torch.tensor([[-1, -1, 0, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0], [0, 0, 1, 1, 0, 1, 1, 1, 1, 0, 0, 0, 0]])


def make_view(G: int = 3, **options: object) -> LayerView:
    B, N = MODALITY.shape
    return LayerView(
        query=torch.randn(B, 2 * G, N, 8),
        key=torch.randn(B, 2, N, 8),
        value=torch.randn(B, 2, N, 8),
        modality=MODALITY,
        scaling=0.7,
        **options,  # type: ignore[arg-type]
    )


def causal_and_padded() -> torch.Tensor:
    N = MODALITY.shape[1]
    return torch.ones(N, N).tril().bool()[None, None] & (MODALITY >= 0)[:, None, None]


CASES: dict[str, dict[str, object]] = {
    "plain": {},
    "bool mask": {"mask": causal_and_padded()},
    "additive mask": {"mask": torch.zeros(2, 1, 13, 13).masked_fill(~causal_and_padded(), float("-inf"))},
    "mask per head": {"mask": causal_and_padded().expand(2, 6, 13, 13) & (torch.rand(2, 6, 13, 13) < 0.8)},
    "softcap": {"softcap": 1.5},
    "sinks": {"sinks": torch.linspace(-1, 2, 6)},
    "all": {"mask": causal_and_padded(), "softcap": 2.0, "sinks": torch.linspace(-1, 2, 6)},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("groups", ["mean", "max"])
def test_psi_matches_the_reference(case: str, groups: str) -> None:
    view = make_view(**CASES[case])
    proxies = proxy_mask(MODALITY)
    want = proxy_attention_reference(view, proxies, groups)  # type: ignore[arg-type]
    got = proxy_attention(view, proxies, groups)  # type: ignore[arg-type]
    assert got.dtype == torch.float32
    assert_same(got, want)
    assert (got[0, :, :2] == 0).all(), "padding scores nothing"


@pytest.mark.parametrize("case", ["plain", "mask per head", "sinks"])
def test_scoring_in_chunks_changes_nothing(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    view = make_view(**CASES[case])
    whole = proxy_attention(view, proxy_mask(MODALITY))
    monkeypatch.setattr("madakv.scoring.attention.scratch_elements", lambda _: 1)
    assert_same(proxy_attention(view, proxy_mask(MODALITY)), whole, 1e-6)


def test_each_proxy_hands_out_one_unit_of_attention() -> None:
    psi = proxy_attention(make_view(), proxy_mask(MODALITY))
    assert_same(psi.sum(-1), proxy_mask(MODALITY).sum(-1)[:, None].expand(2, 2).double())


def test_rows_are_scored_alone() -> None:
    view = make_view()
    both = proxy_attention(view, proxy_mask(MODALITY))
    for b in range(2):
        alone = LayerView(
            view.query[b : b + 1], view.key[b : b + 1], view.value[b : b + 1], MODALITY[b : b + 1], view.scaling
        )
        assert_same(proxy_attention(alone, proxy_mask(MODALITY[b : b + 1])), both[b : b + 1])


def test_half_precision_inputs_are_scored_in_fp32() -> None:
    view = make_view()
    low = LayerView(view.query.bfloat16(), view.key.bfloat16(), view.value.bfloat16(), MODALITY, view.scaling)
    assert_same(proxy_attention(low, proxy_mask(MODALITY)), proxy_attention_reference(low, proxy_mask(MODALITY)))


@pytest.mark.parametrize(("N", "most"), [(512, 8 * 512 * 2), (6000, 8000)])
def test_only_the_proxies_rows_are_computed_and_in_bounded_chunks(
    N: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No tensor of N x N appears; beyond the scratch size not even one of P x N."""
    monkeypatch.setattr("madakv.scoring.attention.scratch_elements", lambda _: 8000)
    shape = (3, 2, N, 1)
    modality = torch.zeros(3, N, dtype=torch.int64)
    view = LayerView(torch.randn(shape), torch.randn(shape), torch.randn(shape), modality, 1.0)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in inputs:
                    largest = max(largest, tensor.numel())
            return out

    proxies = proxy_mask(modality, 8)
    inputs = [tensor.untyped_storage().data_ptr() for tensor in (view.query, view.key, proxies)]
    with Watch():
        psi = proxy_attention(view, proxies)
    assert psi.numel() == 3 * 2 * N
    assert largest <= max(most, psi.numel())


@pytest.mark.parametrize("chunk", [None, 150])
def test_keys_are_read_once_whatever_is_asked(chunk: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The question's attention and the context's are told from the same copy of the keys in fp32."""
    if chunk is not None:
        monkeypatch.setattr("madakv.scoring.attention.scratch_elements", lambda _: chunk)
    view = make_view()
    view = replace(view, query=view.query.bfloat16(), key=view.key.bfloat16(), value=view.value.bfloat16())
    cast = {"key": 0, "value": 0}

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            for name in cast:
                whole = getattr(view, name)
                if isinstance(args[0], torch.Tensor) and args[0].data_ptr() and len(args[0].shape) > 2:
                    of_it = args[0].untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
                    if of_it and func is torch.ops.aten._to_copy.default:
                        cast[name] += args[0].numel()
            return func(*args, **(kwargs or {}))

    scores = Scores(from_text("madakv:context=5"), MODALITY.device)
    with Watch():
        scores.add_layer(view)
    assert cast["key"] == view.key.numel()
    assert cast["value"] <= view.value.numel()


@pytest.mark.parametrize("case", ["plain", "mask per head", "sinks"])
def test_sets_of_queries_are_told_apart(case: str) -> None:
    view = make_view(**CASES[case])
    sets = torch.rand(3, 2, *MODALITY.shape) < 0.4
    sets &= MODALITY >= 0
    got = attention_paid(view, sets)
    assert got.shape == (3, 2, 2, 2, 3, 13)
    for i in range(3):
        for j in range(2):
            assert_same(got[i, j], attention_paid(view, sets[i, j]))


def test_a_query_that_sees_nothing_pays_nothing() -> None:
    hidden = causal_and_padded().expand(2, 1, 13, 13).clone()
    hidden[:, :, 12] = False
    proxies = torch.zeros(2, 13, dtype=torch.bool)
    proxies[:, 11:] = True
    alone = proxies.clone()
    alone[:, 12] = False
    view = make_view(mask=hidden)
    assert_same(proxy_attention(view, proxies), proxy_attention(view, alone))


@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_norms_of_values(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("madakv.scoring.values.scratch_elements", lambda _: chunk)
    value = torch.randn(2, 3, 13, 8).bfloat16()
    got = value_norms(value)
    assert got.dtype == torch.float32
    assert_same(got, value.double().square().sum(-1).sqrt(), 1e-6)


@pytest.mark.parametrize("case", ["plain", "mask per head", "softcap"])
@pytest.mark.parametrize("queries", [1, 3, 10, 50])
def test_context_matches_the_reference(case: str, queries: int) -> None:
    view = make_view(**CASES[case])
    psi, got = proxy_and_context_attention(view, proxy_mask(MODALITY), queries)
    assert_same(psi, proxy_attention_reference(view, proxy_mask(MODALITY)))
    assert got.dtype == torch.float32
    assert_same(got, context_attention_reference(view, queries))
    assert (got[0, :, :2] == 0).all(), "padding scores nothing"


def test_late_tokens_are_not_at_a_disadvantage() -> None:
    """Every query spreads its attention evenly: early tokens are seen by all, and are worth hardly more for it."""
    view = make_view()
    flat = LayerView(**{**vars(view), "query": torch.zeros_like(view.query), "modality": torch.zeros(2, 13).long()})
    accumulated, got = proxy_and_context_attention(flat, torch.ones(2, 13, dtype=torch.bool), 13)
    assert (accumulated[..., 0] / accumulated[..., 8] > 4).all()
    assert (got[..., 0] / got[..., 8] < 3).all()


def test_all_that_is_heard_adds_up_in_units_of_attention() -> None:
    """The question's sum, the prompt's average, the answer's sum and the echo's maximum, each with its weight."""
    torch.manual_seed(2)
    view = make_view()
    later, most = (torch.rand(2, 2, 3, 13) * (MODALITY >= 0)[:, None, None] for _ in range(2))
    heard = "context=4:context_weight=0.5:draft=2:answer_weight=3.0:echo=8:echo_weight=0.25"
    method = from_text(f"snapkv:window_size=question:kernel_size=1:{heard}")
    scores = Scores(method, MODALITY.device)
    scores.add_layer(view)
    want = proxy_attention(view, proxy_mask(MODALITY)) + 0.5 * context_attention_reference(view, 4)
    assert_same(scores.final(0), want)
    for _ in range(2):
        scores.add(0, method.later_score(later))
    scores.add(0, method.echo_score(most))
    assert_same(scores.final(0), want + 3 * 2 * later.mean(2) + 0.25 * most.mean(2))


@pytest.mark.parametrize("kind", ["linear", "wrapped"])
@pytest.mark.parametrize("groups", [1, 3])
def test_values_count_by_what_the_projection_makes_of_them(groups: int, kind: str) -> None:
    torch.manual_seed(3)
    linear = torch.nn.Linear(2 * groups * 8, 20)
    module = linear if kind == "linear" else torch.nn.Sequential(linear)
    view = make_view(groups, projection=OutputProjection(module))
    got = output_norms(view)
    assert got.dtype == torch.float32
    for b, h, i in ((0, 0, 3), (1, 1, 12)):
        reached = []
        for g in range(groups):
            heads = torch.zeros(2 * groups, 8)
            heads[h * groups + g] = view.value[b, h, i]
            reached.append((linear(heads.flatten()) - linear.bias).square().sum())
        assert_same(got[b, h, i], torch.stack(reached).mean().sqrt().detach().double())
    assert_same(output_norms(replace(view, projection=None)), value_norms(view.value).double())


def test_nothing_is_scored_where_nothing_is_evicted() -> None:
    view = make_view()
    whole, one = (from_text("madakv:context=4", budget=budget) for budget in (1.0, 1))
    assert not whole.score(view).any()
    assert whole.worth(view) is None
    assert one.score(view).any(), "one entry per head is another budget"
    assert one.worth(view) is not None


def test_relevance_is_what_the_question_pays_beyond_what_is_usual() -> None:
    view, question = make_view(), proxy_mask(MODALITY, 3)
    got = relevance(*proxy_and_context_attention(view, question, 64), question)
    paid = proxy_attention_reference(view, question) / question.sum(-1)[:, None, None]
    usual = context_attention_reference(view, 64)
    wanted = ((paid - usual).clamp_min(0) / (usual + 1e-3)).sum(1).masked_fill(question, 0)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-5)


def test_what_every_query_looks_at_is_not_what_is_asked_for() -> None:
    """Of two tokens, every query pays a lot to one, the question a little more; and it alone pays to the other."""
    N, sink, asked = 100, 0, 40
    query, key = torch.zeros(1, 1, N, 8), torch.zeros(1, 1, N, 8)
    query[..., 0], key[..., sink, 0] = 6.0, 1.0
    query[..., -4:, 0] = 9.0
    query[..., -4:, 1], key[..., asked, 1] = 4.0, 1.0
    view = LayerView(query, key, key, torch.zeros(1, N, dtype=torch.int64), scaling=1.0)
    question = proxy_mask(view.modality, 4)
    assert proxy_attention(view, question)[0, 0].argmax() == sink
    assert relevance(*proxy_and_context_attention(view, question, 64), question)[0].argmax() == asked
