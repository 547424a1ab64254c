"""Models whose language model is published elsewhere: a folder of eyes, a connector and a LoRA, put together here.

Beside transformers' own `config.json`, `generation_config.json`, `preprocessor_config.json` and
`chat_template.jinja`, the folder holds

    adapter.json          {"base": name or folder of the language model, "strength": of the LoRA,
                           "tokens": those that the vocabulary grows by, "most_pixels": longest edge of a picture}
    adapter*.safetensors  `vision_model.*` and `connector.*` as in `SmolVLMModel`, `framing` [tokens, hidden], and
                          `layers.N.PROJECTION.lora_A` [rank, in] and `.lora_B` [out, rank] of any projections of the
                          language model's layers; in several files where one would be too large for the repository.

What comes out is a `SmolVLMForConditionalGeneration` in memory like any other; nothing is written.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, SmolVLMConfig, SmolVLMForConditionalGeneration
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from madakv.bundled.tiles import TileProcessor
from madakv.errors import ConfigurationError
from madakv.model_weights import check_weights

DESCRIPTION = "adapter.json"
_PARTS = ("self_attn", "mlp")


@dataclass(frozen=True)
class Description:
    """What `adapter.json` says, see above."""

    base: str
    strength: float
    tokens: tuple[str, ...]
    most_pixels: int


def description(folder: Path) -> Description | None:
    """Of a folder that is to be put together with a language model; None of any other.

    Raises:
        ConfigurationError: an `adapter.json` that does not say what it should.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        return None
    try:
        said = json.loads(path.read_text())
        tokens = tuple(str(token) for token in said["tokens"])
        return Description(str(said["base"]), float(said["strength"]), tokens, int(said["most_pixels"]))
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigurationError(
            f"{DESCRIPTION} does not say base, strength, tokens and most_pixels ({error!r}): fetch it again"
        ) from None


def load(folder: Path, base: Path, dtype: str | torch.dtype) -> tuple[Any, Any]:
    """The model and its processor.

    Args:
        folder: one that has a `description`.
        base: the folder of the language model that this names.
        dtype: of the model; "auto" takes that of `config.json`.

    Raises:
        ConfigurationError: parts that do not fit together.
    """
    said = description(folder)
    if said is None:
        raise ConfigurationError(f"{folder} has no {DESCRIPTION}")
    config = SmolVLMConfig.from_pretrained(folder)
    state = merged(_tensors(folder, "adapter*.safetensors"), _tensors(base, "*.safetensors"), said.strength)
    if dtype == "auto":
        dtype = config.dtype or torch.float32
    auto: Any = SmolVLMForConditionalGeneration
    model, info = auto.from_pretrained(
        None, config=config, state_dict=state, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
    )
    check_weights(model, info)
    model.name_or_path = str(folder)
    generation = folder / "generation_config.json"
    if generation.is_file():
        model.generation_config = type(model.generation_config).from_pretrained(folder)
    return model, _processor(folder, base, config, said)


def merged(adapter: dict[str, Tensor], base: dict[str, Tensor], strength: float) -> dict[str, Tensor]:
    """The state of the whole, fp32: the base's projections with W + strength * B @ A, its vocabulary with new rows.

    Args:
        adapter, base: tensors by their names in the files.
        strength: of the LoRA.

    Raises:
        ConfigurationError: the LoRA is for projections that the base does not have, or of other sizes.
    """
    state = {f"model.text_model.{name.removeprefix('model.')}": tensor.float() for name, tensor in base.items()}
    state.pop("model.text_model.lm_head.weight", None)
    try:
        words = "model.text_model.embed_tokens.weight"
        state[words] = torch.cat([state[words], adapter["framing"].float()])
        for name, tensor in adapter.items():
            if name.startswith(("vision_model.", "connector.")):
                state[f"model.{name}"] = tensor.float()
            elif name.endswith(".lora_A"):
                name = name.removesuffix(".lora_A")
                added = strength * (adapter[name + ".lora_B"].float() @ tensor.float())
                weight = next(key for part in _PARTS if (key := _projection(name, part)) in state)
                state[weight] = state[weight] + added
    except (KeyError, StopIteration, RuntimeError) as error:
        told = str(error) or f"no projection {name}"
        raise ConfigurationError(f"the adapter does not fit its language model: {' '.join(told.split())}") from None
    return state


def _projection(name: str, part: str) -> str:
    """`layers.3.q_proj` as the model's own name of the weight, if it is one of `part`."""
    layers, number, projection = name.split(".")
    return f"model.text_model.{layers}.{number}.{part}.{projection}.weight"


def _tensors(folder: Path, pattern: str) -> dict[str, Tensor]:
    files = sorted(folder.glob(pattern))
    if not files:
        raise ConfigurationError(f"{folder} holds no {pattern}")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _processor(folder: Path, base: Path, config: Any, said: Description) -> TileProcessor:
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(list(said.tokens), special_tokens=True)
    tokenizer.padding_side = "left"
    vision = config.vision_config
    return TileProcessor(
        image_processor=SmolVLMImageProcessorPil.from_pretrained(folder),
        tokenizer=tokenizer,
        image_seq_len=(vision.image_size // vision.patch_size // config.scale_factor) ** 2,
        most=said.most_pixels,
        chat_template=(folder / "chat_template.jinja").read_text(),
    )
