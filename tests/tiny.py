"""Tiny random models of real classes, built in seconds, and without drawing from the caller's random numbers."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

IMAGE_TOKEN = 3
TOKENS_PER_IMAGE = 4


def text_config(**options: Any) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=97,
        eos_token_id=None,
        bos_token_id=1,
        pad_token_id=0,
        initializer_range=0.2,
        **options,
    )


@cache
@torch.random.fork_rng()
def llama() -> LlamaForCausalLM:
    torch.manual_seed(1)
    return LlamaForCausalLM(text_config()).eval()


@cache
@torch.random.fork_rng()
def llava() -> LlavaForConditionalGeneration:
    torch.manual_seed(2)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text_config(),
        image_token_id=IMAGE_TOKEN,
        image_seq_length=TOKENS_PER_IMAGE,
    )
    return LlavaForConditionalGeneration(config).eval()


def ids(*lengths: int) -> tuple[Tensor, Tensor]:
    """Random left-padded token ids and their attention mask, one row per length."""
    N = max(lengths)
    tokens = torch.randint(5, 97, (len(lengths), N))
    mask = (torch.arange(N) >= N - torch.tensor(lengths)[:, None]).long()
    return tokens * mask, mask


def document(text: int = 10, images: int = 3) -> dict[str, Tensor]:
    """Inputs for `llava()`: text, image, text, image, ..., text."""
    pieces: list[Tensor] = []
    for _ in range(images):
        pieces += [torch.randint(5, 97, (text,)), torch.full((TOKENS_PER_IMAGE,), IMAGE_TOKEN)]
    pieces.append(torch.randint(5, 97, (text,)))
    tokens = torch.cat(pieces)[None]
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return inputs | ({"pixel_values": torch.randn(images, 3, 8, 8)} if images else {})


def greedy(model: Any, inputs: dict[str, Tensor], steps: int = 16, **options: Any) -> Tensor:
    """The generated tokens alone, [B, steps]."""
    out = model.generate(**inputs, max_new_tokens=steps, do_sample=False, **options)
    return out[:, inputs["input_ids"].shape[1] :]
