"""Start a model from a trained one: what was learnt about copying and looking up need not be learnt again.

`small-llava` grows out of the bundled model, `small-qwen2.5-vl` takes over the text model of `small-llava`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from architecture import CELL, HEADS, VOCABULARY
from numpy.typing import NDArray
from rows import normalise, patches
from torch import Tensor
from torch.nn import functional as F

NEW_LAYERS = (2, 5)
"""The layers of the grown model that do nothing at first."""
IMITATION_STEPS = 600


def grow(model: Any, old: Any, old_vocabulary: dict[str, int]) -> None:
    """Make `model` (6 layers) compute what the bundled `old` (4 layers) does, as far as words are shared.

    New layers add nothing to the residual stream until they are trained. A word that the old model did not know
    starts as a noisy copy of one that it used alike: names and prose.
    """
    weights = model.state_dict()
    kept = [layer for layer in range(model.config.text_config.num_hidden_layers) if layer not in NEW_LAYERS]
    for name, tensor in old.state_dict().items():
        found = re.search(r"language_model\.layers\.(\d+)\.", name)
        if found:
            name = name.replace(f"layers.{found[1]}.", f"layers.{kept[int(found[1])]}.")
        if weights[name].shape == tensor.shape:
            weights[name] = tensor.clone()
    for layer in NEW_LAYERS:
        for part in ("self_attn.o_proj", "mlp.down_proj"):
            weights[f"model.language_model.layers.{layer}.{part}.weight"].zero_()
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = _words(weights[name], old.state_dict()[name], old_vocabulary)
    model.load_state_dict(weights)


def _words(new: Tensor, old: Tensor, old_vocabulary: dict[str, int]) -> Tensor:
    names = [old_vocabulary[f"n{number}"] for number in range(1, 21)]
    pictures = [old_vocabulary[f"i{number}"] for number in range(1, 13)]
    spread = old.std()
    for word, i in VOCABULARY.items():
        if word in old_vocabulary:
            new[i] = old[old_vocabulary[word]]
        elif re.fullmatch(r"n\d+", word):
            # Names are now of pictures too, which were i1 to i12.
            like = old[names].mean(0) if i % 2 else old[pictures].mean(0)
            new[i] = 0.7 * like + torch.randn_like(like) * spread
    return new


def adopt(model: Any, old: Any) -> None:
    """Give the Qwen `model` the text model of the Llava `old`; its KV heads start as means of those they replace."""
    weights = model.state_dict()
    groups = model.config.text_config.num_key_value_heads
    for name, tensor in old.state_dict().items():
        if name not in weights or "visual" in name:
            continue
        if weights[name].shape != tensor.shape:
            tensor = tensor.view(groups, HEADS // groups, -1, tensor.shape[1]).mean(1).flatten(0, 1)
        weights[name] = tensor.clone()
    model.load_state_dict(weights)


def imitate(model: Any, old: Any, pictures: Callable[[int], NDArray[np.uint8]], log: Callable[..., None]) -> None:
    """Teach the vision tower of the Qwen `model` to give the tokens that the Llava `old` gives for the same pictures.

    Args:
        model, old: on one device.
        pictures: from a step to uint8 [n, 32, 32, 3].
        log: takes fields of an entry.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.model.visual.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01)
    losses: list[float] = []
    for step in range(IMITATION_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 50, 2 * (IMITATION_STEPS - step) / IMITATION_STEPS)
        batch = pictures(step)
        pixels = normalise(batch).permute(0, 3, 1, 2).contiguous().to(device)
        grid = torch.tensor([[1, 2 * batch.shape[1] // CELL, 2 * batch.shape[2] // CELL]] * len(batch), device=device)
        with torch.no_grad():
            wanted = torch.cat(list(old.get_image_features(pixel_values=pixels).pooler_output))
        rows = torch.cat([patches(picture) for picture in batch]).to(device)
        got = torch.cat(list(model.get_image_features(pixel_values=rows, image_grid_thw=grid).pooler_output))
        loss = F.mse_loss(got, wanted.flatten(0, -2)) / wanted.var()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.model.visual.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if (step + 1) % 50 == 0:
            log(
                event="imitation",
                step=0,
                pictures=(step + 1) * len(batch),
                unexplained=round(float(np.mean(losses)), 4),
            )
            losses = []
