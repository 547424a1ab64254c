"""The parts of the vLLM plug-in that need no vLLM: settings, guards, the page table, the layout of cells."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from madakv.cli.app import app
from madakv.errors import ConfigurationError, MadaKVError, UnsupportedModelError, UnsupportedOptionError
from madakv.integrations.vllm.guards import check_config, check_layers, check_method, check_version
from madakv.integrations.vllm.layout import Layout
from madakv.integrations.vllm.pages import Memory, PageTable, token_rows
from madakv.integrations.vllm.requests import modality_of
from madakv.integrations.vllm.serving import command, promise
from madakv.integrations.vllm.settings import Settings, first_kept_block, kept_blocks, page_size
from madakv.methods import resolve
from madakv.plan import KeepPlan
from madakv.scoring.proxies import spread_mask


def test_nobody_asks_for_eviction() -> None:
    assert Settings.of({}) is None
    assert Settings.of({"other": 1}) is None
    assert Settings.of(None) is None


def test_settings_are_read() -> None:
    asked = Settings.of({"madakv": {"budget": 0.3, "method": "snapkv:window_size=16"}})
    assert asked == Settings(0.3, "snapkv:window_size=16")
    assert asked.resolved() == resolve("snapkv", window_size=16, budget=0.3)
    assert asked.resolved(0.5).budget == 0.5
    assert Settings.of({"madakv": {}}) == Settings()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"budget": 7}, "share of the prompt in (0, 1]; got 7"),
        ({"budget": 0}, "share of the prompt in (0, 1]; got 0"),
        ({"budget": True}, "share of the prompt in (0, 1]; got True"),
        ({"budget": float("nan")}, "share of the prompt in (0, 1]; got nan"),
        ({"budget": "half"}, "share of the prompt in (0, 1]; got 'half'"),
        ({"method": "madkv"}, "did you mean 'madakv'?"),
        ({"method": "snapkv:budget=0.5"}, "names a budget of its own"),
        ({"method": 3}, "must be typed"),
        ({"ratio": 3}, "no setting 'ratio'; its settings: budget, method"),
        (0.2, "settings are an object"),
    ],
)
def test_settings_are_refused_in_one_line(given: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(says)) as refusal:
        Settings.of({"madakv": given})
    assert "\n" not in str(refusal.value)


def test_a_request_may_keep_more() -> None:
    settings = Settings(0.2)
    assert settings.budget_of(None) == 0.2
    assert settings.budget_of({"madakv": {"budget": 0.5}}) == 0.5
    assert settings.budget_of({"madakv_budget": 1}) == 1.0


@pytest.mark.parametrize("extra", [{"madakv_budget": 0.1}, {"madakv": {"budget": 7}}, {"madakv": {"method": "full"}}])
def test_a_request_may_not_keep_less_or_ask_for_else(extra: Any) -> None:
    with pytest.raises(ConfigurationError):
        Settings(0.2).budget_of(extra)


def test_pages_always_suffice_and_free_what_they_can() -> None:
    for size in (1, 16, 32, 128):
        for tokens in range(1, 700, 13):
            for budget in (0.05, 0.2, 0.5, 0.99):
                entries, blocks = int(tokens * budget + 1e-9), kept_blocks(budget, tokens, size)
                # As uneven as can be: every head has one entry more than whole pages.
                assert blocks * size >= entries + page_size(size) - 1
                first = first_kept_block(budget, tokens, size)
                assert first == 0 or tokens // size - first == blocks
    assert first_kept_block(1.0, 10_000, 16) == 0
    assert first_kept_block(0.2, 10_000, 16) == 625 - 126


ORDERS = ("LBHNC", "LBNHC", "BLNHC")
"""How vLLM may lay out layers, blocks, heads, entries and their contents: on CPUs, on GPUs, and another one."""


def caches_of(
    order: str = "LBHNC", *, layers: int, blocks: int, heads: int, size: int, dim: int, dtype: Any = torch.float32
) -> list[Tensor]:
    """[blocks, heads, size, 2 * dim] of each layer, all of one storage."""
    sizes = {"L": layers, "B": blocks, "H": heads, "N": size, "C": 2 * dim}
    whole = torch.full([sizes[name] for name in order], float("nan"), dtype=dtype)
    return list(whole.permute([order.index(name) for name in "LBHNC"]))


def block_of(cache: Tensor, block: int) -> Tensor:
    """All numbers of a block, as they lie in memory."""
    return cache.as_strided((cache[0].numel(),), (1,), cache.storage_offset() + block * cache.stride(0))


def memory_of(
    layers: int = 3, blocks: int = 7, heads: int = 2, size: int = 4, dim: int = 8, order: str = "LBHNC"
) -> tuple[Memory, list[Tensor]]:
    caches = caches_of(order, layers=layers, blocks=blocks, heads=heads, size=size, dim=dim)
    return Memory.behind(caches), caches


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [4, 16])
def test_uneven_heads_lie_in_pages_of_any_layer(size: int, order: str) -> None:
    memory, caches = memory_of(size=size, order=order)
    # A whole layer goes to one head of the first one: its own cells do not hold it.
    counts = torch.tensor([[21, 0], [1, 4], [5, 3]]) * size // 4
    blocks = torch.tensor([5, 2])
    plans = [KeepPlan.from_mask(torch.arange(120) < own[None, :, None]) for own in counts]
    table = PageTable(memory, plans, blocks)
    entries = [(torch.randn(int(own.sum()), 8), torch.randn(int(own.sum()), 8)) for own in counts]
    for layer, (keys, values) in enumerate(entries):
        table.write(layer, keys, values)
    for layer, (keys, values) in enumerate(entries):
        rows = table.key_rows(layer)
        assert torch.equal(memory.rows[rows], keys)
        assert torch.equal(memory.rows[rows + memory.page_size], values)
    rows = torch.cat([table.key_rows(layer) for layer in range(3)])
    assert len(rows.unique()) == len(rows)
    touched = [block for block in range(7) for cache in caches if not bool(cache[block].isnan().all())]
    assert set(touched) == {2, 5}
    # What fits lies in cells of its own layer and head.
    for row in table.key_rows(1).tolist():
        assert (row - int(memory.layers[1])) // memory.block_rows in (2, 5)


def test_pages_that_do_not_fit_are_an_error() -> None:
    memory, _ = memory_of(layers=1)
    with pytest.raises(RuntimeError, match="4 pages do not fit into 1 blocks of 2"):
        PageTable(memory, [KeepPlan.from_mask((torch.arange(9) < 5).expand(1, 2, 9))], torch.tensor([1]))


@pytest.mark.parametrize("order", ORDERS)
def test_tokens_behind_a_prompt_lie_by_position(order: str) -> None:
    memory, caches = memory_of(order=order)
    rows = token_rows(memory, torch.tensor([6, 1, 3]), torch.tensor([5, 6, 7, 8])) + memory.layers[1]
    memory.rows[rows] = torch.arange(64.0).view(2, 4, 8)
    cells = block_of(caches[1], 1).view(2, 2, 4, 8)
    assert torch.equal(cells[1, 0, 1:], torch.arange(64.0).view(2, 4, 8)[1, :3])
    assert torch.equal(block_of(caches[1], 3).view(2, 2, 4, 8)[0, 0, 0], torch.arange(24.0, 32.0))


def in_pieces() -> list[Tensor]:
    """Heads before blocks."""
    return caches_of("LHBNC", layers=2, blocks=3, heads=2, size=4, dim=8)


@pytest.mark.parametrize("caches", [[torch.zeros(3, 2, 4, 16), torch.zeros(3, 2, 4, 16)], in_pieces()])
def test_caches_of_several_storages_or_in_pieces_are_refused(caches: list[Tensor]) -> None:
    with pytest.raises(ValueError, match="not blocks of one memory"):
        Memory.behind(caches)


def transposed(keys: Tensor, values: Tensor, cache: Tensor) -> None:
    """As vLLM lays out keys for vectors: dims before entries."""
    cells = cache.view(keys.shape[1], 2, -1)
    cells[:, 0] = keys.permute(1, 2, 0).flatten(1)
    cells[:, 1] = values.transpose(0, 1).flatten(1)


def beside(keys: Tensor, values: Tensor, cache: Tensor) -> None:
    """As vLLM's kernels in Triton do: each value behind its key."""
    cache[0] = torch.cat([keys, values], -1).transpose(0, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [4, 128])
