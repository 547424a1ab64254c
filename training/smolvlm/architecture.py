"""transformers' own SmolVLM around SmolLM2: its eyes, its special tokens, its processor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import SmolVLMConfig
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMConnector, SmolVLMVisionTransformer

TEXT_HIDDEN, TEXT_VOCABULARY = 576, 49152
SIDE, PATCH, SCALE = 64, 8, 2
VISUAL_TOKENS = (SIDE // PATCH // SCALE) ** 2
VISION: dict[str, Any] = {
    "hidden_size": 160,
    "intermediate_size": 640,
    "num_hidden_layers": 5,
    "num_attention_heads": 5,
    "image_size": SIDE,
    "patch_size": PATCH,
}
"""2.0 M parameters with the connector."""


class Eyes(nn.Module):
    """The class's vision tower and connector, in the names that they have within `SmolVLMModel`."""

    def __init__(self, config: SmolVLMConfig) -> None:
        super().__init__()
        self.vision_model: Any = SmolVLMVisionTransformer(config.vision_config)
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


def eyes_config(text: Any) -> SmolVLMConfig:
    """The model's configuration around a text model's."""
    return SmolVLMConfig(
        vision_config=dict(VISION),
        text_config=text,
        scale_factor=SCALE,
        image_token_id=TEXT_VOCABULARY,
        tie_word_embeddings=True,
    )
