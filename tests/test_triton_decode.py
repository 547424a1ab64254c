"""Triton's decode kernels against the plain-loop reference: on a GPU where there is one, else in the interpreter."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    # Read when triton is imported, and again where kernels are defined.
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton")

from madakv.attention import ragged_attention_reference  # noqa: E402
from madakv.attention.triton import DecodeSchedule, Tuning, ragged_decode  # noqa: E402
from madakv.cache import RaggedEntries, Tail  # noqa: E402
from tests.test_attention import make_entries  # noqa: E402
from tests.tolerance import TOLERANCE, assert_same  # noqa: E402

LENGTHS = {
    "even": [[7, 7], [7, 7]],
    "uneven": [[1, 63], [17, 5]],
    "some empty": [[0, 9], [131, 0]],
    "all empty": [[0, 0], [0, 0]],
    "hundred to one": [[600, 6], [64, 65]],
}
SHAPES = [
    (1, 64, 64),
    (16, 64, 64),
    (7, 128, 128),
    (5, 80, 80),
    (3, 96, 64),
    (2, 192, 128),
    (4, 256, 256),
    (2, 60, 40),
]


def poisoned(values: Tensor) -> Tensor:
    """The same with NaN before and behind it in memory."""
    around = torch.full((len(values) + 64, values.shape[1]), float("nan"), dtype=values.dtype, device=DEVICE)
    around[32:-32] = values
    return around[32:-32]


@dataclass
class Decoder:
    """Decode steps of random tokens, each compared with the reference, whose tail is an ordinary one.

    Tail memory that is not filled, and all that lies around the prompt's entries, is NaN.
    """

    lengths: list[list[int]]
    G: int = 2
    Dk: int = 64
    Dv: int = 64
    dtype: torch.dtype = torch.float32
    stored: torch.dtype | None = None
    capacity: int = 5
    filled: int = 0
    programs: int = 16
    tuning: Tuning | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.B, self.H = len(self.lengths), len(self.lengths[0])
        stored = self.stored or self.dtype
        self.entries = make_entries(self.lengths, self.Dk, Dv=self.Dv, dtype=stored)
        self.on_device = self.entries.to(DEVICE).replaced(poisoned(self.entries.keys), poisoned(self.entries.values))
        self.schedule = DecodeSchedule.of(self.entries.lengths, DEVICE, programs=self.programs)
        self.tail = Tail()
        self.tail_keys = self._empty(self.Dk, stored)
        self.tail_values = self._empty(self.Dv, stored)
        self.tail_length = torch.tensor([self.filled], device=DEVICE)
        if self.filled:
            keys = torch.randn(self.B, self.H, self.filled, self.Dk).to(stored)
            values = torch.randn(self.B, self.H, self.filled, self.Dv).to(stored)
            self.tail.append(keys, values, 10)
            self.tail_keys[:, :, : self.filled], self.tail_values[:, :, : self.filled] = keys, values

    def _empty(self, D: int, dtype: torch.dtype) -> Tensor:
        # A row more, so that what is written behind the tail shows, and does not hurt.
        return torch.full((self.B + 1, self.H, self.capacity, D), float("nan"), dtype=dtype, device=DEVICE)[:-1]

    def new(self, heads: int, D: int) -> Tensor:
        return torch.randn(self.B, heads, 1, D).to(self.dtype)

    def run(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        """One step on the device; the caller appends to the reference's tail."""
        moved = {k: v.to(DEVICE) if isinstance(v, Tensor) else v for k, v in {**self.options, **options}.items()}
        memory = self.on_device, self.tail_keys, self.tail_values, self.tail_length
        new = query.to(DEVICE), key.to(DEVICE), value.to(DEVICE)
        out = ragged_decode(*new, *memory, self.schedule, tuning=self.tuning, **moved)
        self.tail_length += 1
        return out.cpu()

    def step(self, mask: Tensor | None = None) -> None:
        """One step, compared in what it returns and what it leaves in memory."""
        query = self.new(self.H * self.G, self.Dk)
        key, value = self.new(self.H, self.Dk), self.new(self.H, self.Dv)
        got = self.run(query, key, value, scaling=self.Dk**-0.5, mask=mask)
        self.tail.append(key, value, 10)
        n = self.tail.length
        if mask is not None:
            mask = mask[..., :n]
        want = ragged_attention_reference(
            query, self.entries, self.tail, scaling=self.Dk**-0.5, mask=mask, **self.options
        )
        assert got.dtype == self.dtype
        assert_same(got, want, TOLERANCE[self.dtype])
        for ours, theirs in ((self.tail_keys, self.tail.keys), (self.tail_values, self.tail.values)):
            assert torch.equal(ours[:, :, :n].cpu(), theirs)
            assert ours[:, :, n:].isnan().all()


