"""A tiny model, and prompts for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.integrations.vllm.engines import Prompt, quietly

LENGTHS = (170, 250, 340, 484, 600, 192, 288, 401)


def save_tiny(folder: Path) -> Path:
    """A tiny model of random weights, large enough that its attention differs from entry to entry."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=128, intermediate_size=192, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=2048, initializer_range=0.15,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).float()
    # Both say as many tokens as they are asked for.
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    return folder


def random_prompts() -> list[Prompt]:
    """For that model."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 512, (length,), generator=generator).tolist() for length in LENGTHS]


def text_prompts(folder: Path) -> list[Prompt]:
    """For a published model."""
    from transformers import AutoTokenizer

    from madakv.evaluation.texts import corpus

    ids = AutoTokenizer.from_pretrained(folder)(Path(corpus.__file__).read_text() * 3)["input_ids"]
    return [ids[:200], ids[100:460], ids[300:890]]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    quietly()
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def prompts() -> list[Prompt]:
    return random_prompts()
