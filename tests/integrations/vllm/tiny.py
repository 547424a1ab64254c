"""Tiny models that see, of random weights, one of each family, with the processors that they are published with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as hf

from tests.integrations.vllm.seeing import REPOSITORY

VOCABULARY = 4224
_TEMPLATE = (
    "{% for message in messages %}{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}MARK{% else %}{{ item['text'] }}{% endif %}{% endfor %}{% endfor %}"
)
_TEXT: dict[str, Any] = dict(
    vocab_size=VOCABULARY, hidden_size=128, intermediate_size=192, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=32, max_position_embeddings=2048, initializer_range=0.15,
    tie_word_embeddings=False,
)  # fmt: skip
_NORMED = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)


def _tokenizer(*special: str, **named: str) -> Any:
    """That of the bundled models, with more special tokens."""
    made = hf.AutoTokenizer.from_pretrained(REPOSITORY / "models" / "small-llava", extra_special_tokens=named)
    made.add_tokens([*special, *named.values()], special_tokens=True)
    return made


def _smolvlm() -> tuple[Any, Any, str]:
    """Tiles of 64 x 64 in 4 visual tokens each, and the whole."""
    marks = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    tokenizer = _tokenizer(*marks, "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    config = hf.SmolVLMConfig(
        text_config=hf.LlamaConfig(**_TEXT),
        vision_config=hf.SmolVLMVisionConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=64,
            patch_size=8, initializer_range=0.15,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=4,
        pad_token_id=1,
        tie_word_embeddings=False,
    )  # fmt: skip
    pictures = hf.SmolVLMImageProcessor(size={"longest_edge": 128}, max_image_size={"longest_edge": 64}, **_NORMED)
    films = hf.SmolVLMVideoProcessor()
    processor = hf.SmolVLMProcessor(pictures, tokenizer, films, image_seq_len=4)
    return hf.SmolVLMForConditionalGeneration(config), processor, "<image>"


def _internvl() -> tuple[Any, Any, str]:
    """Tiles of 32 x 32 in 4 visual tokens each, and the whole."""
    names = dict(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    tokenizer = _tokenizer(**names)
    config = hf.InternVLConfig(
        text_config=hf.Qwen2Config(**_TEXT),
        vision_config=hf.InternVLVisionConfig(
            hidden_size=64, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=[32, 32],
            patch_size=[8, 8], initializer_range=0.15,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )  # fmt: skip
    pictures = hf.GotOcr2ImageProcessor(
        size={"height": 32, "width": 32}, crop_to_patches=True, min_patches=1, max_patches=4, **_NORMED
    )
    films = hf.InternVLVideoProcessor(size={"height": 32, "width": 32})
    processor = hf.InternVLProcessor(pictures, tokenizer, films, image_seq_length=4)
    return hf.InternVLForConditionalGeneration(config), processor, "<IMG_CONTEXT>"


def _qwen3_vl() -> tuple[Any, Any, str]:
    """Merged patches of 8 x 8 pixels, pictures of any size, features of the tower in the first two layers."""
    tokenizer = _tokenizer(
        "<|im_start|>",
        image_token="<|image_pad|>",
        video_token="<|video_pad|>",
        vision_start_token="<|vision_start|>",
        vision_end_token="<|vision_end|>",
    )
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")
    }
    pads = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}_pad|>") for name in ("image", "video")}
    ropes = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    config = hf.Qwen3VLConfig(
        text_config=_TEXT | {"rope_parameters": ropes},
        vision_config=dict(
            depth=3, hidden_size=64, out_hidden_size=128, intermediate_size=96, num_heads=2, patch_size=4,
            num_position_embeddings=64, deepstack_visual_indexes=[0, 1], initializer_range=0.15,
        ),
        tie_word_embeddings=False,
        **ids,
        **pads,
    )  # fmt: skip
    sizes = dict(
        patch_size=4,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": 1024, "longest_edge": 16384},
        **_NORMED,
    )
    processor = hf.Qwen3VLProcessor(hf.Qwen2VLImageProcessor(**sizes), tokenizer, hf.Qwen3VLVideoProcessor(**sizes))
    mark = "<|vision_start|><|image_pad|><|vision_end|>"
    return hf.Qwen3VLForConditionalGeneration(config), processor, mark


_FAMILIES = {"smolvlm": _smolvlm, "internvl": _internvl, "qwen3_vl": _qwen3_vl}


def tiny(family: str, folder: Path) -> Path:
    """A folder with such a model."""
    torch.manual_seed(0)
    model, processor, mark = _FAMILIES[family]()
    processor.chat_template = _TEMPLATE.replace("MARK", mark)
    model.generation_config.eos_token_id = None
    model.float().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