@pytest.mark.parametrize("name", LENGTHS)
def test_matches_at_every_spread_of_lengths(name: str) -> None:
    decoder = Decoder(LENGTHS[name], programs=2)
    for _ in range(2):
        decoder.step()


@pytest.mark.parametrize(("G", "Dk", "Dv"), SHAPES)
def test_matches_at_every_shape(G: int, Dk: int, Dv: int) -> None:
    Decoder([[3, 0], [70, 21]], G, Dk, Dv, filled=2).step()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("D", [64, 80, 128])
def test_matches_in_every_dtype(dtype: torch.dtype, D: int) -> None:
    decoder = Decoder(LENGTHS["uneven"], 3, D, D, dtype=dtype)
    decoder.step()
    decoder.step()


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_entries_of_another_dtype_than_the_query(stored: torch.dtype) -> None:
    """Under autocast keys can be stored in fp32 and values, like later queries, in bf16."""
    decoder = Decoder(LENGTHS["uneven"], dtype=torch.bfloat16, stored=stored, filled=2)
    decoder.step()


def test_tail_grows_over_chunks_without_a_new_launch() -> None:
    """The length is the device's alone: grids and arguments are the same at every step."""
    decoder = Decoder([[70, 3]], G=1, capacity=200, filled=62)
    assert decoder.schedule.tail_splits(200) > 1
    seen = [decoder.schedule.parts(200)]
    for _ in range(5):
        decoder.step()
        seen.append(decoder.schedule.parts(200))
    assert len(set(seen)) == 1
    decoder = Decoder([[70, 3]], G=1, capacity=200, filled=199)
    decoder.step()


def test_length_as_int32() -> None:
    decoder = Decoder([[5, 3]], filled=3)
    decoder.tail_length = decoder.tail_length.int()
    decoder.step()


@pytest.mark.parametrize("kind", ["bool", "additive", "half"])
def test_masks_over_the_tail(kind: str) -> None:
    """Of three rows, one sees all, one some, and of the third's tail nothing but the new token, or not even that."""
    visible = torch.ones(3, 1, 1, 200, dtype=torch.bool)
    visible[1, ..., 3:150:2] = False
    visible[2, ..., :131] = False
    dtype = {"half": torch.bfloat16}.get(kind, torch.float32)
    additive = torch.randn(visible.shape).masked_fill(~visible, float("-inf")).to(dtype)
    mask = visible if kind == "bool" else additive
    decoder = Decoder([[9, 70], [0, 3], [5, 1]], capacity=200, filled=130, tuning=Tuning(32))
    assert decoder.schedule.tail_splits(200) > 1
    decoder.step(mask)
    decoder.step(mask)
    decoder = Decoder([[9, 70]], capacity=200, filled=130)
    decoder.step(mask[1:2])
    shared = Decoder([[9, 7], [3, 5]], filled=4)
    shared.step(mask[1:2, ..., :5])


