"""Stage V: the eyes alone learn to say, patch by patch, the language model's own input embeddings of what is seen.

    python training/smolvlm/eyes.py --base FOLDER --emoji FOLDER --state DIR --pictures 400000

Goes on from what DIR holds. A second, small head reads letters off the vision patches halfway up, which shortens the
time until whole words are read.
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from captions import FILLER, Words
from pictures import LETTERS, Painter, Shown
from safetensors import safe_open
from smolvlm import SCALE, VISION, Eyes, model_config
from state import Log, Pace, load, save
from steps import Progress, ahead
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig

SEED = 18
BATCH = 64
SHARPNESS = 30.0
LETTERS_AFTER = 2
"""Layers of the vision tower."""
FILLER_WEIGHT = 0.15
PEAK, WARMUP, FALL = 1.5e-3, 40, 0.3
"""The learning rate, steps until it is reached, and the share of all pictures in which it goes down again."""


class Target(nn.Module):
    """Embeddings of all caption tokens, and how far visual tokens are from them."""

    ids: Tensor
    table: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, embeddings: Tensor, ids: Tensor, filler: int) -> None:
        super().__init__()
        self.register_buffer("ids", ids)
        self.register_buffer("table", embeddings[ids].float())
        self.register_buffer("mean", self.table.mean(0))
        self.register_buffer("variance", self.table.var())
        self.filler = int((ids == filler).nonzero())

    def classes(self, tokens: Tensor) -> Tensor:
        """Rows of the table, for token ids of any shape."""
        return torch.searchsorted(self.ids, tokens)

    def similar(self, seen: Tensor) -> Tensor:
        """Cosines [..., C] of visual tokens with every caption token, both from the mean."""
        centred = F.normalize(self.table - self.mean, dim=-1)
        return F.normalize(seen - self.mean, dim=-1) @ centred.T

    def loss(self, seen: Tensor, classes: Tensor) -> Tensor:
        """Which token (by direction) and how far from it."""
        weight = torch.where(classes == self.filler, FILLER_WEIGHT, 1.0)
        named = F.cross_entropy(SHARPNESS * self.similar(seen).flatten(0, -2), classes.flatten(), reduction="none")
        far = (seen - self.table[classes]).square().mean(-1) / self.variance
        return ((named + far.flatten()) * weight.flatten()).sum() / weight.sum()


def embeddings_of(base: Path) -> Tensor:
    """The language model's input embeddings, fp32."""
    with safe_open(base / "model.safetensors", "pt") as file:
        table: Tensor = file.get_tensor("model.embed_tokens.weight")
    return table.float()


def target_of(words: Words, embeddings: Tensor) -> Target:
    """Everything that a picture can say."""
    from pictures import SPOKEN

    from madakv.evaluation.digits import COLOURS, DIGITS
    from madakv.evaluation.documents.words import FIGURES, PAINTED

    said = [*COLOURS, *SPOKEN, *FIGURES, *PAINTED, *words.written, *words.emoji, *words.flags]
    ids = {token for word in said for token in words.said(word)}
    ids |= {words.ids(digit)[0] for digit in DIGITS} | {words.ids(FILLER)[0]}
    return Target(embeddings, torch.tensor(sorted(ids)), words.ids(FILLER)[0])