@pytest.mark.parametrize(("order", "write"), [("LBHNC", transposed), *((order, beside) for order in ORDERS)])
def test_a_layout_is_learned(dtype: torch.dtype, size: int, order: str, write: Any) -> None:
    cache = caches_of(order, layers=2, blocks=3, heads=2, size=size, dim=64, dtype=dtype)[1]
    before = cache.clone()
    layout = Layout.learned(write, cache)
    torch.testing.assert_close(cache, before, rtol=0, atol=0, equal_nan=True)
    keys, values = (torch.randn(2 * size, 2, 64).to(dtype) for _ in range(2))
    for number, block in enumerate((2, 0)):
        own = slice(number * size, number * size + size)
        write(keys[own], values[own], cache[block : block + 1])
    tokens = 2 * size - 3
    got = layout.gather(cache, torch.tensor([2, 0, 1]), tokens)
    assert torch.equal(got[0][0], keys[:tokens].transpose(0, 1))
    assert torch.equal(got[1][0], values[:tokens].transpose(0, 1))


def test_a_layout_that_computes_is_refused() -> None:
    def halved(keys: Tensor, values: Tensor, cache: Tensor) -> None:
        transposed(keys / 2, values, cache)

    with pytest.raises(UnsupportedOptionError, match="holds more than keys and values"):
        Layout.learned(halved, torch.zeros(2, 2, 8, 16))


