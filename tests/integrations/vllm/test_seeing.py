"""Of prompts with pictures, vLLM keeps what transformers keeps, and says what transformers says: `make test-vllm`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.integrations.vllm.engines import IN_VLLM, agreement, engine, ids_of, quietly, transformers_says

pytestmark = IN_VLLM
SIZES = {
    "skip_tokenizer_init": False,
    "max_model_len": 1216,
    "num_gpu_blocks_override": 320,
    "limit_mm_per_prompt": {"image": 64},
    "skip_mm_profiling": True,
}


@pytest.mark.parametrize(
    "family", ["small-llava", "small-qwen2.5-vl", "small-smolvlm", "smolvlm", "internvl", "qwen3_vl"]
)
def test_kept_entries_and_tokens_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    quietly()
    from transformers import AutoModelForImageTextToText

    from tests.integrations.vllm.seeing import documents, published
    from tests.integrations.vllm.tiny import tiny

    made = tmp_path / family
    folder = published(family, made) if family.startswith("small-") else tiny(family, made)
    prompts = documents(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    want = {budget: transformers_says(model, prompts, "madakv", budget) for budget in (0.2, 1.0)}
    # Whole pictures, and parts of them, in a pass.
    for chunk in (None, 91):
        options = SIZES if chunk is None else SIZES | {"max_num_batched_tokens": chunk}
        with engine(folder, {"budget": 0.2}, **options) as ours:
            before = ours.free_blocks
            said = ours.says(prompts)
            assert set(said.plans) == set(want[0.2].plans)
            same, either = agreement(said, want[0.2])
            assert same == either > 1000
            assert said.tokens == want[0.2].tokens
            # Those whose beginning was found, and those that lose their blocks in the middle, are no different.
            again = ours.says(prompts, preempt=7 if chunk is None else 0)
            assert ours.found > 0.3 * sum(len(ids_of(prompt)) for prompt in prompts)
            assert again.tokens == want[0.2].tokens
            if chunk is None:
                whole = ours.says(prompts[:2], [{"madakv_budget": 1.0}] * 2)
                assert not whole.plans
                assert whole.tokens == want[1.0].tokens[:2]
                # Trained models answer the same with a fifth; those of random weights show a difference.
                assert family.startswith("small-") or whole.tokens != want[0.2].tokens[:2]
            assert ours.free_blocks == before


def test_a_compiled_model_reads_once_more_what_it_was_not_compiled_for(tmp_path: Path) -> None:
    """Text without pictures, as ids: vLLM itself only ever hands such a model embeddings."""
    quietly()
    from transformers import AutoModelForImageTextToText

    from tests.integrations.vllm.seeing import documents
    from tests.integrations.vllm.tiny import tiny

    folder = tiny("smolvlm", tmp_path / "smolvlm")
    prompts = [torch.randint(300, 4000, (length,)).tolist() for length in (170, 340)] + documents(folder)[:2]
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    want = transformers_says(model, prompts, "madakv", 0.2)
    with engine(folder, {"budget": 0.2}, **SIZES, enforce_eager=False) as ours:
        said = ours.says(prompts)
    same, either = agreement(said, want)
    assert same == either > 1000
    assert said.tokens == want.tokens
