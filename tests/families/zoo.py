"""Tiny random models of the real transformers classes, and prompts for them made by hand.

Weights are drawn wide enough for attention to be peaked and for the greedy choice to be clear: with
transformers' own initialisation every logit is nearly zero, and no test on tokens could fail.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn.functional import pad

hf: Any = transformers
VOCAB = 96
IMAGE, VIDEO, AUDIO, VISION_START, VISION_END, PADDING = 90, 91, 92, 93, 94, 95
PLACEHOLDERS = {"image": IMAGE, "video": VIDEO, "audio": AUDIO}

Inputs = dict[str, Tensor]
Part = int | tuple[int, int]
"""Of a prompt: so many random text tokens, or (token id, count)."""

_PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


@dataclass(frozen=True)
class Family:
    """How to make one family's model and prompts.

    Attributes:
        build: the model, with transformers' own weights.
        prompt: inputs of one row from a seed; other seeds give other lengths.
        full_layers: the layers with full attention, which are the ones to evict.
        layers: all layers.
        mrope: whether text positions are not token counts.
    """

    build: Callable[[], Any]
    prompt: Callable[[int], Inputs]
    full_layers: tuple[int, ...] = (0, 1, 2)
    layers: int = 3
    mrope: bool = False

    def model(self, dtype: torch.dtype = torch.float32) -> Any:
        """The model in eval mode, with weights from a fixed seed; it never stops by itself."""
        torch.manual_seed(0)
        model = self.build().eval()
        _draw_weights(model)
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = PADDING
        return model if dtype == torch.float32 else model.to(dtype)


@torch.no_grad()
def _draw_weights(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            # Small embeddings, so that what the layers add decides, and not the last token.
            gain = 1.5 if any(part in name for part in ("q_proj", "k_proj", "lm_head")) else 1.0
            std = 0.3 if "embed" in name else gain * weight[0].numel() ** -0.5
            weight.normal_(std=std, generator=generator)
        elif "sinks" in name:
            weight.normal_(generator=generator)


def left_padded(rows: list[Inputs]) -> Inputs:
    """One batch of several rows: what is per token is padded on the left, what is per image is stacked."""
    N = max(row["input_ids"].shape[1] for row in rows)
    batch: Inputs = {}
    for name in rows[0]:
        pieces = [row[name] for row in rows]
        if name in _PER_TOKEN:
            filler = PADDING if name == "input_ids" else 0
            pieces = [pad(piece, (N - piece.shape[1], 0), value=filler) for piece in pieces]
        batch[name] = torch.cat(pieces)
    return batch


def prompt_tokens(inputs: Inputs) -> dict[str, int]:
    """How many tokens of each modality a prompt has, padding aside; counted without madakv."""
    real = inputs["input_ids"][inputs["attention_mask"].bool()]
    counts = {name: int((real == token).sum()) for name, token in PLACEHOLDERS.items()}
    return {"text": real.numel() - sum(counts.values())} | {name: n for name, n in counts.items() if n}


def tokens(seed: int, *parts: Part) -> Inputs:
    generator = torch.Generator().manual_seed(1000 + seed)
    pieces = [
        torch.randint(5, 80, (part,), generator=generator)
        if isinstance(part, int)
        else torch.full((part[1],), part[0])
        for part in parts
    ]
    ids = torch.cat(pieces)[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _kinds(inputs: Inputs) -> Tensor:
    """Modality ids, as processors make them."""
    ids = inputs["input_ids"]
    return (ids == IMAGE).long() + 2 * (ids == VIDEO).long()


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2000 + seed))


def texts(seed: int) -> tuple[int, int, int]:
    """Lengths of the text before, between and after the images."""
    return ((11, 7, 13), (6, 9, 8), (3, 5, 17))[seed % 3]


def two(seed: int, token: int, count: int) -> Inputs:
    before, between, after = texts(seed)
    return tokens(seed, before, (token, count), between, (token, count), after)


def text_sizes(**changes: Any) -> dict[str, Any]:
    sizes: dict[str, Any] = dict(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, pad_token_id=PADDING, bos_token_id=1, eos_token_id=2,
        tie_word_embeddings=False,
    )  # fmt: skip
    return sizes | changes


def hybrid_sizes(**changes: Any) -> dict[str, Any]:
    kinds = ["sliding_attention", "full_attention"] * 2
    return text_sizes(num_hidden_layers=4, head_dim=8, sliding_window=16, layer_types=kinds, **changes)


def vision_sizes(**changes: Any) -> dict[str, Any]:
    sizes: dict[str, Any] = dict(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16,
        patch_size=4,
    )  # fmt: skip
    return sizes | changes


def _llava() -> Any:
    config = hf.LlavaConfig(
        text_config=hf.LlamaConfig(**text_sizes()),
        vision_config=hf.CLIPVisionConfig(**vision_sizes()),
        image_token_index=IMAGE,
    )
    return hf.LlavaForConditionalGeneration(config)


def _llava_prompt(seed: int) -> Inputs:
    return two(seed, IMAGE, 16) | {"pixel_values": noise(seed, 2, 3, 16, 16)}


_PINPOINTS = [[16, 32], [32, 16], [32, 32]]

# Height and width of an image, and its tokens: 4 x 4 of the whole, and of the tiles that cover it those that are
# not padding, with one more token at the end of each row.
_ANYRES = (((14, 30), 16 + 4 * 9), ((30, 14), 16 + 8 * 5), ((30, 20), 16 + 8 * 7))


def _anyres_prompt(seed: int) -> Inputs:
    before, between, after = texts(seed)
    (first, n), (second, m) = _ANYRES[seed % 3], _ANYRES[(seed + 1) % 3]
    return tokens(seed, before, (IMAGE, n), between, (IMAGE, m), after) | {
        "pixel_values": noise(seed, 2, 5, 3, 16, 16),
        "image_sizes": torch.tensor([first, second]),
    }


def _llava_next() -> Any:
    config = hf.LlavaNextConfig(
        text_config=hf.MistralConfig(**text_sizes(sliding_window=None)),
        vision_config=hf.CLIPVisionConfig(**vision_sizes()),
        image_token_index=IMAGE,
        image_grid_pinpoints=_PINPOINTS,
    )
    return hf.LlavaNextForConditionalGeneration(config)


def _llava_onevision() -> Any:
    config = hf.LlavaOnevisionConfig(
        text_config=hf.Qwen2Config(**text_sizes()),
        vision_config=hf.SiglipVisionConfig(**vision_sizes(vision_use_head=False)),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=_PINPOINTS,
    )
    return hf.LlavaOnevisionForConditionalGeneration(config)


def _llava_next_video() -> Any:
    config = hf.LlavaNextVideoConfig(
        text_config=hf.LlamaConfig(**text_sizes()),
        vision_config=hf.CLIPVisionConfig(**vision_sizes()),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=_PINPOINTS,
    )
    return hf.LlavaNextVideoForConditionalGeneration(config)


def _next_video_prompt(seed: int) -> Inputs:
    before, between, after = texts(seed)
    frames = 6
    size, image = _ANYRES[seed % 3]
    # Each frame is pooled to 2 x 2 tokens.
    return tokens(seed, before, (IMAGE, image), between, (VIDEO, frames * 4), after) | {
        "pixel_values": noise(seed, 1, 5, 3, 16, 16),
        "image_sizes": torch.tensor([size]),
        "pixel_values_videos": noise(seed + 50, 1, frames, 3, 16, 16),
    }


def _onevision_video_prompt(seed: int) -> Inputs:
    before, between, after = texts(seed)
    # Each frame is pooled to 2 x 2 tokens; one more token ends the video.
    frames = 6
    size, image = _ANYRES[seed % 3]
    return tokens(seed, before, (IMAGE, image), between, (VIDEO, frames * 4 + 1), after) | {
        "pixel_values": noise(seed, 1, 5, 3, 16, 16),
        "image_sizes": torch.tensor([size]),
        "pixel_values_videos": noise(seed + 50, 1, frames, 3, 16, 16),
        "batch_num_images": torch.tensor([1]),
    }


def _onevision_prompt(seed: int) -> Inputs:
    # More than one image in a prompt is not tiled: each has its 4 x 4 tokens and the one that ends a row.
    return two(seed, IMAGE, 17) | {
        "pixel_values": noise(seed, 2, 1, 3, 16, 16),
        "image_sizes": torch.tensor([[14, 30], [30, 14]]),
        "batch_num_images": torch.tensor([2]),
    }


def mrope_sizes(**changes: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
    return text_sizes(hidden_size=64, rope_parameters=rope, **changes)


GRIDS = ((1, 4, 12), (1, 8, 8), (1, 10, 6))
"""Patches of an image: time, height, width. Two by two of them make a token."""

VISION_IDS: dict[str, Any] = dict(
    image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=VISION_START, vision_end_token_id=VISION_END
)
PATCH_VALUES = 3 * 2 * 4 * 4


def _qwen2_vl() -> Any:
    vision: dict[str, Any] = dict(depth=1, embed_dim=16, hidden_size=64, mlp_ratio=1, num_heads=2, patch_size=4)
    config = hf.Qwen2VLConfig(text_config=mrope_sizes(), vision_config=vision, **VISION_IDS)
    return hf.Qwen2VLForConditionalGeneration(config)


def _qwen2_5_vl() -> Any:
    vision: dict[str, Any] = dict(
        depth=2, hidden_size=16, out_hidden_size=64, intermediate_size=16, num_heads=2, patch_size=4,
        window_size=16, fullatt_block_indexes=[1],
    )  # fmt: skip
    config = hf.Qwen2_5_VLConfig(text_config=mrope_sizes(), vision_config=vision, **VISION_IDS)
    return hf.Qwen2_5_VLForConditionalGeneration(config)


def _qwen3_vl() -> Any:
    vision: dict[str, Any] = dict(
        depth=3, hidden_size=16, out_hidden_size=64, intermediate_size=16, num_heads=2, patch_size=4,
        num_position_embeddings=16, deepstack_visual_indexes=[0, 1],
    )  # fmt: skip
    text = mrope_sizes(head_dim=16)
    text["rope_parameters"] |= {"mrope_interleaved": True}
    config = hf.Qwen3VLConfig(text_config=text, vision_config=vision, **VISION_IDS)
    return hf.Qwen3VLForConditionalGeneration(config)


def _qwen3_vl_moe() -> Any:
    vision: dict[str, Any] = dict(
        depth=3, hidden_size=16, out_hidden_size=64, intermediate_size=16, num_heads=2, patch_size=4,
        num_position_embeddings=16, deepstack_visual_indexes=[0, 1],
    )  # fmt: skip
    text = mrope_sizes(head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
    text["rope_parameters"] |= {"mrope_interleaved": True}
    config = hf.Qwen3VLMoeConfig(text_config=text, vision_config=vision, **VISION_IDS)
    return hf.Qwen3VLMoeForConditionalGeneration(config)


def _qwen3_5() -> Any:
    vision: dict[str, Any] = dict(
        depth=2, hidden_size=16, out_hidden_size=64, intermediate_size=16, num_heads=2, patch_size=4,
        num_position_embeddings=16, deepstack_visual_indexes=[],
    )  # fmt: skip
    text = mrope_sizes(
        num_hidden_layers=4, head_dim=16, layer_types=["linear_attention", "full_attention"] * 2,
        linear_num_value_heads=2, linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=8,
    )  # fmt: skip
    text["rope_parameters"] |= {"mrope_interleaved": True, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}
    config = hf.Qwen3_5Config(text_config=text, vision_config=vision, **VISION_IDS)
    return hf.Qwen3_5ForConditionalGeneration(config)


GLM_VISION: dict[str, Any] = dict(
    depth=2, hidden_size=16, out_hidden_size=64, intermediate_size=16, num_heads=2, patch_size=4, image_size=32
)
GLM_IDS: dict[str, Any] = dict(
    image_token_id=IMAGE, video_token_id=VIDEO, image_start_token_id=VISION_START, image_end_token_id=VISION_END,
    video_start_token_id=88, video_end_token_id=89,
)  # fmt: skip


def _glm4v() -> Any:
    text = mrope_sizes()
    text["rope_parameters"] |= {"partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}
    return hf.Glm4vForConditionalGeneration(
        hf.Glm4vConfig(text_config=text, vision_config=dict(GLM_VISION), **GLM_IDS)
    )


def grid_tokens(grid: tuple[int, int, int]) -> int:
    return grid[0] * grid[1] * grid[2] // 4


def qwen_prompt(seed: int) -> Inputs:
    before, between, after = texts(seed)
    grids = [GRIDS[seed % 3], GRIDS[(seed + 1) % 3]]
    first, second = ([(VISION_START, 1), (IMAGE, grid_tokens(grid)), (VISION_END, 1)] for grid in grids)
    inputs = tokens(seed, before, *first, between, *second, after)
    patches = sum(4 * grid_tokens(grid) for grid in grids)
    return inputs | {
        "mm_token_type_ids": _kinds(inputs),
        "pixel_values": noise(seed, patches, PATCH_VALUES),
        "image_grid_thw": torch.tensor(grids),
    }


def _qwen_video(seed: int, *video: Part, grid: tuple[int, int, int]) -> Inputs:
    before, between, after = texts(seed)
    picture = GRIDS[seed % 3]
    image = [(VISION_START, 1), (IMAGE, grid_tokens(picture)), (VISION_END, 1)]
    inputs = tokens(seed, before, *image, between, *video, after)
    return inputs | {
        "mm_token_type_ids": _kinds(inputs),
        "pixel_values": noise(seed, 4 * grid_tokens(picture), PATCH_VALUES),
        "image_grid_thw": torch.tensor([picture]),
        "pixel_values_videos": noise(seed + 50, 4 * grid_tokens(grid), PATCH_VALUES),
        "video_grid_thw": torch.tensor([grid]),
    }


def _qwen2_5_video_prompt(seed: int) -> Inputs:
    grid = (3, 4, 6 + 2 * (seed % 2))
    video = ((VISION_START, 1), (VIDEO, grid_tokens(grid)), (VISION_END, 1))
    return _qwen_video(seed, *video, grid=grid) | {"second_per_grid_ts": torch.tensor([2.0])}


def _qwen3_video_prompt(seed: int) -> Inputs:
    # Every frame stands by itself, after the text of its time stamp.
    frame = ((1, 4, 6), (1, 4, 8))[seed % 2]
    frames = [(4, (VISION_START, 1), (VIDEO, grid_tokens(frame)), (VISION_END, 1))] * 3
    parts = [part for one in frames for part in one]
    return _qwen_video(seed, *parts, grid=(3, *frame[1:]))


def _internvl() -> Any:
    config = hf.InternVLConfig(
        text_config=hf.Qwen2Config(**text_sizes()),
        vision_config=hf.InternVLVisionConfig(**vision_sizes(image_size=32)),
        image_token_id=IMAGE,
        image_seq_length=16,
        tie_word_embeddings=False,
    )
    return hf.InternVLForConditionalGeneration(config)


def _internvl_prompt(seed: int) -> Inputs:
    return two(seed, IMAGE, 16) | {"pixel_values": noise(seed, 2, 3, 32, 32)}


def _smolvlm() -> Any:
    config = hf.SmolVLMConfig(
        text_config=hf.LlamaConfig(**text_sizes()),
        vision_config=hf.SmolVLMVisionConfig(**vision_sizes(image_size=32)),
        image_token_id=IMAGE,
        scale_factor=2,
    )
    return hf.SmolVLMForConditionalGeneration(config)


def _idefics3() -> Any:
    config = hf.Idefics3Config(
        text_config=hf.LlamaConfig(**text_sizes()),
        vision_config=hf.Idefics3VisionConfig(**vision_sizes(image_size=32)),
        image_token_id=IMAGE,
        scale_factor=2,
    )
    return hf.Idefics3ForConditionalGeneration(config)


def _smolvlm_prompt(seed: int) -> Inputs:
    return two(seed, IMAGE, 16) | {
        "pixel_values": noise(seed, 1, 2, 3, 32, 32),
        "pixel_attention_mask": torch.ones(1, 2, 32, 32, dtype=torch.bool),
    }


def _gemma3() -> Any:
    text = hybrid_sizes(query_pre_attn_scalar=16)
    config = hf.Gemma3Config(
        text_config=hf.Gemma3TextConfig(**text),
        vision_config=hf.SiglipVisionConfig(**vision_sizes(image_size=32, vision_use_head=False)),
        mm_tokens_per_image=16,
        image_token_index=IMAGE,
        boi_token_index=VISION_START,
        eoi_token_index=VISION_END,
        tie_word_embeddings=False,
    )
    return hf.Gemma3ForConditionalGeneration(config)


def _gemma3_prompt(seed: int) -> Inputs:
    before, between, after = texts(seed)
    image = [(VISION_START, 1), (IMAGE, 16), (VISION_END, 1)]
    inputs = tokens(seed, before, *image, between, *image, after)
    return inputs | {"token_type_ids": _kinds(inputs), "pixel_values": noise(seed, 2, 3, 32, 32)}


def _gemma4() -> Any:
    text = hybrid_sizes(
        hidden_size_per_layer_input=0, num_kv_shared_layers=0, global_head_dim=16, num_global_key_value_heads=1,
        attention_k_eq_v=True, vocab_size_per_layer_input=VOCAB, use_bidirectional_attention="vision",
    )  # fmt: skip
    vision: dict[str, Any] = dict(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        head_dim=8, pooling_kernel_size=2, patch_size=4, position_embedding_size=16,
    )  # fmt: skip
    config = hf.Gemma4Config(
        text_config=hf.Gemma4TextConfig(**text), vision_config=vision, image_token_id=IMAGE, video_token_id=VIDEO,
        audio_token_id=AUDIO, boi_token_id=VISION_START, eoi_token_id=VISION_END, tie_word_embeddings=False,
    )  # fmt: skip
    return hf.Gemma4ForConditionalGeneration(config)


def _gemma4_prompt(seed: int) -> Inputs:
    before, between, after = texts(seed)
    sides = (8, 8), ((6, 8), (8, 4), (4, 6))[seed % 3]
    # Where each patch lies; -1 where an image has fewer than the largest.
    places = torch.full((2, 64, 2), -1)
    for place, (width, height) in zip(places, sides, strict=True):
        place[: width * height] = torch.cartesian_prod(torch.arange(height), torch.arange(width)).flip(-1)
    first, second = ([(VISION_START, 1), (IMAGE, width * height // 4), (VISION_END, 1)] for width, height in sides)
    inputs = tokens(seed, before, *first, between, *second, after)
    return inputs | {
        "mm_token_type_ids": _kinds(inputs),
        "pixel_values": noise(seed, 2, 64, 3 * 4 * 4),
        "image_position_ids": places,
    }


def _paligemma() -> Any:
    config = hf.PaliGemmaConfig(
        text_config=hf.GemmaConfig(**text_sizes(head_dim=8)),
        vision_config=hf.SiglipVisionConfig(**vision_sizes(vision_use_head=False)),
        image_token_index=IMAGE,
        projection_dim=32,
        tie_word_embeddings=False,
    )
    return hf.PaliGemmaForConditionalGeneration(config)


def _paligemma_prompt(seed: int) -> Inputs:
    # 0 is the prefix, which sees all of itself.
    inputs = _llava_prompt(seed)
    return inputs | {"token_type_ids": torch.zeros_like(inputs["input_ids"])}


def _aya_vision() -> Any:
    config = hf.AyaVisionConfig(
        text_config=hf.Cohere2Config(**hybrid_sizes()),
        vision_config=hf.SiglipVisionConfig(**vision_sizes(image_size=32, vision_use_head=False)),
        image_token_index=IMAGE,
        downsample_factor=2,
        tie_word_embeddings=False,
    )
    return hf.AyaVisionForConditionalGeneration(config)


def _mistral3() -> Any:
    config = hf.Mistral3Config(
        text_config=hf.MistralConfig(**text_sizes(head_dim=8, sliding_window=None)),
        vision_config=hf.PixtralVisionConfig(**vision_sizes(image_size=32)),
        image_token_index=IMAGE,
        spatial_merge_size=2,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    return hf.Mistral3ForConditionalGeneration(config)


def _mistral3_prompt(seed: int) -> Inputs:
    before, between, after = texts(seed)
    height, width = ((24, 32), (32, 16), (16, 24))[seed % 3]
    # Rows of an image are set apart by text tokens.
    row = [(IMAGE, width // 8), (VISION_END, 1)]
    wide = row * (height // 8)
    high = [(IMAGE, 3), (VISION_END, 1)] * 4
    return tokens(seed, before, *wide, between, *high, after) | {
        "pixel_values": noise(seed, 2, 3, 32, 32),
        "image_sizes": torch.tensor([[height, width], [32, 24]]),
    }


def _qwen2_audio() -> Any:
    audio: dict[str, Any] = dict(
        num_mel_bins=8, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16, d_model=16,
        max_source_positions=40,
    )  # fmt: skip
    config = hf.Qwen2AudioConfig(
        text_config=hf.Qwen2Config(**text_sizes()), audio_config=audio, audio_token_index=AUDIO
    )
    return hf.Qwen2AudioForConditionalGeneration(config)


def _qwen2_audio_prompt(seed: int) -> Inputs:
    before, between, after = texts(seed)
    # Four mel frames make a token; the second sound is shorter than its frames.
    inputs = tokens(seed, before, (AUDIO, 20), between, (AUDIO, 12), after)
    heard = torch.arange(80) < torch.tensor([[80], [48]])
    return inputs | {"input_features": noise(seed, 2, 8, 80), "feature_attention_mask": heard.long()}


def _voxtral() -> Any:
    audio: dict[str, Any] = dict(
        num_mel_bins=8, num_hidden_layers=1, num_attention_heads=2, hidden_size=16, intermediate_size=64,
        max_source_positions=80,
    )  # fmt: skip
    text = text_sizes(model_type="llama", head_dim=8)
    config = hf.VoxtralConfig(text_config=text, audio_config=audio, audio_token_id=AUDIO)
    return hf.VoxtralForConditionalGeneration(config)


def _voxtral_prompt(seed: int) -> Inputs:
    return two(seed, AUDIO, 20) | {"input_features": noise(seed, 2, 8, 160)}


def _text_prompt(seed: int) -> Inputs:
    return tokens(seed, (70, 61, 80)[seed % 3])


def _llama() -> Any:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**text_sizes()))


def _qwen3() -> Any:
    return hf.Qwen3ForCausalLM(hf.Qwen3Config(**text_sizes(head_dim=8)))


def _gemma2() -> Any:
    # A cap that bites: these logits are small.
    text = hybrid_sizes(query_pre_attn_scalar=16, attn_logit_softcapping=1.0, final_logit_softcapping=5.0)
    # Up to transformers 5.17 the default, sdpa, leaves the cap out without a word.
    return hf.Gemma2ForCausalLM(hf.Gemma2Config(**text, attn_implementation="eager"))


def _gpt_oss() -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e4}
    text = hybrid_sizes(num_local_experts=4, num_experts_per_tok=2, rope_parameters=rope)
    return hf.GptOssForCausalLM(hf.GptOssConfig(**text))


FAMILIES = {
    "llava": Family(_llava, _llava_prompt),
    "llava_next": Family(_llava_next, _anyres_prompt),
    "llava_next_video": Family(_llava_next_video, _next_video_prompt),
    "llava_onevision": Family(_llava_onevision, _onevision_prompt),
    "llava_onevision video": Family(_llava_onevision, _onevision_video_prompt),
    "qwen2_vl": Family(_qwen2_vl, qwen_prompt, mrope=True),
    "qwen2_5_vl": Family(_qwen2_5_vl, qwen_prompt, mrope=True),
    "qwen2_5_vl video": Family(_qwen2_5_vl, _qwen2_5_video_prompt, mrope=True),
    "qwen3_vl": Family(_qwen3_vl, qwen_prompt, mrope=True),
    "qwen3_vl video": Family(_qwen3_vl, _qwen3_video_prompt, mrope=True),
    "qwen3_vl_moe": Family(_qwen3_vl_moe, qwen_prompt, mrope=True),
    "qwen3_5": Family(_qwen3_5, qwen_prompt, full_layers=(1, 3), layers=4, mrope=True),
    "glm4v": Family(_glm4v, qwen_prompt, mrope=True),
    "internvl": Family(_internvl, _internvl_prompt),
    "smolvlm": Family(_smolvlm, _smolvlm_prompt),
    "idefics3": Family(_idefics3, _smolvlm_prompt),
    "gemma3": Family(_gemma3, _gemma3_prompt, full_layers=(1, 3), layers=4),
    "gemma4": Family(_gemma4, _gemma4_prompt, full_layers=(1, 3), layers=4),
    "paligemma": Family(_paligemma, _paligemma_prompt),
    "aya_vision": Family(_aya_vision, _internvl_prompt, full_layers=(1, 3), layers=4),
    "mistral3": Family(_mistral3, _mistral3_prompt),
    "qwen2_audio": Family(_qwen2_audio, _qwen2_audio_prompt),
    "voxtral": Family(_voxtral, _voxtral_prompt),
    "llama": Family(_llama, _text_prompt),
    "qwen3": Family(_qwen3, _text_prompt),
    "gemma2": Family(_gemma2, _text_prompt, full_layers=(1, 3), layers=4),
    "gpt_oss": Family(_gpt_oss, _text_prompt, full_layers=(1, 3), layers=4),
}


def _deepseek_v3() -> Any:
    # Latent attention: the cache holds what the keys are made of.
    sizes = dict(
        kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8, n_routed_experts=4,
        num_experts_per_tok=2, n_group=1, topk_group=1, moe_intermediate_size=16, n_shared_experts=1,
    )  # fmt: skip
    text = text_sizes(num_key_value_heads=4, first_k_dense_replace=1, **sizes)
    return hf.DeepseekV3ForCausalLM(hf.DeepseekV3Config(**text))


def _falcon() -> Any:
    # It calls sdpa by itself.
    config = hf.FalconConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    return hf.FalconForCausalLM(config)


def _mistral_sliding() -> Any:
    return hf.MistralForCausalLM(hf.MistralConfig(**text_sizes(sliding_window=16)))


def _diffllama() -> Any:
    # Two attentions per layer, over the same keys and halves of the values.
    return hf.DiffLlamaForCausalLM(hf.DiffLlamaConfig(**text_sizes()))


def _doge() -> Any:
    # Its mask is made from the values, at every step from all of them.
    return hf.DogeForCausalLM(hf.DogeConfig(**text_sizes()))


UNSUPPORTED = {
    "deepseek_v3": Family(_deepseek_v3, _text_prompt),
    "falcon": Family(_falcon, _text_prompt),
    "mistral sliding": Family(_mistral_sliding, _text_prompt),
    "diffllama": Family(_diffllama, _text_prompt),
    "doge": Family(_doge, _text_prompt),
}
"""Models whose attention eviction does not fit; each for a reason of its own."""