def normal(pixels: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """uint8 [n, 64, 64, 3] as the image processor makes it: [n, 3, 64, 64], -1 to 1."""
    return (torch.as_tensor(pixels).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous()


@torch.no_grad()
def judged(eyes: Eyes, target: Target, shown: Shown, device: torch.device) -> dict[str, float]:
    """Per kind, of held-out pictures: tokens that are right (fillers aside), pictures that are right whole, and how
    far raw tokens are from their embeddings (1: as far as the mean)."""
    eyes.train(False)
    classes = target.classes(torch.from_numpy(shown.tokens).to(device))
    seen = torch.cat(
        [eyes(normal(part, device)) for part in np.array_split(shown.pixels, max(1, len(shown.pixels) // 96))]
    )
    hit = target.similar(seen).argmax(-1) == classes
    speaks = classes != target.filler
    far = (seen - target.table[classes]).square().mean(-1) / target.variance
    out: dict[str, float] = {"distance": round(float(far[speaks].mean()), 3)}
    for kind in sorted(set(shown.kinds)):
        mine = torch.tensor([k == kind for k in shown.kinds], device=device)
        out[kind] = round(float(hit[mine][speaks[mine]].float().mean()), 3)
        out[kind + " whole"] = round(float((hit | ~speaks)[mine].all(1).float().mean()), 3)
    eyes.train()
    return out


def train(arguments: argparse.Namespace) -> None:
    """Up to the given number of pictures."""
    device = torch.device(arguments.device)
    words = Words(arguments.base / "tokenizer.json", arguments.emoji)
    painter = Painter(words, arguments.emoji)
    target = target_of(words, embeddings_of(arguments.base)).to(device)
    torch.manual_seed(SEED)
    eyes = Eyes(model_config(AutoConfig.from_pretrained(arguments.base))).to(device)
    with torch.no_grad():
        # As wide as the embeddings from the start: six times as wide, nothing was learnt in 300 steps.
        projection = eyes.connector.modality_projection.proj.weight
        projection *= target.variance.sqrt() / projection.std() / VISION["hidden_size"] ** 0.5 / SCALE
    reader = nn.Linear(VISION["hidden_size"], len(LETTERS) + 1).to(device)
    parameters = [*eyes.parameters(), *reader.parameters()]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=0.02, fused=True)
    log, path = Log(arguments.state / "eyes.jsonl"), arguments.state / "eyes.pt"
    progress = Progress(arguments.pictures, arguments.seconds)
    if saved := load(path):
        eyes.load_state_dict(saved["eyes"])
        reader.load_state_dict(saved["reader"])
        optimizer.load_state_dict(saved["optimizer"])
        progress = Progress(arguments.pictures, arguments.seconds, saved["seen"], saved["seconds"])
    log(
        event="start",
        stage="V",
        seen=progress.done,
        parameters=sum(p.numel() for p in eyes.parameters()),
        classes=len(target.ids),
    )
    if arguments.compiled:
        for layer in eyes.vision_model.encoder.layers:
            layer.compile(dynamic=True)
    held_out = painter.mixed(np.random.default_rng([SEED, 1]), arguments.judged, "held_out")
    precision = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()
    last, pace = time.time(), Pace()
    losses: list[float] = []

    def draw(step: int) -> Shown:
        return painter.mixed(np.random.default_rng([SEED, 0, step]), arguments.batch, "train")

    shown_ahead = ahead(draw, progress.done // arguments.batch, arguments.workers)
    while progress.share < 1:
        shown = next(shown_ahead)
        for group in optimizer.param_groups:
            group["lr"] = PEAK * progress.rate(progress.done // arguments.batch, WARMUP, FALL)
        with precision:
            out, middle = eyes.both(normal(shown.pixels, device), LETTERS_AFTER)
            spelled = reader(middle)
        loss = target.loss(out.float(), target.classes(torch.from_numpy(shown.tokens).to(device)))
        letters = torch.from_numpy(shown.letters).to(device)
        weight = torch.where(letters == 0, 0.1, 1.0)
        spelling = F.cross_entropy(spelled.float().flatten(0, 1), letters.flatten(), reduction="none")
        (loss + 0.5 * (spelling * weight.flatten()).sum() / weight.sum()).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        before, progress.done = progress.done, progress.done + arguments.batch
        reported = before // arguments.every != progress.done // arguments.every or progress.share >= 1
        if reported:
            speed = len(losses) * arguments.batch / (time.time() - last)
            mean = round(float(np.mean(losses)), 3)
            log(
                stage="V",
                seen=progress.done,
                loss=mean,
                per_second=round(speed, 1),
                **judged(eyes, target, held_out, device),
            )
            losses, last = [], time.time()
        if pace.due() or reported:
            state = {"eyes": eyes.state_dict(), "reader": reader.state_dict(), "optimizer": optimizer.state_dict()}
            save(path, {**state, "seen": progress.done, "seconds": progress.elapsed})


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument("--emoji", type=Path, help="folder of emoji-datasource-twitter (README.md)")
    parser.add_argument("--state", type=Path, required=True, help="for checkpoint and log")
    parser.add_argument("--pictures", type=int, default=400_000)
    parser.add_argument("--seconds", type=float, help="ends the stage even if there were fewer pictures")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw; 0 draws in between")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--every", type=int, default=6400, help="pictures between evaluations and checkpoints")
    parser.add_argument("--judged", type=int, default=320, help="held-out pictures")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