@pytest.mark.parametrize("filled", [0, 3])
@pytest.mark.parametrize("additive", [False, True])
def test_who_sees_nothing_gets_zero(additive: bool, filled: int) -> None:
    decoder = Decoder([[0, 0], [0, 3]], filled=filled)
    mask = torch.zeros(2, 1, 1, 5, dtype=torch.bool)
    if additive:
        mask = torch.full(mask.shape, float("-inf"))
    query, key, value = decoder.new(4, 64), decoder.new(2, 64), decoder.new(2, 64)
    got = decoder.run(query, key, value, scaling=0.1, mask=mask)
    assert torch.isfinite(got).all()
    assert (got[0] == 0).all()
    assert (got[1, :2] == 0).all()
    assert (got[1, 2:] != 0).any()


@pytest.mark.parametrize("name", ["uneven", "all empty"])
def test_softcap_and_sinks(name: str) -> None:
    sinks = 2 + torch.randn(2 * 3)
    decoder = Decoder(LENGTHS[name], G=3, options={"softcap": 0.7, "sinks": sinks}, filled=2)
    decoder.step()
    # Logits of 64 random products are of size 1, so that both must matter.
    decoder.options = {"sinks": sinks.bfloat16()}
    decoder.step()
    decoder.options = {"softcap": 0.7}
    decoder.step()


def test_a_sink_beside_nothing_visible() -> None:
    decoder = Decoder([[0, 3]], options={"sinks": torch.tensor([0.5, float("-inf"), 0.5, float("-inf")])})
    mask = torch.zeros(1, 1, 1, 5, dtype=torch.bool)
    got = decoder.run(decoder.new(4, 64), decoder.new(2, 64), decoder.new(2, 64), scaling=0.1, mask=mask)
    assert torch.isfinite(got).all()
    assert (got[0, :2] == 0).all()


def test_logits_far_from_zero() -> None:
    decoder = Decoder([[130, 3]], filled=3, programs=1)
    query, key, value = 20 * decoder.new(4, 64), decoder.new(2, 64), decoder.new(2, 64)
    got = decoder.run(query, key, value, scaling=1.0)
    decoder.tail.append(key, value, 10)
    assert_same(got, ragged_attention_reference(query, decoder.entries, decoder.tail, scaling=1.0))


def test_queries_and_keys_of_any_layout() -> None:
    decoder = Decoder([[5, 66], [9, 3]])
    for layout in (lambda x: x.transpose(1, 3).contiguous().transpose(1, 3), lambda x: x.mT.contiguous().mT):
        query, key, value = (layout(decoder.new(heads, 64)) for heads in (4, 2, 2))
        got = decoder.run(query, key, value, scaling=0.1)
        decoder.tail.append(key, value, 10)
        assert_same(got, ragged_attention_reference(query, decoder.entries, decoder.tail, scaling=0.1))
    wide = torch.randn(2, 1, 8, 96).transpose(1, 2)[..., :64]
    got = decoder.run(wide[:, :4], wide[:, 4:6], wide[:, 6:], scaling=0.1)
    decoder.tail.append(wide[:, 4:6], wide[:, 6:], 10)
    assert_same(got, ragged_attention_reference(wide[:, :4], decoder.entries, decoder.tail, scaling=0.1))


def test_a_full_tail_is_not_written_past() -> None:
    decoder = Decoder([[5, 6]], capacity=3, filled=3)
    memory = [x._base for x in (decoder.tail_keys, decoder.tail_values)]
    before = [x.clone() for x in memory]
    query, key, value = decoder.new(4, 64), decoder.new(2, 64), decoder.new(2, 64)
    decoder.run(query, key, value, scaling=0.1)
    for now, then in zip(memory, before, strict=True):
        assert torch.equal(now.nan_to_num(7.0), then.nan_to_num(7.0))


