"""Stages T and J: the language model learns to read documents, first of pictures that say what they should, then
through the eyes.

    python training/smolvlm/read.py --stage T --base FOLDER --state DIR --documents 2000

T takes the true embeddings of what visual tokens are to say, disturbed. J takes `eyes.pt` of DIR and trains both; its
questions do not see all of the visual tokens. Each goes on from what DIR holds (`read.pt`).
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from captions import FILLER, Words
from eyes import embeddings_of, normal, target_of
from language import Language
from packed import Batch, Item, Reader, collate, hard_shape, hidden, small_shape, stretched
from pictures import Painter
from safetensors.torch import load_file
from smolvlm import FRAMING, Eyes, model_config
from state import Log, Pace, load, save
from steps import Progress, ahead
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig

from madakv.evaluation.documents import Shape
from madakv.evaluation.documents.english import ENGLISH

SEED = 18
LORA_RATE, EYES_RATE, WARMUP, FALL = 1e-3, 1e-4, 20, 0.3
NOISE = 0.35
"""Of the spread of embeddings, on those that stand for pictures in stage T."""
WRONG = 0.04
"""Share of them that say something else."""
HIDDEN, LEAST = 0.3, 0.3
STRETCHED, FARTHEST = 0.4, 4096
"""Of the documents of J, and the position they may end at."""
SHARES = {"small": 0.45, "middle": 0.8}


class Model(nn.Module):
    """Eyes and language model, and what the former may say."""

    def __init__(self, base: Path, emoji: Path | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.words = Words(base / "tokenizer.json", emoji)
        self.painter = Painter(self.words, emoji)
        self.reader = Reader(self.words, self.painter)
        self.target = target_of(self.words, embeddings_of(base))
        self.language = Language(base, len(FRAMING), self.words.ids(FILLER)[0], dtype)
        self.eyes = Eyes(model_config(AutoConfig.from_pretrained(base)))

    def told(self, batch: Batch, rng: np.random.Generator) -> Tensor:
        """Visual tokens [n, 16, 576] that say what they should, but for noise."""
        said = batch.said.clone()
        wrong = torch.from_numpy(rng.random(said.shape) < WRONG).to(said.device)
        others = torch.from_numpy(rng.integers(len(self.target.ids), size=said.shape)).to(said.device)
        said = torch.where(wrong, self.target.ids[others], said)
        true = self.target.table[self.target.classes(said)]
        level = torch.from_numpy(rng.uniform(0, 2 * NOISE, size=(*said.shape, 1))).to(true)
        return true + torch.randn_like(true) * level * self.target.variance.sqrt()

    def seen(self, batch: Batch) -> Tensor:
        """Visual tokens as the eyes have them."""
        pixels: Tensor = self.eyes(normal(batch.pixels, batch.ids.device))
        return pixels

    def logits(self, batch: Batch, visual: Tensor) -> Tensor:
        """[A, vocabulary]."""
        embedded = self.language.embed(batch.ids)
        flat = embedded.flatten(0, 1).index_copy(0, batch.visual, visual.flatten(0, 1).to(embedded.dtype))
        at = batch.lengths, batch.places, batch.seen, batch.length, batch.scored
        out: Tensor = self.language(flat.view_as(embedded), *at)
        return out


def shape_of(rng: np.random.Generator, length: str) -> Shape:
    """A document of a named length: `hard`, `small`, `middle`, or a number of tokens."""
    if length == "hard":
        return hard_shape(rng)
    if length in SHARES:
        return small_shape(rng, SHARES[length])
    return Shape.of(int(length), float(rng.uniform(0.5, 0.95)), ENGLISH.lengths)


@torch.no_grad()
def whole_answers(model: Model, length: str, documents: int, device: torch.device, *, told: bool) -> dict[str, Any]:
    """Held-out documents, one question per kind: shares that are answered whole (teacher forced), per kind."""
    right: dict[str, list[bool]] = {}
    for number in range(documents):
        rng = np.random.default_rng([SEED, 10**6 + number, len(length)])
        item = model.reader.drawn(rng, shape_of(rng, length), "held_out", 1 if length.isdigit() else None)
        batch = collate([item], model.reader.image_id).to(device)
        visual = model.target.table[model.target.classes(batch.said)] if told else model.seen(batch)
        hit = model.logits(batch, visual).argmax(-1) == batch.targets
        whole = torch.ones(len(batch.kinds), dtype=torch.bool)
        whole[batch.question[~hit].cpu()] = False
        for kind, ok in zip(batch.kinds, whole.tolist(), strict=True):
            right.setdefault(kind, []).append(ok)
    shares = {kind: round(float(np.mean(oks)), 3) for kind, oks in sorted(right.items())}
    return shares | {
        "questions": sum(map(len, right.values())),
        "mean": round(float(np.mean(list(shares.values()))), 3),
    }


def drawn(reader: Reader, rng: np.random.Generator, lengths: list[str], documents: int, tokens: int) -> Batch:
    """A batch of documents of one length: as many as `documents`, or fewer of those that are long."""
    length = str(rng.choice(lengths))
    items: list[Item] = []
    while len(items) < documents and (not items or (len(items) + 1) * size(items[0]) < tokens):
        item = reader.drawn(rng, shape_of(rng, length), "train")
        if item.branches:
            items.append(item)
    return collate(items, reader.image_id)


def size(item: Item) -> int:
    """Tokens of a document and its questions."""
    return len(item.document) + sum(len(ids) for ids, _ in item.branches)


def exported(folder: Path, number: int) -> dict[str, Tensor]:
    """The tensors of one file that `export.py` wrote, fp32."""
    return {name: t.float() for name, t in load_file(folder / f"adapter-{number}.safetensors").items()}


def train(arguments: argparse.Namespace) -> None:
    """One stage, up to the given number of documents."""
    device, stage = torch.device(arguments.device), str(arguments.stage)
    dtype = getattr(torch, arguments.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    torch.manual_seed(SEED)
    model = Model(arguments.base, arguments.emoji, dtype).to(device)
    log, path = Log(arguments.state / "read.jsonl"), arguments.state / "read.pt"
    saved = load(path)
    if stage == "T" and saved is not None and saved["stage"] == "J":
        log(event="over", stage=stage)
        return
    going_on = saved is not None and saved["stage"] == stage
    if saved is not None:
        model.language.load_state_dict(saved["language"])
    if stage == "J" and saved is not None and going_on:
        model.eyes.load_state_dict(saved["eyes"])
    elif arguments.start is not None:
        model.eyes.load_state_dict(exported(arguments.start, 1))
        model.language.load_state_dict(exported(arguments.start, 2))
    elif stage == "J":
        alone = load(arguments.state / "eyes.pt")
        if alone is None:
            raise SystemExit(f"{arguments.state} holds no eyes.pt: run eyes.py first, or give --from")
        model.eyes.load_state_dict(alone["eyes"])
    trained = [{"params": list(model.language.parameters()), "rate": LORA_RATE * (0.6 if stage == "J" else 1)}]
    if stage == "J":
        trained.append({"params": list(model.eyes.parameters()), "rate": EYES_RATE})
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    progress, step = Progress(arguments.documents, arguments.seconds), 0
    if saved is not None and going_on:
        optimizer.load_state_dict(saved["optimizer"])
        step = saved["step"]
        progress = Progress(arguments.documents, arguments.seconds, saved["documents"], saved["seconds"])
    log(event="start", stage=stage, documents=progress.done)
    if arguments.compiled:
        for layer in model.language.layers:
            layer.compile(dynamic=True)
    precision = torch.autocast(device.type, dtype) if dtype == torch.bfloat16 else nullcontext()
    last, tokens, pace = time.time(), 0, Pace()
    losses: list[float] = []
    lengths, reader = arguments.lengths.split(","), model.reader

    def draw(step: int) -> Batch:
        rng = np.random.default_rng([SEED, "TJ".index(stage), step])
        batch = drawn(reader, rng, lengths, arguments.batch, arguments.tokens)
        return stretched(hidden(batch, rng, HIDDEN, LEAST), rng, STRETCHED, FARTHEST) if stage == "J" else batch

    batches = ahead(draw, step, arguments.workers)
    while progress.share < 1:
        batch = next(batches).to(device)
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * progress.rate(step, WARMUP, FALL)
        with precision:
            visual = model.seen(batch) if stage == "J" else model.told(batch, np.random.default_rng([SEED, 2, step]))
            logits = model.logits(batch, visual)
        loss = F.cross_entropy(logits.float(), batch.targets)
        loss.backward()
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        tokens += batch.tokens
        before = progress.done
        done = progress.done = before + len(batch.lengths)
        step += 1
        reported = before // arguments.every != done // arguments.every or progress.share >= 1
        if reported:
            mean, speed = round(float(np.mean(losses)), 3), round(tokens / (time.time() - last))
            log(stage=stage, documents=done, loss=mean, tokens_per_second=speed, seconds=round(progress.elapsed))
            losses, tokens, last = [], 0, time.time()
        if pace.due() or reported:
            state: dict[str, Any] = {"stage": stage, "documents": done, "step": step, "seconds": progress.elapsed}
            state |= {"language": model.language.state_dict(), "eyes": model.eyes.state_dict()}
            state["optimizer"] = optimizer.state_dict()
            save(path, state)
        if before // arguments.judge_every != done // arguments.judge_every or progress.share >= 1:
            with precision, torch.compiler.set_stance("force_eager"):
                for length in arguments.judged_lengths.split(","):
                    shares = whole_answers(model, length, arguments.judged, device, told=stage == "T")
                    log(event="evaluation", stage=stage, documents=done, length=length, **shares)
            last = time.time()


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=("T", "J"), required=True)
    parser.add_argument("--base", type=Path, required=True, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument("--emoji", type=Path, help="folder of emoji-datasource-twitter, as for the eyes")
    parser.add_argument("--state", type=Path, required=True, help="for checkpoint and log")
    parser.add_argument(
        "--from", type=Path, dest="start", help="an exported model to start from, if DIR has no state"
    )
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument(
        "--lengths", default="small", help="of documents, drawn from: hard, small, middle, 512, 1024, ..."
    )
    parser.add_argument("--batch", type=int, default=2, help="documents per step")
    parser.add_argument("--tokens", type=int, default=8000, help="most of a step, for fewer of long documents")
    parser.add_argument("--seconds", type=float, help="ends the stage even if there were fewer documents")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw; 0 draws in between")
    parser.add_argument("--every", type=int, default=20, help="documents between checkpoints")
    parser.add_argument("--judge-every", type=int, default=160, help="documents between evaluations")
    parser.add_argument("--judged", type=int, default=10, help="held-out documents per evaluation")
    parser.add_argument("--judged-lengths", default="small")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of frozen weights and products; without it bfloat16 on a GPU and float32 on a CPU, which is three times"
        " as fast in bfloat16 if it has avx512_bf16",
    )
    train(parser.parse_args())


if __name__ == "__main__":
    main()
