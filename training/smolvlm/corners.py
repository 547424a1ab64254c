"""Before more of stage J, from an exported model: visual tokens learn to say where in their tile they are.

    python training/smolvlm/corners.py --base FOLDER --emoji FOLDER --from models/small-smolvlm --out FOLDER

The eyes keep saying what they say, and add a little of the embeddings of `top` or `bottom` and `left` or `right`.
Without that, which corner of a grid is empty was not learnt from 1,400 documents: where in its tile a token stands is
told by its distance from the first token of the tile alone. The language model is copied; `read.py --from` goes on.
"""

from __future__ import annotations

import argparse
import copy
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from captions import Words
from eyes import embeddings_of, normal
from pictures import CELLS, Painter
from read import exported
from safetensors.torch import save_file
from smolvlm import Eyes, model_config
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig

SEED, BATCH, RATE, FALL = 18, 64, 3e-4, 0.5
STRENGTH = 0.3
"""Of the embeddings' own lengths."""


def corners(words: Words, embeddings: Tensor) -> Tensor:
    """[16, width]: what is added to the visual tokens of a tile, in reading order."""

    def of(word: str) -> Tensor:
        return embeddings[words.said(word)[0]]

    down = (of("top") - of("bottom")) / 2
    across = (of("left") - of("right")) / 2
    half = torch.arange(CELLS) < CELLS // 2
    sign = torch.where(half, 1.0, -1.0)
    return STRENGTH * (sign[:, None, None] * down + sign[None, :, None] * across).flatten(0, 1)


def train(arguments: argparse.Namespace) -> None:
    """Squared distance to what was said before and the corner, in units of the corners' variance."""
    words = Words(arguments.base / "tokenizer.json", arguments.emoji)
    painter = Painter(words, arguments.emoji)
    added = corners(words, embeddings_of(arguments.base))
    eyes = Eyes(model_config(AutoConfig.from_pretrained(arguments.base)))
    eyes.load_state_dict(exported(arguments.start, 1))
    before = copy.deepcopy(eyes).requires_grad_(requires_grad=False)
    optimizer = torch.optim.AdamW(eyes.parameters(), betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    steps, began = arguments.pictures // BATCH, time.time()
    for step in range(steps):
        shown = painter.mixed(np.random.default_rng([SEED, 3, step]), BATCH, "train")
        pixels = normal(shown.pixels, torch.device("cpu"))
        with torch.no_grad():
            wanted = before(pixels) + added
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, (step + 1) / 20, (steps - step) / steps / FALL)
        loss = F.mse_loss(eyes(pixels), wanted) / added.square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(eyes.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            seen, seconds = (step + 1) * BATCH, time.time() - began
            print(f"{seen:,} pictures, {float(loss.detach()):.3f}, {seconds:.0f} s", flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.contiguous() for name, t in eyes.state_dict().items()}
    save_file(tensors, arguments.out / "adapter-1.safetensors")
    shutil.copyfile(arguments.start / "adapter-2.safetensors", arguments.out / "adapter-2.safetensors")


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument("--emoji", type=Path, help="folder of emoji-datasource-twitter, as for the eyes")
    parser.add_argument("--from", type=Path, dest="start", required=True, help="an exported model")
    parser.add_argument("--out", type=Path, required=True, help="folder for what read.py starts from")
    parser.add_argument("--pictures", type=int, default=40_000)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