def test_one_workspace_serves_all_layers() -> None:
    sizes = []
    decoders = [Decoder([[5, 66], [9, 3]], G=3), Decoder([[200, 1]], G=1)]
    for decoder in decoders:
        sizes.append(decoder.schedule.workspace_size(decoder.capacity, decoder.G, decoder.Dv))
    workspace = torch.full((max(sizes),), float("nan"), device=DEVICE)
    for decoder in decoders:
        decoder.options = {"workspace": workspace}
        query, key, value = decoder.new(2 * decoder.G, 64), decoder.new(2, 64), decoder.new(2, 64)
        got = decoder.run(query, key, value, scaling=0.1)
        decoder.tail.append(key, value, 10)
        assert_same(got, ragged_attention_reference(query, decoder.entries, decoder.tail, scaling=0.1))
    with pytest.raises(ValueError, match="workspace"):
        decoders[0].run(
            decoders[0].new(6, 64),
            decoders[0].new(2, 64),
            decoders[0].new(2, 64),
            scaling=1.0,
            workspace=workspace[:3],
        )


@pytest.mark.parametrize("tuning", [Tuning(16, 2, 1), Tuning(64, 8, 4)])
def test_launch_parameters_change_nothing(tuning: Tuning) -> None:
    decoder = Decoder([[5, 66], [9, 3]], tuning=tuning)
    query, key, value = decoder.new(4, 64), decoder.new(2, 64), decoder.new(2, 64)
    got = decoder.run(query, key, value, scaling=0.1)
    decoder.tail.append(key, value, 10)
    assert_same(got, ragged_attention_reference(query, decoder.entries, decoder.tail, scaling=0.1))


def test_entries_beyond_what_int32_can_address() -> None:
    """Memory that is never touched costs nothing, so only the last entries of a huge buffer are made."""
    D, last = 128, 20
    T = (1 << 31) // D + last
    torch.utils.deterministic.fill_uninitialized_memory = False
    keys, values = (torch.empty(T, D, dtype=torch.float16, device=DEVICE) for _ in range(2))
    keys[-last:], values[-last:] = torch.randn(2, last, D).half().to(DEVICE)
    keys[:1] = values[:1] = 0.0
    whole = RaggedEntries(keys, values, torch.tensor([[T - last, last]]))
    schedule = DecodeSchedule(
        chunks=torch.tensor([[1, T - last, last, 1], [0, 0, 1, 0]], dtype=torch.int32, device=DEVICE),
        first=torch.tensor([0, 1, 2], dtype=torch.int32, device=DEVICE),
        chunk=64,
        programs=2,
    )
    few = RaggedEntries(keys[-last:].cpu(), values[-last:].cpu(), torch.tensor([[last]]))
    query, key, value = (torch.randn(1, 2, 1, D).half() for _ in range(3))
    memory = [torch.empty(1, 2, 3, D, dtype=torch.float16, device=DEVICE) for _ in range(2)]
    length = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    new = (x.to(DEVICE) for x in (query, key, value))
    got = ragged_decode(*new, whole, *memory, length, schedule, scaling=0.1)
    tail = Tail()
    tail.append(key[:, 1:], value[:, 1:], 10)
    want = ragged_attention_reference(query[:, 1:], few, tail, scaling=0.1)
    assert_same(got[:, 1:].cpu(), want, TOLERANCE[torch.float16])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.zeros(1, 4, 2, 64)}, "one query per row"),
        ({"query": torch.zeros(1, 3, 1, 64)}, "whole groups"),
        ({"query": torch.zeros(1, 4, 1, 64, dtype=torch.float64)}, "no kernel for queries of torch.float64"),
        ({"key": torch.zeros(1, 2, 1, 32)}, "key is"),
        ({"mask": torch.zeros(1, 4, 1, 5)}, "the mask has to be"),
    ],
)
def test_refusals(change: dict[str, Tensor], message: str) -> None:
    decoder = Decoder([[5, 6]])
    arguments = {"query": decoder.new(4, 64), "key": decoder.new(2, 64), "value": decoder.new(2, 64), **change}
    with pytest.raises(ValueError, match=message):
        decoder.run(**arguments, scaling=1.0)


