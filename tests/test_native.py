"""The CPU kernel against the plain-loop reference, and what it leaves to PyTorch's operations."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from madakv import ConfigurationError, backend
from madakv.attention import ragged, ragged_attention, ragged_attention_reference
from madakv.attention.cpu import cpu_attention, cpu_partial
from madakv.cache import RaggedEntries, Tail
from madakv.native import build
from tests.test_attention import LENGTHS, causal, make_entries, make_tail
from tests.tolerance import TOLERANCE, assert_same

BF16 = torch.bfloat16

ROUNDED = 3e-3
"""RMS of what rounding the weights of values to bfloat16 adds; a single one is off by half of 2**-8 at most."""

built = pytest.mark.skipif(build.kernels() is None, reason="needs a C++ compiler")


DTYPES = {BF16: 1e-5, torch.float16: 1e-5, torch.float32: 1e-6}
"""Relative RMS error against fp64 before the output is rounded, where weights of values are held in fp32."""


def make(
    lengths: list[list[int]], D: int, tail: int, dtype: torch.dtype = BF16, Dv: int | None = None
) -> tuple[RaggedEntries, Tail]:
    return make_entries(lengths, D, Dv, dtype=dtype), make_tail(2, 2, tail, D, Dv, dtype=dtype)


def by_head(entries: RaggedEntries) -> tuple[torch.Tensor, ...]:
    """The keys of every row and head."""
    return entries.keys.split(list(entries.lengths))


@built
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [*LENGTHS.values(), [[2100, 17], [0, 1025]]], ids=[*LENGTHS, "many parts"])
def test_matches_the_reference(lengths: list[list[int]], dtype: torch.dtype, exact: bool) -> None:
    sizes = [(1, 128, 128, 1), (2, 64, 64, 40), (3, 32, 24, 3), (4, 8, 8, 1), (5, 160, 160, 7), (6, 16, 40, 2)]
    sizes += [(7, 128, 128, 5), (8, 96, 96, 2), (13, 512, 512, 1), (1, 24, 24, 9), (2, 80, 80, 3), (33, 256, 64, 4)]
    for R, D, Dv, tail in sizes:
        entries, new = make(lengths, D, tail, dtype, Dv)
        rows = torch.randn(2, 2, R, D).to(dtype)
        part = cpu_partial(rows, entries, new, 0.1)
        assert part is not None
        want = ragged_attention_reference(rows.flatten(1, 2)[:, :, None], entries, new, scaling=0.1)
        tolerance = DTYPES[dtype] if exact or dtype != BF16 or R <= 2 else ROUNDED
        assert_same(part.out.flatten(1, 2)[:, :, None], want, tolerance)
        keys = [torch.cat(own).double() for own in zip(by_head(entries), new.keys.flatten(0, 1), strict=True)]
        logits = [0.1 * own.double() @ key.T for own, key in zip(rows.flatten(0, 1), keys, strict=True)]
        assert_same(part.lse.flatten(0, 1), torch.stack([own.logsumexp(-1) for own in logits]), 1e-6)


def masks(Q: int, T: int) -> dict[str, torch.Tensor]:
    """Of two rows, six query heads: as a second turn has them, as padding makes them, and as nobody does."""
    padded = causal(Q, T).repeat(2, 1, 1, 1)
    padded[1, :, :, : T // 2] = False
    blind = padded.clone()
    blind[0] = False
    return {
        "causal": causal(Q, T),
        "padded": padded,
        "blind": blind,
        "additive": torch.randn(1, 1, Q, T).masked_fill(~causal(Q, T), float("-inf")),
        "of heads": (torch.rand(2, 6, Q, 2 * T) < 0.5)[..., ::2],
        "bfloat16": torch.randn(2, 1, Q, T).to(BF16),
    }


@built
@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", masks(1, 2))
def test_new_tokens_see_of_the_tail_what_a_mask_shows(name: str, dtype: torch.dtype) -> None:
    for Q, T, lengths in ((1, 6, LENGTHS["uneven"]), (5, 9, LENGTHS["some empty"]), (17, 300, LENGTHS["even"])):
        entries, tail = make(lengths, 24, T, dtype)
        query, mask = torch.randn(2, 6, Q, 24).to(dtype), masks(Q, T)[name]
        want = ragged_attention_reference(query, entries, tail, scaling=0.2, mask=mask).nan_to_num()
        got = cpu_attention(query, entries, tail, 0.2, mask)
        assert got is not None
        assert got.dtype == dtype
        assert_same(got, want, 1e-6 if dtype == torch.float32 else TOLERANCE[dtype])
        part = cpu_partial(query, entries, tail, 0.2, mask)
        assert part is not None
        assert_same(part.out.view(2, 6, Q, 24), want, ROUNDED if dtype == BF16 else DTYPES[dtype])


@built
@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_hidden_or_behind_the_end_does_not_matter(dtype: torch.dtype) -> None:
    entries, tail = make(LENGTHS["uneven"], 40, 5, dtype)
    keys, values = tail.buffers
    keys[:, :, 5:] = values[:, :, 5:] = float("nan")
    keys[:, :, 2] = float("nan")
    query = torch.randn(2, 4, 1, 40).to(dtype)
    mask = torch.tensor([True, True, False, True, True])[None, None, None]
    for hides in (mask, torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))):
        got = cpu_attention(query, entries, tail, 0.3, hides)
        assert got is not None
        seen = Tail()
        seen.append(keys[:, :, [0, 1, 3, 4]], values[:, :, [0, 1, 3, 4]], 0)
        assert_same(got, ragged_attention_reference(query, entries, seen, scaling=0.3), TOLERANCE[dtype])


@built
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("R", [2, 3])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_it_is_right_with_any_number_of_threads(count: int, R: int) -> None:
    torch.set_num_threads(count)
    entries, tail = make([[5000, 3], [0, 1200]], 64, 700)
    rows = torch.randn(2, 2, R, 64).to(BF16)
    want = ragged_attention_reference(rows.flatten(1, 2)[:, :, None], entries, tail, scaling=0.1)
    for _ in range(5):
        part = cpu_partial(rows, entries, tail, 0.1)
        assert part is not None
        assert_same(part.out.flatten(1, 2)[:, :, None], want, 1e-5 if R == 2 else ROUNDED)


@built
@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("R", [1, 3, 7])
def test_weights_sum_to_one_however_they_are_rounded(R: int) -> None:
    entries, tail = make([[2100, 17], [5, 1025]], 64, 3)
    entries.values.fill_(1.0)
    tail.values.fill_(1.0)
    part = cpu_partial(torch.randn(2, 2, R, 64).to(BF16), entries, tail, 0.3)
    assert part is not None
    assert (part.out - 1).abs().max() <= 1e-6


@built
@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("R", [1, 3, 7])
def test_large_values_stay_finite(R: int) -> None:
    entries, tail = make([[2100, 17], [5, 1025]], 64, 3)
    large = torch.finfo(BF16).max / 2
    entries.values.fill_(large)
    tail.values.fill_(large)
    part = cpu_partial(torch.zeros(2, 2, R, 64, dtype=BF16), entries, tail, 1.0)
    assert part is not None
    assert_same(part.out / large, torch.ones(2, 2, R, 64))


@built
def test_without_a_tail_heads_without_entries_see_nothing() -> None:
    entries, _ = make(LENGTHS["some empty"], 64, 1)
    part = cpu_partial(torch.randn(2, 2, 3, 64).to(BF16), entries, None, 0.1)
    assert part is not None
    empty = entries.counts == 0
    assert part.out[empty].abs().max() == 0
    assert part.lse[empty].max() == float("-inf")
    assert part.lse[~empty].isfinite().all()


@built
@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("R", [1, 3, 7])
def test_logits_far_apart(R: int) -> None:
    entries, tail = make([[1500, 40], [7, 9]], 64, 2)
    rows = torch.randn(2, 2, R, 64).to(BF16)
    part = cpu_partial(rows, entries, tail, 30.0)
    assert part is not None
    want = ragged_attention_reference(rows.flatten(1, 2)[:, :, None], entries, tail, scaling=30.0)
    assert_same(part.out.flatten(1, 2)[:, :, None], want, 1e-5 if R == 1 else ROUNDED)


@built
@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("R", [1, 3, 7])
def test_what_is_not_a_number_stays_with_its_head(R: int) -> None:
    rows = torch.randn(2, 2, R, 64).to(BF16)
    # The key of one head; the odd last value of one, behind which the next one's begin; the first value of one.
    for name, entry, head in (("keys", 1520, 1), ("values", 1538, 1), ("values", 1546, 3)):
        entries, tail = make([[1500, 39], [7, 9]], 64, 2)
        getattr(entries, name)[entry, 0] = float("nan")
        part = cpu_partial(rows, entries, tail, 1.0)
        assert part is not None
        assert part.out.isnan().any(-1).any(-1).flatten().tolist() == [own == head for own in range(4)]


GUARDED = """
import ctypes, mmap, sys
import torch
from madakv.attention import cpu
from madakv.native.build import kernels
libc, guards = ctypes.CDLL(None, use_errno=True), []
def guarded(count, size=2):  # numbers that end where memory that may not be read begins
    room_size = -(-size * count // mmap.PAGESIZE) * mmap.PAGESIZE
    room = mmap.mmap(-1, room_size + mmap.PAGESIZE)
    at = ctypes.addressof(ctypes.c_char.from_buffer(room))
    ctypes.memset(at, 0, room_size)
    assert libc.mprotect(ctypes.c_void_p(at + room_size), mmap.PAGESIZE, 0) == 0
    guards.append(room)
    return at + room_size - size * count
built = kernels()
for kind, size, D in ((0, 2, 64), (0, 2, 24), (1, 2, 24), (1, 2, 8), (2, 4, 8), (2, 4, 40)):
    for R in (1, 2, 3, 7):
        for n in (1, 5, 1023):
            keys, values, query = guarded(n * D, size), guarded(n * D, size), guarded(R * D, size)
            counts, out = torch.tensor([n]), torch.empty(R * D + R)
            to = (None, out.data_ptr(), out[-R:].data_ptr())
            layer = cpu._Layer(kind, 1, 1, D, D, counts.data_ptr())
            built.attend(ctypes.byref(layer), keys, values, query, R, 1, keys, values, n, n, None, 1.0, 1, *to)
for R in (1, 2, 3, 7):
    for n in (1, 5, 1023):
        product = torch.empty(R * n, dtype=torch.bfloat16)
        rows, weights, bias = guarded(R * 64), guarded(n * 64), guarded(n)
        built.linear(rows, weights, bias, R, n, 64, 1, product.data_ptr())
print("read")
if "beyond" in sys.argv:
    ctypes.string_at(weights, 2 * n * 64 + 1)
"""


@built
@pytest.mark.skipif(sys.platform != "linux", reason="protects memory as Linux does")
def test_nothing_is_read_beyond_the_end() -> None:
    run = subprocess.run([sys.executable, "-c", GUARDED], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "read\n"), run.stderr
    # The guard itself works: reading one byte more ends the process.
    assert subprocess.run([sys.executable, "-c", GUARDED, "beyond"], capture_output=True).returncode < 0


@built
def test_masks_hide_the_tail_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    entries, tail = make(LENGTHS["uneven"], 64, 6)
    query = torch.randn(2, 4, 3, 64).to(BF16)
    options = {"scaling": 0.2, "mask": causal(3, 6), "sinks": torch.randn(4)}
    want = ragged_attention_reference(query, entries, tail, **options)
    monkeypatch.setattr(ragged, "tiles_of", None)
    assert_same(ragged_attention(query, entries, tail, **options), want, TOLERANCE[BF16])


def test_what_it_cannot_serve_is_left_to_other_operations() -> None:
    entries, tail = make(LENGTHS["uneven"], 64, 2)
    rows = torch.randn(2, 2, 1, 64).to(BF16)
    odd, odd_tail = make(LENGTHS["uneven"], 44, 2)
    assert cpu_partial(rows.float(), entries, tail, 1.0) is None
    assert cpu_partial(rows, make_entries(LENGTHS["uneven"], 64), tail, 1.0) is None
    assert cpu_partial(torch.randn(2, 2, 1, 44).to(BF16), odd, odd_tail, 1.0) is None
    assert cpu_partial(torch.randn(2, 2, 65, 64).to(BF16), entries, tail, 1.0) is None
    assert cpu_partial(torch.randn(1, 2, 1, 64).to(BF16), entries, tail, 1.0) is None
    assert cpu_partial(torch.randn(2, 2, 1, 32).to(BF16), entries, tail, 1.0) is None
    assert cpu_partial(rows, entries, make_tail(2, 2, 2, 64), 1.0) is None
    assert cpu_partial(rows, entries, make_tail(1, 2, 2, 64, dtype=BF16), 1.0) is None
    assert cpu_partial(rows.clone().requires_grad_(), entries, tail, 1.0) is None


@pytest.fixture
def fresh_kernel() -> Iterator[None]:
    build.kernels.cache_clear()
    yield
    build.kernels.cache_clear()


@pytest.fixture
def chosen_anew() -> Iterator[None]:
    backend.chosen.cache_clear()
    yield
    backend.chosen.cache_clear()


@pytest.mark.usefixtures("fresh_kernel", "chosen_anew")
def test_without_a_compiler_it_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(backend.VARIABLE, raising=False)
    monkeypatch.setattr(build.shutil, "which", lambda _: None)
    entries, tail = make(LENGTHS["uneven"], 64, 2)
    query = torch.randn(2, 2, 1, 64).to(BF16)
    for _ in range(2):
        got = ragged_attention(query, entries, tail, scaling=0.1)
    assert_same(got, ragged_attention_reference(query, entries, tail, scaling=0.1), TOLERANCE[BF16])
    assert sum("no C++ compiler" in record.message for record in caplog.records) == 1
    assert backend.in_use("cpu") == "torch"


@built
@pytest.mark.usefixtures("chosen_anew")
@pytest.mark.parametrize(("name", "serves"), [("torch", False), ("native", True), ("auto", True)])
def test_the_backend_decides(name: str, serves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backend.VARIABLE, name)
    entries, tail = make(LENGTHS["uneven"], 64, 2)
    part = cpu_partial(torch.randn(2, 2, 1, 64).to(BF16), entries, tail, 1.0)
    assert (part is not None) == serves


@pytest.mark.usefixtures("fresh_kernel", "chosen_anew")
def test_asked_for_and_not_to_be_built_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backend.VARIABLE, "native")
    with pytest.raises(ConfigurationError, match="needs a CPU; tensors are on 'cuda'"):
        backend.chosen("cuda")
    monkeypatch.setattr(build.shutil, "which", lambda _: None)
    with pytest.raises(ConfigurationError, match="MADAKV_BACKEND=native: it cannot be built here"):
        backend.chosen("cpu")
