"""The plug-in inside vLLM: nothing without being asked, refusals in one line, bad requests that harm nobody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from madakv.errors import MadaKVError
from tests.integrations.vllm.engines import IN_VLLM, engine

pytestmark = IN_VLLM


@pytest.mark.parametrize(
    ("settings", "options", "says"),
    [
        ({"budget": 7}, {}, "share of the prompt in"),
        ({"method": "madkv"}, {}, "did you mean 'madakv'"),
        ({"method": "madakv:draft=4"}, {}, "leave out draft"),
        ({}, {"enable_lora": True}, "LoRA adapters"),
        (
            {},
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}},
            "speculative decoding",
        ),
    ],
)
def test_servers_are_refused_in_one_line(folder: Path, settings: Any, options: Any, says: str) -> None:
    with pytest.raises(MadaKVError, match=says) as refusal, engine(folder, settings, **options):
        pass
    assert "\n" not in str(refusal.value)


def test_what_vllm_turns_on_by_itself_stays_on(folder: Path) -> None:
    from vllm.engine.arg_utils import EngineArgs

    from madakv.integrations.vllm import register

    register()
    for additional in ({"madakv": {}}, {}):
        asked = EngineArgs(str(folder), skip_tokenizer_init=True, additional_config=additional)
        config = asked.create_engine_config()
        # On a CPU, vLLM then says no.
        assert asked.async_scheduling is None
        assert config.cache_config.enable_prefix_caching is True


def test_bad_requests_are_refused_and_the_engine_lives_on(folder: Path, prompts: Any) -> None:
    from vllm import SamplingParams

    with engine(folder, {"budget": 0.2, "method": "snapkv"}) as ours:
        before = ours.free_blocks
        bad = ({"madakv_budget": 7}, {"madakv_budget": 0.1}, {"madakv": "all"}, {"madakv": {"method": "full"}})
        for extra in bad:
            with pytest.raises(MadaKVError, match="madakv"):
                ours.llm.generate({"prompt_token_ids": prompts[0]}, SamplingParams(extra_args=extra), use_tqdm=False)
        assert len(ours.says(prompts[:2]).plans) == 2
        assert ours.free_blocks == before


def test_who_does_not_ask_gets_the_engines_own(folder: Path) -> None:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    with engine(folder, None) as plain:
        runner = plain.core.model_executor.driver_worker.worker.model_runner
        layers = runner.vllm_config.compilation_config.static_forward_context.values()
        assert {type(layer.impl) for layer in layers} == {CPUAttentionBackendImpl}
        assert [type(group.kv_cache_spec) for group in runner.kv_cache_config.kv_cache_groups] == [FullAttentionSpec]
