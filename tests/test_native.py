"""The CPU kernel against the plain-loop reference, and what it leaves to PyTorch's operations."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from madakv import ConfigurationError
from madakv.attention import backend, ragged_attention, ragged_attention_reference
from madakv.cache import RaggedEntries, Tail
from madakv.native import build, native_partial
from tests.test_attention import LENGTHS, causal, make_entries, make_tail
from tests.tolerance import TOLERANCE, assert_same

BF16 = torch.bfloat16

ROUNDED = 3e-3
"""What rounding the weights of values to bfloat16 allows: half a unit in the last of 8 places at most."""

built = pytest.mark.skipif(build.kernels() is None, reason="needs a C++ compiler")


def make(lengths: list[list[int]], D: int, tail: int) -> tuple[RaggedEntries, Tail]:
    return make_entries(lengths, D, dtype=BF16), make_tail(2, 2, tail, D, dtype=BF16)


def by_head(entries: RaggedEntries) -> tuple[torch.Tensor, ...]:
    """The keys of every row and head."""
    return entries.keys.split(list(entries.lengths))


@built
@pytest.mark.parametrize("lengths", [*LENGTHS.values(), [[2100, 17], [0, 1025]]], ids=[*LENGTHS, "many parts"])
@pytest.mark.parametrize(
    ("R", "D", "tail"), [(1, 128, 1), (2, 64, 40), (3, 32, 3), (7, 128, 5), (8, 96, 2), (13, 512, 1)]
)
def test_matches_the_reference(lengths: list[list[int]], R: int, D: int, tail: int, exact: bool) -> None:
    entries, new = make(lengths, D, tail)
    rows = torch.randn(2, 2, R, D).to(BF16)
    part = native_partial(rows, entries, new, 0.1)
    assert part is not None
    want = ragged_attention_reference(rows.flatten(1, 2)[:, :, None], entries, new, scaling=0.1)
    assert_same(part.out.flatten(1, 2)[:, :, None], want, 1e-5 if exact or R <= 2 else ROUNDED)
    keys = [torch.cat(own).double() for own in zip(by_head(entries), new.keys.flatten(0, 1), strict=True)]
    logits = [0.1 * own.double() @ key.T for own, key in zip(rows.flatten(0, 1), keys, strict=True)]
    assert_same(part.lse.flatten(0, 1), torch.stack([own.logsumexp(-1) for own in logits]), 1e-6)


@built
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("count", [1, 2, 5])
def test_it_is_right_with_any_number_of_threads(count: int) -> None:
    torch.set_num_threads(count)
    entries, tail = make([[5000, 3], [0, 1200]], 64, 700)
    rows = torch.randn(2, 2, 3, 64).to(BF16)
    want = ragged_attention_reference(rows.flatten(1, 2)[:, :, None], entries, tail, scaling=0.1)
    for _ in range(5):
        part = native_partial(rows, entries, tail, 0.1)
        assert part is not None
        assert_same(part.out.flatten(1, 2)[:, :, None], want, ROUNDED)


@built
def test_without_a_tail_heads_without_entries_see_nothing() -> None:
    entries, _ = make(LENGTHS["some empty"], 64, 1)
    part = native_partial(torch.randn(2, 2, 3, 64).to(BF16), entries, None, 0.1)
    assert part is not None
    empty = entries.counts == 0
    assert part.out[empty].abs().max() == 0
    assert part.lse[empty].max() == float("-inf")
    assert part.lse[~empty].isfinite().all()


@built
def test_logits_far_apart_and_values_that_are_not_numbers() -> None:
    entries, tail = make([[1500, 40], [7, 9]], 64, 2)
    rows = torch.randn(2, 2, 1, 64).to(BF16)
    part = native_partial(rows, entries, tail, 30.0)
    assert part is not None
    assert_same(part.out.flatten(1, 2)[:, :, None], ragged_attention_reference(rows, entries, tail, scaling=30.0))
    entries.keys[1520, 0] = float("nan")
    part = native_partial(rows, entries, tail, 1.0)
    assert part is not None
    assert part.out.isnan().any(-1).flatten().tolist() == [False, True, False, False]


@built
def test_masks_hide_the_tail_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    entries, tail = make(LENGTHS["uneven"], 64, 6)
    query = torch.randn(2, 4, 3, 64).to(BF16)
    options = {"scaling": 0.2, "mask": causal(3, 6), "sinks": torch.randn(4)}
    want = ragged_attention_reference(query, entries, tail, **options)
    monkeypatch.setattr(RaggedEntries, "tiles", None)
    assert_same(ragged_attention(query, entries, tail, **options), want, TOLERANCE[BF16])


def test_what_it_cannot_serve_is_left_to_other_operations() -> None:
    entries, tail = make(LENGTHS["uneven"], 64, 2)
    rows = torch.randn(2, 2, 1, 64).to(BF16)
    odd, odd_tail = make(LENGTHS["uneven"], 48, 2)
    assert native_partial(rows.float(), entries, tail, 1.0) is None
    assert native_partial(rows, make_entries(LENGTHS["uneven"], 64), tail, 1.0) is None
    assert native_partial(torch.randn(2, 2, 1, 48).to(BF16), odd, odd_tail, 1.0) is None
    assert native_partial(torch.randn(2, 2, 17, 64).to(BF16), entries, tail, 1.0) is None
    assert native_partial(rows.clone().requires_grad_(), entries, tail, 1.0) is None


@pytest.fixture
def fresh_kernel() -> Iterator[None]:
    build.kernels.cache_clear()
    yield
    build.kernels.cache_clear()


@pytest.mark.usefixtures("fresh_kernel")
def test_without_a_compiler_it_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(build.shutil, "which", lambda _: None)
    entries, tail = make(LENGTHS["uneven"], 64, 2)
    query = torch.randn(2, 2, 1, 64).to(BF16)
    for _ in range(2):
        got = ragged_attention(query, entries, tail, scaling=0.1)
    assert_same(got, ragged_attention_reference(query, entries, tail, scaling=0.1), TOLERANCE[BF16])
    assert sum("no C++ compiler" in record.message for record in caplog.records) == 1


@pytest.fixture
def chosen_anew() -> Iterator[None]:
    backend.chosen.cache_clear()
    yield
    backend.chosen.cache_clear()


@built
@pytest.mark.usefixtures("chosen_anew")
@pytest.mark.parametrize(("name", "serves"), [("torch", False), ("native", True), ("auto", True)])
def test_the_backend_decides(name: str, serves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backend.VARIABLE, name)
    entries, tail = make(LENGTHS["uneven"], 64, 2)
    part = native_partial(torch.randn(2, 2, 1, 64).to(BF16), entries, tail, 1.0)
    assert (part is not None) == serves


@pytest.mark.usefixtures("fresh_kernel", "chosen_anew")
def test_asked_for_and_not_to_be_built_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backend.VARIABLE, "native")
    with pytest.raises(ConfigurationError, match="needs a CPU; tensors are on 'cuda'"):
        backend.chosen("cuda")
    monkeypatch.setattr(build.shutil, "which", lambda _: None)
    with pytest.raises(ConfigurationError, match="MADAKV_BACKEND=native: it cannot be built here"):
        backend.chosen("cpu")
