"""The benchmark: formulas against numbers computed by hand, and every command end to end on a tiny shape."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache
from typer.testing import CliRunner

from madakv import MadaKV, Modality, linears
from madakv.attention.partial import Partial
from madakv.attention.ragged import ragged_attention, ragged_partial
from madakv.backend import in_use
from madakv.bench import check, kernel, machine, shapes
from madakv.bench.contenders import Evicted, Stock, baseline, live_bytes
from madakv.bench.live import peak_memory
from madakv.bench.prefill import growth
from madakv.bench.prompt import layout, row_lengths
from madakv.bench.results import ResultFile, Row
from madakv.bench.roofline import Cost, Rates, Work
from madakv.bench.shapes import SHAPES, Shape, cost_of, random_model
from madakv.bench.subject import Subject, random_subject
from madakv.bench.synthetic import synthetic_views
from madakv.bench.timing import speedup, take_turns
from madakv.cli.app import app
from madakv.errors import ConfigurationError
from madakv.methods import from_text
from madakv.native import build
from tests import tolerance

CPU = torch.device("cpu")
TINY = Shape("qwen2", 64, 96, 3, 4, 2, 50, image_tokens=16, head_dim=16)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "tiny", TINY)
    monkeypatch.setitem(machine.READ_BYTES, "cpu", 1 << 20)
    monkeypatch.setitem(machine.MATRIX_SIDES, "cpu", (64, 64, 64))
    monkeypatch.setitem(kernel.WORKING_SET, "cpu", 1 << 16)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench", *arguments])


def rows_of(*arguments: str) -> list[dict[str, Any]]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    rows: list[dict[str, Any]] = json.loads(result.stdout)["rows"]
    return rows


def test_costs_of_llava_by_hand() -> None:
    """One layer: four 4096 x 4096 projections, three of 4096 x 11008, two norms."""
    cost = SHAPES["llava-1.5-7b"].cost(2, with_head=False, itemsize=2)
    assert cost.body == 2 * (67_108_864 + 135_266_304 + 8_192) + 4_096
    assert cost.entry_bytes == 512
    assert cost.entries(3300) * cost.entry_bytes == 2 * 54_067_200
    work = cost.decode(kv_bytes=2 * 10_813_440, batch=1)
    assert work.bytes == 2 * 404_770_816 + 21_626_880
    # 2 per weight; 42,240 kept entries (660 tokens, 64 heads), each 2 * 128 for its logit and 2 * 128 for its value.
    assert work.flops == 2 * 404_770_816 + 512 * 42_240
    assert cost.decode(kv_bytes=0, batch=3).flops == 6 * 404_770_816


def test_costs_of_qwen_by_hand() -> None:
    """Seven query heads share a KV head, and projections of queries, keys and values have biases."""
    cost = SHAPES["qwen2.5-vl-7b"].cost(1, with_head=True, itemsize=2)
    attention = 3584 * 3584 * 2 + 3584 * 512 * 2
    assert cost.body == attention + 3584 + 2 * 512 + 3 * 3584 * 18944 + 2 * 3584 + 3584
    assert cost.head == 152_064 * 3584
    assert cost.entries(1) == 4
    assert cost.decode(kv_bytes=512 * 10, batch=1).flops == 2 * (cost.body + cost.head) + 10 * 7 * 512


def test_cost_of_a_prefill_by_hand() -> None:
    cost = Cost(layers=2, query_heads=4, kv_heads=2, head_dim=8, body=1000, head=100, itemsize=4)
    work = cost.prefill((3, 2))
    assert work.bytes == 4400
    # 6 + 3 pairs of tokens in 2 layers and 4 query heads, each 2 * 8 for its logit and 2 * 8 for its value.
    assert work.flops == 2 * 1000 * 5 + 2 * 100 * 2 + 9 * 2 * 4 * 32


def test_the_floor_is_the_slower_of_reading_and_computing() -> None:
    rates = Rates(bandwidth=10.0, matrix=100.0)
    assert Work(bytes=50, flops=100).floor(rates) == 5
    assert Work(bytes=50, flops=1000).floor(rates) == 10


@pytest.mark.parametrize("name", [*SHAPES, "tiny"])
@pytest.mark.parametrize("whole", [True, False])
def test_costs_are_those_of_transformers_models(name: str, whole: bool) -> None:
    chosen = SHAPES[name]
    layers = chosen.layers if whole else 2
    model = random_model(chosen, layers, dtype=torch.bfloat16, device=torch.device("meta"))
    assert cost_of(model) == chosen.cost(layers, with_head=whole, itemsize=2)


def test_shapes_have_the_published_sizes() -> None:
    """Vicuna-7B has 6,738,415,616 parameters, Qwen2.5-7B 7,615,616,512; LLaVA and Qwen-VL pad the vocabulary."""
    chosen = (SHAPES["llava-1.5-7b"], SHAPES["qwen2.5-vl-7b"])
    llava, qwen = (one.cost(one.layers, with_head=True, itemsize=2) for one in chosen)
    assert llava.body + 2 * llava.head == 6_738_415_616 + 2 * 64 * 4096
    assert qwen.body + 2 * qwen.head == 7_615_616_512


def test_contenders_take_turns() -> None:
    order: list[str] = []

    def work(name: str, time: float) -> Any:
        return lambda: order.append(name) or time

    times = take_turns([work("a", 1.0), work("b", 2.0), work("c", 3.0)], 3)
    assert "".join(order) == "abcbcacab"
    assert times == [[1.0] * 3, [2.0] * 3, [3.0] * 3]


def test_a_speedup_is_the_median_of_the_rounds_own_ratios() -> None:
    """The second round was disturbed, for both alike, the third for one: neither moves the ratio."""
    assert speedup([2.0, 20.0, 2.0], [1.0, 10.0, 5.0]) == 2.0
    assert speedup([2.0, 3.0], [1.0, 1.0]) == 2.5


def test_growth_is_the_power_of_the_context() -> None:
    shorter, longer = (Row({"context": n}, "x", {"ms": ms}) for n, ms in ((1000, 3.0), (2000, 12.0)))
    assert growth(shorter, longer) == pytest.approx(2.0)
    assert growth(shorter, Row({"context": 2000}, "x", refused="wrong")) is None


def test_prompts_have_pictures_between_text_and_end_in_a_question() -> None:
    modality = layout(3300, 576)
    images = modality == Modality.IMAGE
    assert images.sum() == 5 * 576
    starts = (images[1:] & ~images[:-1]).sum()
    assert starts == 5
    assert not images[:32].any()
    assert not images[-48:].any()
    for tokens in (1, 2, 9, 40):
        assert layout(tokens, 576).shape == (tokens,)


def test_rows_of_a_batch_get_shorter() -> None:
    assert row_lengths(100, 1, 0.5) == (100,)
    assert row_lengths(100, 3, 0.5) == (100, 75, 50)


def test_head_lengths_keep_the_bytes() -> None:
    for spread in (1, 3, 10):
        lengths = kernel.head_lengths(32, 660, spread)
        assert sum(lengths) == 32 * 660
        assert lengths[-1] / lengths[0] == pytest.approx(spread, rel=0.05)
    assert sum(kernel.head_lengths(1, 7, 10)) == 7


def test_peak_memory_counts_what_is_alive_together() -> None:
    before = torch.zeros(1000, dtype=torch.uint8)
    with peak_memory(CPU, [before]) as peak:
        kept = torch.zeros(300, dtype=torch.uint8)
        torch.zeros(500, dtype=torch.uint8)
        view = before[10:]
        later = kept + 1
        del kept
        again = torch.zeros(400, dtype=torch.uint8)
    assert peak.bytes == 800
    assert len(view) + len(later) + len(again) == 990 + 300 + 400


def test_peak_memory_tells_the_caches_part() -> None:
    """From when it is handed them: keys and values, what it copies them to, and nothing before or after."""
    cache = DynamicCache()
    before = torch.zeros(1, 1, 10, 5)
    with peak_memory(CPU, [before]) as peak:
        torch.zeros(5000)
        keys, values = before + 1, before + 2
        cache.update(keys, values, 0)
        del keys, values
        torch.zeros(5000)
        cache.update(before + 3, before + 4, 0)
    # Twice what it held (400), what is added (400), and one of the two that it makes of both (400), while the other
    # still waits for its turn; then the second (400), where the first old one (200) is free.
    assert peak.cache_bytes == 400 + 400 + 400 + 400 - 200
    assert peak.bytes > 20_000


def test_live_bytes_of_a_full_cache() -> None:
    cache = DynamicCache()
    keys = torch.zeros(2, 3, 5, 8)
    cache.update(keys, keys + 1, 0)
    assert live_bytes(cache) == 2 * 2 * 3 * 5 * 8 * 4


def test_tolerances_are_those_of_the_tests() -> None:
    assert check.TOLERANCE == tolerance.TOLERANCE
    assert check.refusal(float("nan"), 1.0, "x") is not None
    assert check.refusal(1e-3, 1e-2, "x") is None


@pytest.mark.parametrize("fill", ["prefill", "synthetic"])
def test_decode(fill: str, tmp_path: Path) -> None:
    rows = rows_of(
        *("decode", "--shape", "tiny", "--layers", "2", "--context", "90", "--batch", "1,2", "--budgets", "1.0,0.2"),
        *("--dtype", "fp32", "--tokens", "2", "--repeats", "3", "--fill", fill, "--out", str(tmp_path)),
        *("--methods", "madakv:safeguard=0.2"),
    )
    uneven = [f"madakv:safeguard=0.2 {budget}" for budget in ("100%", "20%")]
    names = ["DynamicCache", "StaticCache", "QuantizedCache(fp8)", *uneven]
    assert [row["contender"] for row in rows] == names * 2
    for row in rows:
        assert row["refused"] is None
        assert row["details"]["filled"] == fill
        figures = row["figures"]
        assert figures["over_floor"] == pytest.approx(figures["ms"] / figures["floor_ms"])
        assert figures["ms_least"] <= figures["ms"] <= figures["ms_most"]
        assert figures["tokens_per_s"] == pytest.approx(row["case"]["batch"] * 1000 / figures["ms"])
    full, evicted = rows[0]["figures"], rows[4]["figures"]
    # 8 tokens were read after the prompt: 2 to check and to warm up, 3 rounds of 2.
    assert full["kv_bytes"] == (90 + 8) * 2 * 2 * 2 * 16 * 4
    assert evicted["kept_share"] == pytest.approx(0.2)
    assert evicted["floor_ms"] < full["floor_ms"]
    assert evicted["longest_head"] > 1.05, "with even heads this benchmark would say nothing about uneven ones"
    written = json.loads((tmp_path / "decode.json").read_text())
    assert written["rows"] == rows
    assert written["rates"]["bandwidth"] > 0
    assert {"git", "torch", "transformers", "machine", "threads", "rates_after", "missing"} <= set(written)
    assert written["backend"] == in_use("cpu")
    again = run("decode", "--shape", "tiny", "--out", str(tmp_path))
    assert again.exit_code == 2
    assert "holds results already" in again.stderr


@pytest.mark.parametrize("command", ["decode", "kernel"])
def test_the_floor_is_that_of_reads_which_took_their_turn(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = iter([3e-6, 1e-6, 2e-6] * 9)
    monkeypatch.setattr(f"madakv.bench.{command}.reading", lambda _: lambda: next(reads))
    rows = rows_of(
        *(command, "--shape", "tiny", "--context", "40", "--budgets", "1.0", "--dtype", "fp32", "--repeats", "3"),
        *(() if command == "kernel" else ("--no-rivals", "--tokens", "1")),
    )
    cost = SHAPES["tiny"].cost(3, with_head=True, itemsize=4)
    for row in rows:
        figures = row["figures"]
        assert figures["bandwidth"] == pytest.approx(5e5)
        if command == "kernel":
            assert figures["floor_ms"] == pytest.approx(figures["bytes_per_s"] * figures["ms"] / 5e5)
            assert figures["bandwidth_share"] == pytest.approx(figures["bytes_per_s"] / 5e5)
        else:
            entries = cost.entries(40) + cost.entries(2)
            weights = (cost.body + cost.head) * 4
            assert figures["floor_ms"] == pytest.approx((weights + entries * cost.entry_bytes) / 5e2, rel=0.02)


def test_decode_of_a_real_model() -> None:
    rows = rows_of(
        *(
            "decode",
            "--model",
            "small-llava",
            "--context",
            "200",
            "--batch",
            "2",
            "--budgets",
            "0.2",
            "--dtype",
            "fp32",
        ),
        *("--tokens", "1", "--repeats", "1", "--no-rivals"),
    )
    assert [row["contender"] for row in rows] == ["DynamicCache", "madakv 20%"]
    assert rows[1]["figures"]["kept_share"] == pytest.approx(0.2, abs=0.01)
    assert all(row["figures"]["ms"] > 0 for row in rows)


def test_prefill() -> None:
    rows = rows_of(
        *(
            "prefill",
            "--shape",
            "tiny",
            "--context",
            "60,120",
            "--budgets",
            "0.2",
            "--dtype",
            "fp32",
            "--repeats",
            "2",
        )
    )
    assert [(row["case"]["context"], row["contender"]) for row in rows] == [
        (60, "DynamicCache"),
        (60, "madakv 20%"),
        (120, "DynamicCache"),
        (120, "madakv 20%"),
    ]
    assert rows[0]["figures"]["added"] == 0
    assert "growth" not in rows[0]["figures"]
    assert "growth" in rows[3]["figures"]
    assert all(row["figures"]["ms"] > 0 for row in rows)
    assert "evict_ms" not in rows[0]["figures"]
    for full, evicted in ((rows[0]["figures"], rows[1]["figures"]), (rows[2]["figures"], rows[3]["figures"])):
        assert evicted["evict_share"] == pytest.approx(evicted["evict_ms"] / full["ms"])
        assert evicted["evict_floor_share"] == pytest.approx(evicted["evict_ms"] / full["floor_ms"])


def test_eviction_alone() -> None:
    """No pass of the model, so that long prompts can be measured where reading them would take minutes."""
    case = ("--shape", "tiny", "--context", "60,120", "--budgets", "0.2,0.5", "--dtype", "fp32", "--repeats", "2")
    rows = rows_of("prefill", *case, "--fill", "synthetic")
    assert [row["contender"] for row in rows] == ["madakv 20%", "madakv 50%"] * 2
    for row in rows:
        assert "ms" not in row["figures"]
        assert row["figures"]["evict_ms"] > 0
    assert all(("evict_growth" in row["figures"]) == (row["case"]["context"] == 120) for row in rows)


def test_memory() -> None:
    rows = rows_of(
        *(
            "memory",
            "--shape",
            "tiny",
            "--context",
            "80",
            "--batch",
            "1,2",
            "--budgets",
            "1.0,0.1",
            "--methods",
            "madakv,streaming_llm",
            "--dtype",
            "fp32",
        ),
        *("--tokens", "4", "--shortest", "0.5", "--no-rivals"),
    )
    entry = 3 * 2 * 2 * 16 * 4
    by_name = {(row["case"]["batch"], row["contender"]): row["figures"] for row in rows}
    assert by_name[1, "DynamicCache"]["kv_bytes"] == 80 * entry
    assert by_name[1, "DynamicCache"]["kv_bytes_later"] == 84 * entry
    assert by_name[1, "madakv 10%"]["kv_bytes"] == by_name[1, "madakv 10%"]["floor_bytes"] == 8 * entry
    padded, packed = by_name[2, "DynamicCache"], by_name[2, "madakv 100%"]
    assert padded["kv_bytes"] == 2 * 80 * entry
    assert packed["kv_bytes"] == (80 + 40) * entry
    assert padded["over_floor"] == pytest.approx(160 / 120)
    for batch in (1, 2):
        # Scores take memory for a moment, and most of what a prompt as short as this one takes.
        full, evicted = by_name[batch, "DynamicCache"], by_name[batch, "streaming_llm 10%"]
        assert evicted["kv_bytes_later"] > evicted["kv_bytes"]
        assert full["peak"] > full["kv_bytes"]
        assert full["peak"] - evicted["peak"] >= full["kv_bytes"] / 3, "two of three layers are evicted at the peak"
        # All but the layer that it takes in: the full cache copies keys and values, ours holds what it was handed.
        assert full["work_layers"] == pytest.approx(1.0)
        assert evicted["work_layers"] > 0.9
        assert evicted["extra_layers"] < evicted["work_layers"]
        assert "over_budget" not in full
        assert evicted["over_budget"] == pytest.approx(1.0)
        assert full["slack"] == pytest.approx(0.0 if batch == 1 else 2 * 84 / (84 + 44) - 1, abs=0.03)
        assert evicted["slack"] == pytest.approx(
            (evicted["kv_bytes"] + 2 * batch * entry) / (evicted["kv_bytes"] + batch * entry) - 1
        )


def test_kernel() -> None:
    rows = rows_of("kernel", "--shape", "tiny", "--context", "100", "--budgets", "0.5", "--repeats", "2")
    assert [row["case"]["spread"] for row in rows[::3]] == ["1:1", "3:1", "10:1"]
    assert [row["contender"] for row in rows[:3]] == [kernel.EVEN, "sdpa, padded heads", "madakv"]
    for row in rows:
        figures = row["figures"]
        # (50 + 16) entries in each of 2 heads, a key and a value of 16 bf16 numbers each.
        assert figures["bytes_per_s"] * figures["ms"] / 1e3 == pytest.approx(66 * 2 * 2 * 16 * 2)


def test_the_view_for_people() -> None:
    result = run(
        "decode", "--shape", "tiny", "--context", "40", "--tokens", "1", "--repeats", "1", "--budgets", "0.5"
    )
    assert result.exit_code == 0, result.output
    for word in ("DynamicCache", "madakv 50%", "ms/token", "time/floor", "GB/s", "quanto"):
        assert word in result.stdout


def broken_partial(*arguments: Any, **options: Any) -> Partial:
    part = ragged_partial(*arguments, **options)
    return Partial(out=part.out * 1.02, lse=part.lse)


def test_a_wrong_backend_gets_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("madakv.attention.ragged.ragged_partial", broken_partial)
    for asks in ("step", "ragged"):
        # The CPU's kernel is left out, so that all goes to what is broken.
        monkeypatch.setattr(f"madakv.attention.{asks}.cpu_attention", lambda *_: None)
    case = ("--shape", "tiny", "--context", "40", "--repeats", "1", "--budgets", "0.5", "--json")
    for arguments in (("decode", *case, "--tokens", "1", "--no-rivals"), ("prefill", *case)):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "wrong result" in result.stderr
        full, evicted = json.loads(result.stdout)["rows"]
        assert full["refused"] is None
        assert full["figures"]["ms"] > 0
        assert "attention reference" in evicted["refused"]
        assert set(evicted["figures"]) == {"error"}
        assert evicted["figures"]["error"] == pytest.approx(0.02, rel=0.2)


def test_a_wrong_kernel_gets_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "madakv.bench.kernel.ragged_attention", lambda *a, **o: ragged_attention(*a, **o) * float("nan")
    )
    result = run("kernel", "--shape", "tiny", "--context", "40", "--repeats", "1", "--budgets", "0.5", "--json")
    assert result.exit_code == 2
    rows = json.loads(result.stdout)["rows"]
    assert all(("ms" in row["figures"]) == (row["contender"] != "madakv") for row in rows)


def test_further_kernels_are_compared_and_held_to_the_reference() -> None:
    def doubled(layer: kernel.Layer, scaling: float) -> torch.Tensor:
        return kernel.OPS["madakv"](layer, scaling) * 2

    rows = kernel.measure_kernel(
        SHAPES["tiny"].cost(1, with_head=False, itemsize=4),
        mean=20,
        spread=3,
        batch=1,
        repeats=1,
        device=CPU,
        dtype=torch.float32,
        rates=Rates(bandwidth=1e9, matrix=1e9),
        case={},
        ops={"again": kernel.OPS["madakv"], "wrong": doubled},
    )
    assert [row.contender for row in rows] == ["again", "wrong"]
    assert [row.refused is None for row in rows] == [True, False]


def tiny_subject() -> Subject:
    return random_subject("tiny", 2, dtype=torch.float32, device=CPU)


class _Forgetful(DynamicCache):
    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *rest: Any, **options: Any) -> Any:
        keys, values = super().update(key_states, value_states, *rest, **options)
        return (keys, values) if key_states.shape[2] > 1 else (keys, values.roll(1, 2))


def test_a_rival_that_differs_from_the_full_cache_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    forgetful = Stock("forgetful", lambda config, _: _Forgetful(config=config), exact=True)
    monkeypatch.setattr("madakv.bench.decode.contenders", lambda *a, **o: ([baseline(), forgetful], []))
    result = run("decode", "--shape", "tiny", "--context", "40", "--repeats", "1", "--tokens", "1", "--json")
    assert "DynamicCache's output" in json.loads(result.stdout)["rows"][1]["refused"]


def test_wrong_products_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = build.kernels()
    if kernels is None:
        pytest.skip("needs a C++ compiler")

    def short(x: int, weight: int, bias: int | None, R: int, N: int, K: int, *rest: int) -> None:
        kernels.linear(x, weight, bias, R, N, K - 32, *rest)

    def one_row(x: int, weight: int, bias: int | None, _R: int, *rest: int) -> None:
        kernels.linear(x, weight, bias, 1, *rest)

    options = [
        "--context",
        "40",
        "--repeats",
        "1",
        "--tokens",
        "1",
        "--budgets",
        "0.5",
        "--no-rivals",
        "--fast-linears",
        "--json",
    ]
    refused = []
    for products in (kernels.linear, short, one_row):
        monkeypatch.setattr(linears, "kernels", lambda p=products: kernels._replace(linear=p))
        result = run("decode", "--shape", "tiny", "--dtype", "bf16", "--batch", "2", *options)
        plain, fast = (json.loads(result.stdout)["rows"][row]["refused"] for row in (1, 3))
        assert plain is None
        refused.append(fast)
    assert refused[0] is None
    assert "products in fp64" in refused[1]
    assert refused[2] is not None


def test_ratios_are_to_caches_that_differ_in_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    if build.kernels() is None:
        pytest.skip("needs a C++ compiler")
    options = ["--context", "200", "--repeats", "3", "--tokens", "2", "--budgets", "0.2", "--fast-linears", "--json"]
    result = run("decode", "--shape", "tiny", "--dtype", "bf16", *options)
    rows = {row["contender"]: row["figures"] for row in json.loads(result.stdout)["rows"]}
    plain = ["DynamicCache", "StaticCache", "madakv 20%"]
    for end in ("", ", fast linears"):
        full, static, own = (rows[label + end] for label in plain)
        assert full["speedup"] == full["floor_speedup"] == static["speedup_static"] == 1.0
        assert own["floor_speedup"] == full["floor_ms"] / own["floor_ms"] > 1.0
        for name, base in (("speedup", full), ("speedup_static", static)):
            assert base["ms_least"] / own["ms_most"] <= own[name] <= base["ms_most"] / own["ms_least"]


def test_a_result_that_is_not_a_number_is_the_largest_error() -> None:
    assert check.largest([0.5, 0.1]) == 0.5
    assert math.isnan(check.largest([0.0, float("nan"), 0.1]))


def test_methods_that_draft_are_refused() -> None:
    for method in (MadaKV(draft=4), MadaKV(lookahead=2)):
        with pytest.raises(ConfigurationError, match="not measured here"):
            Evicted(method)


def test_what_was_done_survives(tmp_path: Path) -> None:
    results = ResultFile(tmp_path / "x" / "decode.json", {"seed": 3})
    results.add([Row({"context": 1}, "a", {"ms": 2.0})])
    written = json.loads((tmp_path / "x" / "decode.json").read_text())
    assert written["seed"] == 3
    assert written["rows"][0]["figures"] == {"ms": 2.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["decode"], "give either --shape or --model"),
        (["decode", "--shape", "llava-1.5-7"], "did you mean 'llava-1.5-7b'"),
        (["decode", "--shape", "tiny", "--layers", "4"], "--layers must be from 1 to 3"),
        (["decode", "--shape", "tiny", "--context", "x"], "--context takes positive whole numbers"),
        (["decode", "--shape", "tiny", "--dtype", "int8"], "--dtype must be one of"),
        (["decode", "--shape", "tiny", "--device", "tpu"], "--device must be cpu or cuda"),
        (["decode", "--shape", "tiny", "--fill", "water"], "--fill must be one of"),
        (["decode", "--shape", "tiny", "--methods", "madakv:draft=8"], "not measured here"),
        (["decode", "--shape", "tiny", "--methods", "madakv:echo=8", "--fill", "synthetic"], "use --fill prefill"),
        (["decode", "--model", "small-llava", "--fill", "synthetic"], "takes a --shape"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output


def test_heads_of_random_models_differ_in_sharpness() -> None:
    spread = shapes.peaks(8)
    assert spread[0] == pytest.approx(0.5)
    assert spread[-1] == pytest.approx(3.0)
    model = tiny_subject().model
    weight = model.layers[0].self_attn.q_proj.weight.detach().view(2, -1)
    assert float(weight[1].std() / weight[0].std()) == pytest.approx(6.0, rel=0.2)


def test_synthetic_queries_are_as_sharp_as_their_head() -> None:
    subject = tiny_subject()
    prompt = subject.prompt(400, 1, 1.0)
    for view in synthetic_views(subject.cost, prompt, dtype=torch.float32, device=CPU):
        logits = view.query.unflatten(1, (2, 2)) @ view.key[:, :, None].mT * view.scaling
        assert logits.std((0, 2, 3, 4)).tolist() == pytest.approx([0.5, 3.0], rel=0.1)
        assert torch.equal(view.modality, layout(400, 16)[None])


def test_only_a_cache_that_keeps_everything_is_held_to_be_exact() -> None:
    assert Evicted(from_text("madakv", budget=1.0)).exact
    assert not Evicted(from_text("madakv", budget=1)).exact, "one entry per head is another budget"