def test_a_layout_in_pieces_is_refused() -> None:
    with pytest.raises(UnsupportedOptionError, match="leave out VLLM_KV_CACHE_LAYOUT"):
        Layout.learned(beside, in_pieces()[0])


def test_pictures_are_told_from_text() -> None:
    where = torch.tensor([False, True, True])
    pictures = [
        SimpleNamespace(modality="image", mm_position=SimpleNamespace(offset=1, length=3, is_embed=where)),
        SimpleNamespace(modality="video", mm_position=SimpleNamespace(offset=5, length=2, is_embed=None)),
    ]
    assert modality_of(8, pictures).tolist() == [[0, 0, 1, 1, 0, 2, 2, 0]]


@pytest.mark.parametrize("typed", ["snapkv", "snapkv:context=16", "madakv", "h2o", "keydiff"])
def test_queries_that_are_listened_to_are_all_that_scores(typed: str) -> None:
    from madakv.methods.registry import from_text
    from madakv.scoring import LayerView

    method, N = from_text(typed, 0.2), 90
    modality = torch.zeros(1, N, dtype=torch.int64)
    query, key, value = torch.randn(1, 4, N, 8), torch.randn(1, 2, N, 8), torch.randn(1, 2, N, 8)
    only = query * method.listened(modality)[:, None, :, None]
    views = [LayerView(query=q, key=key, value=value, modality=modality, scaling=0.3) for q in (query, only)]
    assert torch.equal(*(method.score(view) for view in views))
    if method.echoes:
        assert all(torch.equal(a, b) for a, b in zip(*(method.score_and_seek(view) for view in views), strict=True))
        assert bool((method.listened(modality) >= spread_mask(modality, 64)).all())


def config(**changes: Any) -> Any:
    parts = {
        "speculative_config": None,
        "kv_transfer_config": None,
        "cache_config.kv_sharing_fast_prefill": False,
        "cache_config.cache_dtype": "auto",
        "lora_config": None,
        "parallel_config.pipeline_parallel_size": 1,
        "parallel_config.decode_context_parallel_size": 1,
        "parallel_config.prefill_context_parallel_size": 1,
        "model_config.dtype": torch.bfloat16,
        "model_config.multimodal_config": None,
        "model_config.hf_text_config": SimpleNamespace(),
        "model_config.use_mla": False,
        "model_config.is_multimodal_model": False,
        "model_config.is_encoder_decoder": False,
        "model_config.runner_type": "generate",
        "parallel_config.use_ubatching": False,
        "attention_config.backend": None,
        "compilation_config.cudagraph_mode": SimpleNamespace(name="NONE"),
        "compilation_config.splitting_ops": [],
        "use_v2_model_runner": False,
    } | changes
    made = SimpleNamespace()
    for path, value in parts.items():
        owner, _, name = path.rpartition(".")
        if owner and not hasattr(made, owner):
            setattr(made, owner, SimpleNamespace())
        setattr(getattr(made, owner) if owner else made, name, value)
    return made


ON_GPUS = {
    "attention_config.backend": SimpleNamespace(name="TRITON_ATTN"),
    "compilation_config.cudagraph_mode": SimpleNamespace(name="FULL_AND_PIECEWISE"),
    "compilation_config.splitting_ops": ["vllm::unified_attention_with_output", "vllm::unified_kv_cache_update"],
}


