"""transformers' own SmolVLM around SmolLM2: its eyes, its special tokens."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor, nn
from transformers import SmolVLMConfig
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMConnector, SmolVLMVisionTransformer
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

TEXT_VOCABULARY = 49152
SIDE, PATCH, SCALE = 64, 8, 2
VISUAL_TOKENS = (SIDE // PATCH // SCALE) ** 2
MOST_TILES = 4
"""In each direction; larger pictures are scaled down."""
VISION: dict[str, Any] = {
    "hidden_size": 160,
    "intermediate_size": 640,
    "num_hidden_layers": 5,
    "num_attention_heads": 5,
    "image_size": SIDE,
    "patch_size": PATCH,
    "initializer_range": 0.03,
}
"""2.0 M parameters with the connector. A narrower start delays everything."""
IMAGE, AROUND, WHOLE = "<image>", "<fake_token_around_image>", "<global-img>"
_PLACES = [f"<row_{y}_col_{x}>" for y in range(1, MOST_TILES + 1) for x in range(1, MOST_TILES + 1)]
FRAMING = (IMAGE, AROUND, WHOLE, *_PLACES)
"""Tokens behind those of the language model, as the class's processor writes them."""


def expanded(rows: int, columns: int) -> str:
    """What the class's processor writes for a picture of so many tiles; none for one of a single tile."""
    text: str = get_image_prompt_string(rows, columns, VISUAL_TOKENS, AROUND, IMAGE, WHOLE)
    return text


def with_framing(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with `FRAMING` behind its own tokens."""
    larger = Tokenizer.from_str(tokenizer.to_str())
    larger.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in FRAMING])
    assert larger.token_to_id(IMAGE) == TEXT_VOCABULARY
    return larger


class Eyes(nn.Module):
    """The class's vision tower and connector, in the names that they have within `SmolVLMModel`."""

    def __init__(self, config: SmolVLMConfig) -> None:
        super().__init__()
        vision: Any = config.vision_config
        self.vision_model: Any = SmolVLMVisionTransformer(vision)
        self.connector: Any = SmolVLMConnector(config)

    def forward(self, pixels: Tensor) -> Tensor:
        """Visual tokens [n, 16, 576] of pictures [n, 3, 64, 64] (-1 to 1)."""
        return self.both(pixels, 0)[0]

    def both(self, pixels: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Visual tokens, and what vision patches [n, 64, hidden] are after `layer` layers.

        As `SmolVLMVisionTransformer.forward` has it for whole tiles, whose mask it would only build and drop.
        """
        tower = self.vision_model
        side = SIDE // PATCH
        whole = torch.ones(len(pixels), side, side, dtype=torch.bool, device=pixels.device)
        hidden = tower.embeddings(pixels, whole)
        middle = hidden
        for number, part in enumerate(tower.encoder.layers, start=1):
            hidden = part(hidden, None)
            if number == layer:
                middle = hidden
        tokens: Tensor = self.connector(tower.post_layernorm(hidden))
        return tokens, middle


def model_config(text: Any) -> SmolVLMConfig:
    """The model's configuration around a text model's, whose vocabulary grows by `FRAMING`."""
    settings = text.to_dict() | {"vocab_size": TEXT_VOCABULARY + len(FRAMING)}
    return SmolVLMConfig(
        vision_config=dict(VISION),
        text_config=settings,
        scale_factor=SCALE,
        image_token_id=TEXT_VOCABULARY,
        tie_word_embeddings=True,
    )