def test_tails_and_schedules_of_other_layers_are_refused() -> None:
    decoder = Decoder([[5, 6]])
    new = decoder.new(4, 64), decoder.new(2, 64), decoder.new(2, 64)
    decoder.tail_keys = decoder.tail_keys.mT.contiguous().mT
    with pytest.raises(ValueError, match="contiguous"):
        decoder.run(*new, scaling=1.0)
    decoder = Decoder([[5, 6]])
    decoder.schedule = DecodeSchedule.of((5, 6, 7), DEVICE, programs=2)
    with pytest.raises(ValueError, match=r"schedule\.first"):
        decoder.run(*new, scaling=1.0)
    decoder = Decoder([[5, 6]])
    decoder.tail_length = torch.zeros(2, dtype=torch.int64, device=DEVICE)
    with pytest.raises(ValueError, match="tail_length"):
        decoder.run(*new, scaling=1.0)


@pytest.mark.parametrize("lengths", [(0, 0), (1,), (7, 0, 9000, 64, 65, 1), (5000,) * 8, (128, 129, 100_000, 1000)])
@pytest.mark.parametrize("programs", [1, 16, 1000])
def test_chunks_cover_every_entry_once_and_are_about_equal(lengths: tuple[int, ...], programs: int) -> None:
    schedule = DecodeSchedule.of(lengths, "cpu", programs=programs)
    spans: list[list[tuple[int, int]]] = [[] for _ in lengths]
    by_part = sorted(schedule.chunks.tolist(), key=lambda row: row[3])
    assert [row[3] for row in by_part] == list(range(len(by_part)))
    for owner, start, count, part in by_part:
        assert 0 < count <= schedule.chunk
        assert count == lengths[owner] or count > schedule.chunk // 2 - 1
        assert schedule.first[owner] <= part < schedule.first[owner + 1]
        spans[owner].append((start, count))
    for begin, length, span in zip(itertools.accumulate(lengths, initial=0), lengths, spans, strict=False):
        ends = [begin, *(start + count for start, count in span)]
        assert ends[:-1] == [start for start, _ in span]
        assert ends[-1] == begin + length
    sizes = schedule.chunks[:, 2].tolist()
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) <= programs + len(lengths)


def test_chunks_of_the_tail_hold_its_capacity() -> None:
    schedule = DecodeSchedule.of((100, 3), "cpu", programs=4)
    for capacity in (1, 63, 64, 65, 1000, 100_000):
        chunk, splits = schedule.tail_chunk(capacity), schedule.tail_splits(capacity)
        assert (splits - 1) * chunk < capacity <= splits * chunk
        assert splits * 2 <= 4 + 2
        assert schedule.parts(capacity) == len(schedule.chunks) + 2 * splits
    moved = schedule.to("cpu")
    assert torch.equal(moved.chunks, schedule.chunks)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_very_long_and_very_short_heads(dtype: torch.dtype) -> None:
    Decoder([[100_003, 1001], [0, 10_007]], G=2, dtype=dtype, filled=3).step()


@pytest.mark.skipif(DEVICE == "cpu", reason="CUDA graphs need a GPU")
def test_a_captured_step_follows_the_growing_tail() -> None:
    decoder = Decoder([[300, 5], [70, 1]], G=7, dtype=torch.bfloat16, capacity=100, filled=60)
    query, key, value = (torch.zeros(2, heads, 1, 64, dtype=torch.bfloat16, device=DEVICE) for heads in (14, 2, 2))
    memory = decoder.on_device, decoder.tail_keys, decoder.tail_values, decoder.tail_length
    # Compiles; what it appends is overwritten by the first replay, as the length stays.
    ragged_decode(query, key, value, *memory, decoder.schedule, scaling=0.125)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ragged_decode(query, key, value, *memory, decoder.schedule, scaling=0.125)
        decoder.tail_length += 1
    for _ in range(10):
        new = decoder.new(14, 64), decoder.new(2, 64), decoder.new(2, 64)
        for static, fresh in zip((query, key, value), new, strict=True):
            static.copy_(fresh)
        graph.replay()
        decoder.tail.append(new[1], new[2], 10)
        want = ragged_attention_reference(new[0], decoder.entries, decoder.tail, scaling=0.125)
        assert_same(out.cpu(), want, TOLERANCE[torch.bfloat16])
    assert decoder.tail_length.item() == 70
