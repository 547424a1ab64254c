"""The two small models of the long documents and their processors, built from their configurations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from madakv.bundled.processor import PictureProcessor
from madakv.evaluation.digits import IMAGE_MARK
from madakv.evaluation.documents import WORDS
from madakv.evaluation.documents.document import SEVERAL_SIZES, SIZES
from madakv.evaluation.documents.pictures import SIZE

UNK, PAD, EOS = "<unk>", "<pad>", "</s>"
VISION_START, VISION_END, VIDEO_MARK = "<vision>", "</vision>", "<video>"
VOCABULARY: dict[str, int] = {
    word: i for i, word in enumerate((UNK, PAD, EOS, IMAGE_MARK, VISION_START, VISION_END, VIDEO_MARK, *WORDS))
}
CELL = 8
"""Pixels that one token stands for, in each direction."""
HIDDEN = 192
LAYERS = 6
HEADS = 6
MAX_POSITIONS = 8192
ROPE: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 2048,
}
"""Llama 3.1's: over 4,096 positions one of a head's 16 rotations turned by less than a radian, and now three do."""
# Pixels are 0 to 255 in the documents and -1 to 1 in the vision tower.
PIXEL_MEAN = PIXEL_STD = 0.5

LLAVA_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['content'] is string %}{{ message['content'] }} "
    "{% else %}{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}<image> {% elif item['type'] == 'text' %}{{ item['text'] }} {% endif %}"
    "{% endfor %}{% endif %}"
    "{% endfor %}"
)


@dataclass(frozen=True)
class Architecture:
    """What differs between the two models.

    Attributes:
        name: the folder of the model.
        sizes: of its pictures, (height, width).
        framed: whether a picture's tokens stand between `VISION_START` and `VISION_END`.
    """

    name: str
    sizes: Sequence[tuple[int, int]]
    framed: bool

    def picture_ids(self, height: int, width: int) -> list[int]:
        """The ids that stand for a picture."""
        ids = [VOCABULARY[IMAGE_MARK]] * (height // CELL * (width // CELL))
        return [VOCABULARY[VISION_START], *ids, VOCABULARY[VISION_END]] if self.framed else ids

    def build(self) -> Any:
        """A freshly initialised model; seed torch before calling it."""
        model: Any = _llava() if self.name == "small-llava" else _qwen()
        model.generation_config = GenerationConfig(
            do_sample=False, max_new_tokens=32, eos_token_id=VOCABULARY[EOS], pad_token_id=VOCABULARY[PAD]
        )
        return model

    def processor(self) -> Any:
        """The processor that goes with the model."""
        return _llava_processor() if self.name == "small-llava" else _qwen_processor()

    def export(self, model: Any, folder: Path) -> None:
        """Write everything that `from_pretrained` needs into `folder`: weights in bf16, to be loaded as fp32."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
        halved = type(model)(model.config).to(torch.bfloat16)
        halved.load_state_dict(weights)
        halved.generation_config = model.generation_config
        halved.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n")
        # The writer makes weights private, and a package keeps the mode of its files.
        (folder / "model.safetensors").chmod(0o644)
        self.processor().save_pretrained(folder)


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture("small-llava", SIZES, framed=False),
        Architecture("small-qwen2.5-vl", SEVERAL_SIZES, framed=True),
    )
}

_TEXT: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": HIDDEN,
    "intermediate_size": 3 * HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": MAX_POSITIONS,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": VOCABULARY[EOS],
    "pad_token_id": VOCABULARY[PAD],
}


def _llava() -> LlavaForConditionalGeneration:
    """A CLIP tower of 3 layers, and a Llama of 6 layers with 6 heads of 32 dimensions (5.0 M parameters)."""
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=CELL,
        projection_dim=128,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**_TEXT, num_key_value_heads=HEADS, rope_parameters={**ROPE}),
        image_token_index=VOCABULARY[IMAGE_MARK],
        image_seq_length=(SIZE // CELL) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    _initialise(model.model.vision_tower, 0.06)
    _initialise(model.model.multi_modal_projector, 0.06)
    _initialise(model.model.language_model, 0.02)
    nn.init.normal_(model.lm_head.weight, std=0.02)
    return model


def _qwen() -> Qwen2_5_VLForConditionalGeneration:
    """Windowed vision of 3 layers, and a Qwen2 of 6 layers with 6 query and 3 KV heads of 32 dimensions (5.1 M)."""
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 3,
            "hidden_size": 128,
            "intermediate_size": 288,
            "num_heads": 4,
            "patch_size": CELL // 2,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 32,
            "fullatt_block_indexes": [2],
            "out_hidden_size": HIDDEN,
        },
        text_config={
            **_TEXT,
            "num_key_value_heads": HEADS // 2,
            "rope_parameters": {**ROPE, "mrope_section": [4, 6, 6]},
        },
        image_token_id=VOCABULARY[IMAGE_MARK],
        video_token_id=VOCABULARY[VIDEO_MARK],
        vision_start_token_id=VOCABULARY[VISION_START],
        vision_end_token_id=VOCABULARY[VISION_END],
        tie_word_embeddings=False,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    _initialise(model.model.visual, 0.06)
    _initialise(model.model.language_model, 0.02)
    nn.init.normal_(model.lm_head.weight, std=0.02)
    return model


def _initialise(module: nn.Module, std: float) -> None:
    """A wider start of the text model delays induction heads; a narrower one of the tower delays reading."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=std)
    for part in module.modules():
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
        class_embedding = getattr(part, "class_embedding", None)
        if isinstance(class_embedding, torch.Tensor):
            nn.init.normal_(class_embedding, std=std)


def _tokenizer(**extra: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNK,
        pad_token=PAD,
        eos_token=EOS,
        padding_side="left",
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
        extra_special_tokens={"image_token": IMAGE_MARK, **extra},
    )


def _llava_processor() -> LlavaProcessor:
    images = CLIPImageProcessorPil(
        size={"height": SIZE, "width": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        do_center_crop=False,
        image_mean=[PIXEL_MEAN] * 3,
        image_std=[PIXEL_STD] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=_tokenizer(),
        patch_size=CELL,
        # CLIP's class token counts as one more than the patches, and the "default" strategy drops it again.
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=LLAVA_TEMPLATE,
    )


def _qwen_processor() -> Any:
    images = Qwen2VLImageProcessorPil(
        patch_size=CELL // 2,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": SIZE * SIZE, "longest_edge": 16 * SIZE * SIZE},
        image_mean=[PIXEL_MEAN] * 3,
        image_std=[PIXEL_STD] * 3,
    )
    framed = f"{VISION_START} {IMAGE_MARK} {VISION_END}"
    return PictureProcessor(
        image_processor=images,
        tokenizer=_tokenizer(video_token=VIDEO_MARK, vision_start_token=VISION_START, vision_end_token=VISION_END),
        chat_template=LLAVA_TEMPLATE.replace("<image>", framed),
    )
