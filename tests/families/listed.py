"""More tiny models of real classes: families that need no more of madakv than their row in its table."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from tests.families import zoo
from tests.families.zoo import AUDIO, IMAGE, VIDEO, VISION_END, VISION_START, VOCAB, Family, Inputs, hf


def _pictures(seed: int, tokens: int = 16, size: int = 16) -> Inputs:
    return zoo.two(seed, IMAGE, tokens) | {"pixel_values": zoo.noise(seed, 2, 3, size, size)}


def _pictures_of_32(seed: int) -> Inputs:
    return _pictures(seed, size=32)


def _aria() -> Any:
    text = zoo.text_sizes(head_dim=8, moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1)
    config = hf.AriaConfig(
        text_config=hf.AriaTextConfig(**text),
        vision_config=hf.Idefics3VisionConfig(**zoo.vision_sizes()),
        projector_patch_to_query_dict={16: 8},
        image_token_index=IMAGE,
    )
    return hf.AriaForConditionalGeneration(config)


def _aria_prompt(seed: int) -> Inputs:
    return _pictures(seed, tokens=8)


def _cohere2_vision() -> Any:
    config = hf.Cohere2VisionConfig(
        text_config=hf.Cohere2Config(**zoo.hybrid_sizes()),
        vision_config=hf.SiglipVisionConfig(**zoo.vision_sizes(image_size=32, vision_use_head=False)),
        image_token_id=IMAGE,
        downsample_factor=2,
        alignment_intermediate_size=32,
        tie_word_embeddings=False,
    )
    return hf.Cohere2VisionForConditionalGeneration(config)


def _vipllava() -> Any:
    config = hf.VipLlavaConfig(
        text_config=hf.LlamaConfig(**zoo.text_sizes()),
        # The projector reads layers as early as the last but ten.
        vision_config=hf.CLIPVisionConfig(**zoo.vision_sizes(num_hidden_layers=11)),
        image_token_index=IMAGE,
    )
    return hf.VipLlavaForConditionalGeneration(config)


def _video_llava() -> Any:
    config = hf.VideoLlavaConfig(
        text_config=hf.LlamaConfig(**zoo.text_sizes()),
        vision_config=hf.CLIPVisionConfig(**zoo.vision_sizes()),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
    )
    return hf.VideoLlavaForConditionalGeneration(config)


def _video_llava_prompt(seed: int) -> Inputs:
    before, between, after = zoo.texts(seed)
    # Frames keep the token that stands for the whole, pictures lose it.
    return zoo.tokens(seed, before, (IMAGE, 16), between, (VIDEO, 8 * 17), after) | {
        "pixel_values_images": zoo.noise(seed, 1, 3, 16, 16),
        "pixel_values_videos": zoo.noise(seed + 50, 1, 8, 3, 16, 16),
    }


def _sam(**changes: Any) -> dict[str, Any]:
    sizes: dict[str, Any] = dict(
        output_channels=8, num_hidden_layers=1, window_size=4, global_attn_indexes=[0], mlp_dim=16
    )
    return zoo.vision_sizes(**sizes | changes)


def _got_ocr2() -> Any:
    config = hf.GotOcr2Config(
        text_config=hf.Qwen2Config(**zoo.text_sizes()),
        vision_config=_sam(image_size=64),
        image_token_index=IMAGE,
        image_seq_length=16,
        tie_word_embeddings=False,
    )
    return hf.GotOcr2ForConditionalGeneration(config)


def _got_ocr2_prompt(seed: int) -> Inputs:
    return _pictures(seed, size=64)


def _deepseek_vl() -> Any:
    config = hf.DeepseekVLConfig(
        text_config=hf.LlamaConfig(**zoo.text_sizes()),
        vision_config=hf.SiglipVisionConfig(**zoo.vision_sizes(vision_use_head=False)),
        image_token_id=IMAGE,
        tie_word_embeddings=False,
    )
    return hf.DeepseekVLForConditionalGeneration(config)


def _deepseek_vl_hybrid() -> Any:
    config = hf.DeepseekVLHybridConfig(
        text_config=hf.LlamaConfig(**zoo.text_sizes()),
        vision_config=hf.SiglipVisionConfig(**zoo.vision_sizes(vision_use_head=False)),
        high_res_vision_config=hf.SamVisionConfig(**_sam(image_size=32)),
        image_token_id=IMAGE,
        tie_word_embeddings=False,
    )
    return hf.DeepseekVLHybridForConditionalGeneration(config)


def _deepseek_vl_hybrid_prompt(seed: int) -> Inputs:
    return _pictures(seed) | {"high_res_pixel_values": zoo.noise(seed + 50, 2, 3, 32, 32)}


def _janus() -> Any:
    quantizer: dict[str, Any] = dict(
        embed_dim=4, num_embeddings=16, latent_channels=32, base_channels=32, channel_multiplier=[1],
        num_res_blocks=1, num_patches=4, projection_dim=32, num_hidden_layers=1, image_token_embed_dim=32,
    )  # fmt: skip
    config = hf.JanusConfig(
        text_config=hf.LlamaConfig(**zoo.text_sizes()),
        vision_config=zoo.vision_sizes(mlp_ratio=1, projection_dim=32, depth=1, num_image_tokens=16),
        vq_config=quantizer,
        image_token_id=IMAGE,
        tie_word_embeddings=False,
    )
    return hf.JanusForConditionalGeneration(config)


_CODES = 8


def _emu3() -> Any:
    quantizer: dict[str, Any] = dict(
        codebook_size=_CODES, embed_dim=4, latent_channels=4, base_channels=32, channel_multiplier=[1, 1],
        num_res_blocks=1, attn_resolutions=[], hidden_size=32,
    )  # fmt: skip
    # A picture is made of words of the vocabulary.
    words = {f"<|visual token {code:06}|>": 80 + code for code in range(_CODES)}
    config = hf.Emu3Config(
        text_config=zoo.text_sizes(),
        vq_config=quantizer,
        vocabulary_map=words | {"<image>": IMAGE, "<|extra_200|>": VISION_END},
        tie_word_embeddings=False,
    )
    return hf.Emu3ForConditionalGeneration(config)


def _emu3_prompt(seed: int) -> Inputs:
    # Each row of a picture ends with a token of its own.
    return zoo.two(seed, IMAGE, 4 * 5) | {
        "pixel_values": zoo.noise(seed, 2, 3, 8, 8),
        "image_sizes": torch.tensor([[8, 8], [8, 8]]),
    }


def _chameleon() -> Any:
    quantizer: dict[str, Any] = dict(
        embed_dim=4, num_embeddings=_CODES, latent_channels=32, resolution=16, base_channels=32,
        channel_multiplier=[1, 1], num_res_blocks=1,
    )  # fmt: skip
    words = {f"IMGIMG{chr(ord('A') + code)}Z": 80 + code for code in range(_CODES)}
    config = hf.ChameleonConfig(**zoo.text_sizes(), vq_config=quantizer, vocabulary_map=words | {"<image>": IMAGE})
    return hf.ChameleonForConditionalGeneration(config)


def _chameleon_prompt(seed: int) -> Inputs:
    return _pictures(seed, tokens=64)


def _fuyu() -> Any:
    text = zoo.text_sizes()
    config = hf.FuyuConfig(
        text_config=hf.PersimmonConfig(**text),
        patch_size=4,
        image_token_id=IMAGE,
        # Where older versions look for it.
        hidden_size=text["hidden_size"],
    )
    return hf.FuyuForCausalLM(config)


def _fuyu_prompt(seed: int) -> Inputs:
    # Patches, with no tower; older versions have another name for them.
    taken = inspect.signature(hf.FuyuForCausalLM.forward).parameters
    name = "pixel_values" if "pixel_values" in taken else "image_patches"
    before, between, after = zoo.texts(seed)
    # A token of text ends each line of patches.
    lines = [(IMAGE, 4), (VISION_END, 1)] * 4
    return zoo.tokens(seed, before, *lines, between, *lines, after) | {name: zoo.noise(seed, 1, 32, 4 * 4 * 3)}


def _llama4() -> Any:
    text = zoo.text_sizes(
        num_hidden_layers=4, head_dim=8, intermediate_size_mlp=48, num_local_experts=2, attention_chunk_size=16,
        no_rope_layers=[1, 0, 1, 0],
    )  # fmt: skip
    vision = zoo.vision_sizes(
        intermediate_size=64, vision_output_dim=16, projector_input_dim=16, projector_output_dim=16, image_size=32
    )
    config = hf.Llama4Config(
        text_config=text,
        vision_config=vision,
        image_token_index=IMAGE,
        boi_token_index=VISION_START,
        eoi_token_index=VISION_END,
        tie_word_embeddings=False,
    )
    return hf.Llama4ForConditionalGeneration(config)


def _glm4v_moe() -> Any:
    text = zoo.mrope_sizes(
        n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=16
    )
    text["rope_parameters"] |= {"partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}
    config = hf.Glm4vMoeConfig(text_config=text, vision_config=zoo.GLM_VISION, **zoo.GLM_IDS)
    return hf.Glm4vMoeForConditionalGeneration(config)


def _glm46v() -> Any:
    text = zoo.mrope_sizes()
    text["rope_parameters"] |= {"partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}
    config = hf.Glm46VConfig(text_config=text, vision_config=zoo.GLM_VISION, **zoo.GLM_IDS)
    return hf.Glm46VForConditionalGeneration(config)


def _ernie4_5_vl_moe() -> Any:
    text = zoo.mrope_sizes(moe_num_experts=4, moe_k=2, moe_num_shared_experts=1, moe_intermediate_size=[16, 16])
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2]}
    vision: dict[str, Any] = dict(depth=1, hidden_size=16, num_heads=2, patch_size=4, intermediate_size=16)
    config = hf.Ernie4_5_VLMoeConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=VIDEO,
        image_start_token_id=VISION_START, image_end_token_id=VISION_END, video_start_token_id=88,
        video_end_token_id=89, tie_word_embeddings=False,
    )  # fmt: skip
    return hf.Ernie4_5_VLMoeForConditionalGeneration(config)


def _ernie_prompt(seed: int) -> Inputs:
    inputs = zoo.qwen_prompt(seed)
    patches = inputs["pixel_values"].shape[0]
    # Which expert sees a token is told apart from where it stands.
    kinds = inputs["mm_token_type_ids"]
    return inputs | {"pixel_values": zoo.noise(seed, patches, 3 * 4 * 4), "moe_mm_token_type_ids": kinds.clone()}


def _qwen2_5_omni_thinker() -> Any:
    audio: dict[str, Any] = dict(
        num_mel_bins=8, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16, d_model=16,
        max_source_positions=80, n_window=20, output_dim=64,
    )  # fmt: skip
    vision: dict[str, Any] = dict(
        depth=1, hidden_size=16, out_hidden_size=64, intermediate_size=16, num_heads=2, patch_size=4, window_size=16,
        fullatt_block_indexes=[0],
    )  # fmt: skip
    config = hf.Qwen2_5OmniThinkerConfig(
        text_config=zoo.mrope_sizes(), vision_config=vision, audio_config=audio, image_token_index=IMAGE,
        video_token_index=VIDEO, audio_token_index=AUDIO, audio_start_token_id=88, audio_end_token_id=89,
        vision_start_token_id=VISION_START, vision_end_token_id=VISION_END,
    )  # fmt: skip
    return hf.Qwen2_5OmniThinkerForConditionalGeneration(config)


def _omni_prompt(seed: int, sound: int, frames: int) -> Inputs:
    before, between, after = zoo.texts(seed)
    grid = zoo.GRIDS[seed % 3]
    picture = [(VISION_START, 1), (IMAGE, zoo.grid_tokens(grid)), (VISION_END, 1)]
    return zoo.tokens(seed, before, *picture, between, (88, 1), (AUDIO, sound), (89, 1), after) | {
        "pixel_values": zoo.noise(seed, 4 * zoo.grid_tokens(grid), zoo.PATCH_VALUES),
        "image_grid_thw": torch.tensor([grid]),
        "input_features": zoo.noise(seed, 1, 8, frames),
        "feature_attention_mask": torch.ones(1, frames, dtype=torch.int64),
    }


def _qwen2_5_omni_prompt(seed: int) -> Inputs:
    return _omni_prompt(seed, sound=20, frames=80)


def _qwen3_omni_moe_thinker() -> Any:
    audio: dict[str, Any] = dict(
        num_mel_bins=8, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16, d_model=16,
        max_source_positions=100, n_window_infer=100, output_dim=64, downsample_hidden_size=4,
    )  # fmt: skip
    vision: dict[str, Any] = dict(
        depth=2, hidden_size=16, out_hidden_size=64, intermediate_size=16, num_heads=2, patch_size=4,
        num_position_embeddings=16, deepstack_visual_indexes=[0],
    )  # fmt: skip
    text = zoo.mrope_sizes(head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
    text["rope_parameters"] |= {"mrope_interleaved": True}
    config = hf.Qwen3OmniMoeThinkerConfig(
        text_config=text, vision_config=vision, audio_config=audio, image_token_id=IMAGE, video_token_id=VIDEO,
        audio_token_id=AUDIO, audio_start_token_id=88, vision_start_token_id=VISION_START,
    )  # fmt: skip
    return hf.Qwen3OmniMoeThinkerForConditionalGeneration(config)


def _qwen3_omni_prompt(seed: int) -> Inputs:
    return _omni_prompt(seed, sound=13, frames=100)


def _qwen3_5_moe() -> Any:
    vision: dict[str, Any] = dict(
        depth=1, hidden_size=16, out_hidden_size=64, intermediate_size=16, num_heads=2, patch_size=4,
        num_position_embeddings=16,
    )  # fmt: skip
    text = _qwen3_5_text(
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16
    )
    config = hf.Qwen3_5MoeConfig(text_config=text, vision_config=vision, **zoo.VISION_IDS)
    return hf.Qwen3_5MoeForConditionalGeneration(config)


def _qwen3_5_text(**changes: Any) -> dict[str, Any]:
    text = zoo.mrope_sizes(
        num_hidden_layers=4, head_dim=16, layer_types=["linear_attention", "full_attention"] * 2,
        linear_num_value_heads=2, linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=8, **changes,
    )  # fmt: skip
    text["rope_parameters"] |= {"mrope_interleaved": True, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}
    return text


def _lfm2_vl() -> Any:
    text = zoo.text_sizes(
        num_hidden_layers=4, layer_types=["conv", "full_attention"] * 2, block_auto_adjust_ff_dim=False
    )
    del text["num_attention_heads"]
    config = hf.Lfm2VlConfig(
        text_config=hf.Lfm2Config(**text, num_attention_heads=4),
        vision_config=hf.Siglip2VisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, patch_size=4,
            num_patches=16, vision_use_head=False,
        ),
        image_token_id=IMAGE,
        projector_hidden_size=16,
        tie_word_embeddings=False,
    )  # fmt: skip
    return hf.Lfm2VlForConditionalGeneration(config)


def _lfm2_vl_prompt(seed: int) -> Inputs:
    before, between, after = zoo.texts(seed)
    # Patches of pictures of unlike sizes; four of them make a token.
    return zoo.tokens(seed, before, (IMAGE, 8), between, (IMAGE, 6), after) | {
        "pixel_values": zoo.noise(seed, 2, 32, 3 * 4 * 4),
        "spatial_shapes": torch.tensor([[4, 8], [6, 4]]),
        "pixel_attention_mask": (torch.arange(32) < torch.tensor([[32], [24]])).long(),
    }


def _idefics2() -> Any:
    perceiver: dict[str, Any] = dict(
        hidden_size=32, resampler_n_latents=8, resampler_depth=1, resampler_n_heads=2, resampler_head_dim=8,
        num_key_value_heads=1,
    )  # fmt: skip
    config = hf.Idefics2Config(
        text_config=hf.MistralConfig(**zoo.text_sizes(head_dim=8, sliding_window=None)),
        vision_config=zoo.vision_sizes(),
        perceiver_config=perceiver,
        image_token_id=IMAGE,
    )
    return hf.Idefics2ForConditionalGeneration(config)


def _idefics2_prompt(seed: int) -> Inputs:
    return zoo.two(seed, IMAGE, 8) | {
        "pixel_values": zoo.noise(seed, 1, 2, 3, 16, 16),
        "pixel_attention_mask": torch.ones(1, 2, 16, 16, dtype=torch.int64),
    }


def _ovis2() -> Any:
    config = hf.Ovis2Config(
        text_config=hf.Qwen2Config(**zoo.text_sizes()),
        vision_config=zoo.vision_sizes(vocab_size=32),
        image_token_id=IMAGE,
        visual_indicator_token_ids=[81, 82, 83, 84, 85],
        vocab_size=VOCAB,
        hidden_size=32,
        tie_word_embeddings=False,
    )
    return hf.Ovis2ForConditionalGeneration(config)


def _paddleocr_vl() -> Any:
    text = zoo.mrope_sizes(head_dim=16)
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
    config = hf.PaddleOCRVLConfig(
        text_config=text, vision_config=zoo.vision_sizes(), tie_word_embeddings=False, **zoo.VISION_IDS
    )
    return hf.PaddleOCRVLForConditionalGeneration(config)


def _paddleocr_prompt(seed: int) -> Inputs:
    inputs = zoo.qwen_prompt(seed)
    return inputs | {"pixel_values": zoo.noise(seed, inputs["pixel_values"].shape[0], 3, 4, 4)}


def _video_llama_3() -> Any:
    config = hf.VideoLlama3Config(
        text_config=hf.Qwen2Config(**zoo.text_sizes()),
        vision_config=zoo.vision_sizes(),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )
    return hf.VideoLlama3ForConditionalGeneration(config)


def _video_llama_3_prompt(seed: int) -> Inputs:
    before, between, after = zoo.texts(seed)
    return zoo.tokens(seed, before, (IMAGE, 8), between, (VIDEO, 3 * 6), after) | {
        "pixel_values": zoo.noise(seed, 4 * 8, 3 * 4 * 4),
        "image_grid_thw": torch.tensor([[1, 4, 8]]),
        "image_merge_sizes": torch.tensor([2]),
        "pixel_values_videos": zoo.noise(seed + 50, 3 * 24, 3 * 4 * 4),
        "video_grid_thw": torch.tensor([[3, 4, 6]]),
        "video_merge_sizes": torch.tensor([2]),
    }


def _lighton_ocr() -> Any:
    config = hf.LightOnOcrConfig(
        text_config=hf.Qwen3Config(**zoo.text_sizes(head_dim=8)),
        vision_config=hf.PixtralVisionConfig(**zoo.vision_sizes(image_size=32)),
        image_token_id=IMAGE,
        tie_word_embeddings=False,
    )
    return hf.LightOnOcrForConditionalGeneration(config)


def _lighton_ocr_prompt(seed: int) -> Inputs:
    before, between, after = zoo.texts(seed)
    return zoo.tokens(seed, before, (IMAGE, 12), between, (IMAGE, 16), after) | {
        "pixel_values": zoo.noise(seed, 2, 3, 32, 32),
        "image_sizes": torch.tensor([[24, 32], [32, 32]]),
    }


def _molmo2() -> Any:
    tower: dict[str, Any] = dict(hidden_size=16, num_attention_heads=2, num_key_value_heads=2, head_dim=8)
    vision = tower | dict(
        num_hidden_layers=2, intermediate_size=16, image_size=[16, 16], patch_size=4, num_position_embeddings=16
    )
    adapter = tower | dict(vision_feature_layer=[1, 0], intermediate_size=16, text_hidden_size=32)
    config = hf.Molmo2Config(
        text_config=zoo.text_sizes(head_dim=8, additional_vocab_size=8),
        vision_config=vision,
        adapter_config=adapter,
        image_patch_id=IMAGE,
        image_start_token_id=VISION_START,
        image_end_token_id=VISION_END,
    )
    return hf.Molmo2ForConditionalGeneration(config)


def _molmo2_prompt(seed: int) -> Inputs:
    # Four patches are pooled to a token; a picture is read as a whole, and once more in one crop.
    pooled = torch.arange(32).view(8, 4)
    return zoo.two(seed, IMAGE, 8) | {
        "pixel_values": zoo.noise(seed, 4, 16, 3 * 4 * 4),
        "image_token_pooling": torch.cat([pooled, 32 + pooled]),
        "image_grids": torch.tensor([[2, 2, 2, 2], [2, 2, 2, 2]]),
        "image_num_crops": torch.tensor([2, 2]),
    }


def _minicpmv4_6() -> Any:
    vision = zoo.vision_sizes(image_size=32, insert_layer_id=0)
    config = hf.MiniCPMV4_6Config(
        text_config=hf.Qwen3_5TextConfig(**_qwen3_5_text()),
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        insert_layer_id=0,
        patch_size=4,
    )
    return hf.MiniCPMV4_6ForConditionalGeneration(config)


def _minicpmv4_6_prompt(seed: int) -> Inputs:
    # Sixteen patches make a token.
    return zoo.two(seed, IMAGE, 4) | {
        "pixel_values": zoo.noise(seed, 1, 3, 4, 4 * (64 + 64)),
        "target_sizes": torch.tensor([[8, 8], [8, 8]], dtype=torch.int32),
    }


def _granite_speech() -> Any:
    encoder: dict[str, Any] = dict(
        input_dim=8, num_layers=2, hidden_dim=16, feedforward_mult=1, num_heads=2, dim_head=8, output_dim=8,
        context_size=10, max_pos_emb=16, dropout=0.0, conv_kernel_size=3,
    )  # fmt: skip
    projector: dict[str, Any] = dict(
        model_type="blip_2_qformer", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        encoder_hidden_size=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    config = hf.GraniteSpeechConfig(
        text_config=hf.GraniteConfig(**zoo.text_sizes()),
        encoder_config=encoder,
        projector_config=projector,
        audio_token_index=AUDIO,
        has_lora_adapter=False,
        window_size=10,
        downsample_rate=2,
        tie_word_embeddings=False,
    )
    return hf.GraniteSpeechForConditionalGeneration(config)


def _granite_speech_prompt(seed: int) -> Inputs:
    # Windows of ten frames become five tokens.
    return zoo.two(seed, AUDIO, 20) | {
        "input_features": zoo.noise(seed, 2, 40, 8),
        "input_features_mask": torch.ones(2, 20, dtype=torch.bool),
    }


def _audioflamingo3() -> Any:
    audio: dict[str, Any] = dict(
        num_mel_bins=8, num_hidden_layers=1, num_attention_heads=2, hidden_size=16, intermediate_size=16,
        max_source_positions=40,
    )  # fmt: skip
    config = hf.AudioFlamingo3Config(
        text_config=hf.Qwen2Config(**zoo.text_sizes()), audio_config=audio, audio_token_id=AUDIO
    )
    return hf.AudioFlamingo3ForConditionalGeneration(config)


def _audioflamingo3_prompt(seed: int) -> Inputs:
    return zoo.two(seed, AUDIO, 20) | {
        "input_features": zoo.noise(seed, 2, 8, 80),
        "input_features_mask": torch.ones(2, 80, dtype=torch.int64),
    }


def _phi4_multimodal() -> Any:
    vision = zoo.vision_sizes(image_size=16, crop_size=16, image_token_id=IMAGE)
    audio: dict[str, Any] = dict(
        hidden_size=16, intermediate_size=16, num_blocks=2, num_attention_heads=2, ext_pw_out_channel=16,
        depthwise_separable_out_channel=16, nemo_conv_channels=8, input_size=16, audio_token_id=AUDIO,
    )  # fmt: skip
    config = hf.Phi4MultimodalConfig(**zoo.text_sizes(), vision_config=vision, audio_config=audio)
    return hf.Phi4MultimodalForCausalLM(config)


def _phi4_multimodal_prompt(seed: int) -> Inputs:
    before, between, after = zoo.texts(seed)
    # The whole picture and one crop of it, each 2 x 2 tokens with one more per row, and one between them.
    return zoo.tokens(seed, before, (IMAGE, 13), between, (AUDIO, 10), after) | {
        "image_pixel_values": zoo.noise(seed, 1, 2, 3, 16, 16),
        "image_sizes": torch.tensor([[16, 16]]),
        "image_attention_mask": torch.ones(1, 2, 4, 4),
        "audio_input_features": zoo.noise(seed + 50, 1, 80, 16),
        "audio_embed_sizes": torch.tensor([10]),
    }


LISTED = {
    "aria": Family(_aria, _aria_prompt),
    "cohere2_vision": Family(_cohere2_vision, _pictures_of_32, full_layers=(1, 3), layers=4),
    "vipllava": Family(_vipllava, _pictures),
    "video_llava": Family(_video_llava, _video_llava_prompt),
    "got_ocr2": Family(_got_ocr2, _got_ocr2_prompt),
    "deepseek_vl": Family(_deepseek_vl, _pictures),
    "deepseek_vl_hybrid": Family(_deepseek_vl_hybrid, _deepseek_vl_hybrid_prompt),
    "janus": Family(_janus, _pictures),
    "emu3": Family(_emu3, _emu3_prompt),
    "chameleon": Family(_chameleon, _chameleon_prompt),
    "fuyu": Family(_fuyu, _fuyu_prompt),
    "llama4": Family(_llama4, _pictures_of_32, full_layers=(1, 3), layers=4),
    "glm4v_moe": Family(_glm4v_moe, zoo.qwen_prompt, mrope=True),
    "glm46v": Family(_glm46v, zoo.qwen_prompt, mrope=True),
    "ernie4_5_vl_moe": Family(_ernie4_5_vl_moe, _ernie_prompt, mrope=True),
    "qwen2_5_omni_thinker": Family(_qwen2_5_omni_thinker, _qwen2_5_omni_prompt, mrope=True),
    "qwen3_omni_moe_thinker": Family(_qwen3_omni_moe_thinker, _qwen3_omni_prompt, mrope=True),
    "qwen3_5_moe": Family(_qwen3_5_moe, zoo.qwen_prompt, full_layers=(1, 3), layers=4, mrope=True),
    "lfm2_vl": Family(_lfm2_vl, _lfm2_vl_prompt, full_layers=(1, 3), layers=4),
    "idefics2": Family(_idefics2, _idefics2_prompt),
    "ovis2": Family(_ovis2, _pictures),
    "paddleocr_vl": Family(_paddleocr_vl, _paddleocr_prompt, mrope=True),
    "video_llama_3": Family(_video_llama_3, _video_llama_3_prompt),
    "lighton_ocr": Family(_lighton_ocr, _lighton_ocr_prompt),
    "molmo2": Family(_molmo2, _molmo2_prompt),
    "minicpmv4_6": Family(_minicpmv4_6, _minicpmv4_6_prompt, full_layers=(1, 3), layers=4),
    "granite_speech": Family(_granite_speech, _granite_speech_prompt),
    "audioflamingo3": Family(_audioflamingo3, _audioflamingo3_prompt),
    "phi4_multimodal": Family(_phi4_multimodal, _phi4_multimodal_prompt),
}