def test_a_plain_server_passes() -> None:
    check_config(config(), Settings(), "0.32.0", "cpu")
    check_config(config(**ON_GPUS), Settings(), "0.32.0", "cuda")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"attention_config.backend": SimpleNamespace(name="FLASHINFER")}, "TRITON_ATTN, not for FLASHINFER"),
        ({"attention_config.backend": None}, "TRITON_ATTN, not for vLLM's choice"),
        ({"compilation_config.cudagraph_mode": SimpleNamespace(name="FULL")}, "may record neither attention nor"),
        ({"compilation_config.splitting_ops": None}, "may record neither attention nor"),
        ({"compilation_config.splitting_ops": ["vllm::unified_attention_with_output"]}, "nor the writing of keys"),
    ],
)
def test_servers_on_gpus_are_refused_by_name(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(MadaKVError, match=says) as refusal:
        check_config(config(**ON_GPUS | changes), Settings(), "0.32.0", "cuda")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"speculative_config": object()}, "speculative decoding"),
        ({"kv_transfer_config": object()}, "KV connectors"),
        ({"cache_config.kv_sharing_fast_prefill": True}, "share a KV cache"),
        ({"cache_config.cache_dtype": "fp8"}, "another dtype"),
        ({"cache_config.cache_dtype": "float32"}, "another dtype"),
        ({"lora_config": object()}, "LoRA"),
        ({"model_config.multimodal_config": SimpleNamespace(mm_processor_cache_type="shm")}, "shared memory"),
        ({"parallel_config.pipeline_parallel_size": 2}, "pipeline parallelism"),
        ({"parallel_config.decode_context_parallel_size": 2}, "context parallelism"),
        ({"model_config.use_mla": True}, "latent attention"),
        ({"model_config.is_multimodal_model": True, "model_config.architectures": ["X"]}, "and X was not"),
        (
            {
                "model_config.hf_text_config": SimpleNamespace(
                    rope_parameters=dict(mrope_section=[1], rope_type="llama3")
                )
            },
            "one position per token",
        ),
        ({"model_config.runner_type": "pooling"}, "only models that generate"),
        ({"parallel_config.use_ubatching": True}, "leave out --enable-dbo"),
        ({"use_v2_model_runner": True}, "model runner V2"),
    ],
)
def test_servers_are_refused_by_name(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(MadaKVError, match=says) as refusal:
        check_config(config(**changes), Settings(), "0.32.0", "cpu")
    assert "\n" not in str(refusal.value)


def test_other_versions_and_devices_are_refused() -> None:
    with pytest.raises(UnsupportedOptionError, match=r"tested with vLLM 0\.32\.0; this is 0\.33\.1"):
        check_version("0.33.1")
    for device in ("rocm", "xpu", "tpu"):
        with pytest.raises(UnsupportedOptionError, match=f"{device} is not supported"):
            check_config(config(), Settings(), "0.32.0", device)


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("madakv:draft=4", "leave out draft"),
        ("madakv:lookahead=4", "leave out lookahead"),
        ("lookm", "merges what it evicts"),
        ("expected_attention", "before RoPE"),
    ],
)
def test_methods_that_an_engine_cannot_serve_are_refused(method: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        check_method(Settings(method=method))


def test_what_is_typed_is_what_vllm_is_asked_for() -> None:
    words = command("/models/mine", Settings(0.1, "snapkv"), ["--port", "9000"])
    assert words[1:5] == ["-m", "vllm.entrypoints.cli.main", "serve", "/models/mine"]
    assert Settings.of(json.loads(words[words.index("--additional-config") + 1])) == Settings(0.1, "snapkv")
    assert words[-2:] == ["--port", "9000"]


def test_what_is_promised_is_what_is_freed() -> None:
    # 32 blocks and one for the answer, of which (819 + 7) / 128, rounded up 7, and that one stay; the last is read
    # whole.
    said = promise(Settings(), tokens=4096, block_size=128, blocks=100)
    assert said.startswith(
        "keeps 20% of each prompt by madakv: of prompts of 4,096 tokens, 9 fit at once, where 3 would"
    )
    assert "2 fit at once, where 1 would" in promise(Settings(), tokens=4096, block_size=128, blocks=1 + 33 + 8)
    assert "1 fit at once, where 1 would" in promise(Settings(), tokens=4096, block_size=128, blocks=33 + 8)
    assert " 3 fit at once, where 3 would" in promise(Settings(1.0), tokens=4096, block_size=128, blocks=100)
    assert "\n" not in said


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--budget", "7"], "(0, 1]; got 7.0"),
        (["--method", "madkv"], "did you mean 'madakv'"),
        (["--method", "madakv:draft=2"], "leave out draft"),
    ],
)
def test_the_command_refuses_in_one_line(options: list[str], says: str) -> None:
    ended = CliRunner().invoke(app, ["serve", "some/model", *options])
    assert ended.exit_code == 2
    assert says in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_the_command_says_where_to_have_it() -> None:
    ended = CliRunner().invoke(app, ["serve", "some/model"])
    assert ended.exit_code == 2
    assert ended.stderr.splitlines() == [
        "error: vLLM is not installed here: pip install 'madakv[vllm]', or for a CPU what docs/vllm.md says"
    ]


def test_models_with_several_kinds_of_layers_are_refused() -> None:
    check_layers(["FullAttentionSpec"], "FullAttentionSpec")
    with pytest.raises(UnsupportedModelError, match="this model has FullAttentionSpec, SlidingWindowSpec"):
        check_layers(["FullAttentionSpec", "SlidingWindowSpec"], "FullAttentionSpec")
