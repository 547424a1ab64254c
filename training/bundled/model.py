"""The architecture of the bundled model and its processor, built from nothing but their configurations."""

from __future__ import annotations

from pathlib import Path

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
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from madakv.evaluation.digits import IMAGE_MARK, IMAGE_SIZE, WORDS

UNK, PAD, EOS = "<unk>", "<pad>", "</s>"
VOCABULARY: dict[str, int] = {word: i for i, word in enumerate((UNK, PAD, EOS, IMAGE_MARK, *WORDS))}
PATCH = 8
TOKENS_PER_IMAGE = (IMAGE_SIZE // PATCH) ** 2
MAX_POSITIONS = 1024
# Pixels are 0 to 255 in the documents and -1 to 1 in the vision tower.
PIXEL_MEAN = PIXEL_STD = 0.5

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['content'] is string %}{{ message['content'] }} "
    "{% else %}{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}<image> {% elif item['type'] == 'text' %}{{ item['text'] }} {% endif %}"
    "{% endfor %}{% endif %}"
    "{% endfor %}"
)


def build_config() -> LlavaConfig:
    """A CLIP tower of 3 layers and a Llama of 4 layers, 6 heads each of 32 dimensions."""
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        projection_dim=128,
    )
    text = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=192,
        intermediate_size=576,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=VOCABULARY[EOS],
        pad_token_id=VOCABULARY[PAD],
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=VOCABULARY[IMAGE_MARK],
        image_seq_length=TOKENS_PER_IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def build_model() -> LlavaForConditionalGeneration:
    """A freshly initialised model; seed torch before calling it."""
    model = LlavaForConditionalGeneration(build_config())
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=32,
        eos_token_id=VOCABULARY[EOS],
        pad_token_id=VOCABULARY[PAD],
    )
    # A wider start of the text model delays induction heads; a narrower one of the tower delays reading.
    _initialise(model.model.vision_tower, 0.06)
    _initialise(model.model.multi_modal_projector, 0.06)
    _initialise(model.model.language_model, 0.02)
    nn.init.normal_(model.lm_head.weight, std=0.02)
    return model


def _initialise(module: nn.Module, std: float) -> None:
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=std)
    for part in module.modules():
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
        class_embedding = getattr(part, "class_embedding", None)
        if isinstance(class_embedding, torch.Tensor):
            nn.init.normal_(class_embedding, std=std)


def build_processor() -> LlavaProcessor:
    """Word-level tokenizer with left padding, CLIP's image processor, and a template for chats."""
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNK,
        pad_token=PAD,
        eos_token=EOS,
        padding_side="left",
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
        extra_special_tokens={"image_token": IMAGE_MARK},
    )
    images = CLIPImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        do_center_crop=False,
        image_mean=[PIXEL_MEAN] * 3,
        image_std=[PIXEL_STD] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=fast,
        patch_size=PATCH,
        # CLIP's class token counts as one more than the patches, and the "default" strategy drops it again.
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
    )


def export(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Write everything that `from_pretrained` needs into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    # The writer makes weights private, and a package keeps the mode of its files.
    (folder / "model.safetensors").chmod(0o644)
    build_processor().save_pretrained(folder)
