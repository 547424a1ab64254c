"""Train the small vision-language model that ships with madakv, from scratch, on CPU.

    python training/bundled/train.py --out src/madakv/bundled/model [--resume] [--smoke]

The curriculum is declared in `curriculum.py`. All randomness of step s comes from (SEED, s), so that a
resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import replace
from importlib import metadata
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from batches import Batch, Item, caption_item, collate, copy_item, document_item
from curriculum import ASKED, CAPTIONS_PER_STEP, SEED, STAGES, TASKS, TOKENS_PER_STEP, Stage
from model import TOKENS_PER_IMAGE, build_model, export
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration

from madakv.evaluation.digits import KINDS, MAX_IMAGES, Shape

HERE = Path(__file__).parent
LOG_EVERY = 50
EVALUATE_EVERY = 300
CHECKPOINT_EVERY = 150
EVALUATED_DOCUMENTS = 48
EVALUATED_CAPTIONS = 600
EVALUATION_BATCH = 12
COPY_BATCH = 125
# The number has to be there after two layers for the last two to look up its picture.
HINTED_LAYER = 2


def scored_logits(model: LlavaForConditionalGeneration, batch: Batch) -> torch.Tensor:
    """Logits [A, vocabulary] of the answer tokens."""
    hidden = model.model(
        input_ids=batch.ids,
        pixel_values=batch.pixels,
        attention_mask=batch.mask,
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state
    logits: torch.Tensor = model.lm_head(hidden.flatten(0, 1)[batch.at])
    return logits


def hint_loss(model: LlavaForConditionalGeneration, batch: Batch) -> torch.Tensor:
    """Loss of the answers, and of reading the first half of a hop off the middle of the text model."""
    with torch.compiler.set_stance("force_eager"):
        states = model.model(
            input_ids=batch.ids,
            pixel_values=batch.pixels,
            attention_mask=batch.mask,
            position_ids=batch.positions,
            use_cache=False,
            output_hidden_states=True,
        )
    answers = model.lm_head(states.last_hidden_state.flatten(0, 1)[batch.at])
    middle = model.model.language_model.norm(states.hidden_states[HINTED_LAYER].flatten(0, 1)[batch.hint_at])
    return F.cross_entropy(answers, batch.targets) + F.cross_entropy(model.lm_head(middle), batch.hints)


def training_batch(task: str, rng: np.random.Generator, shrink: int) -> Batch:
    """A batch of about `TOKENS_PER_STEP` tokens (divided by `shrink`) of one task."""

    def items(one: Any, count: int) -> list[Item]:
        return [one() for _ in range(max(1, count // shrink))]

    if task == "copy":
        return collate(items(lambda: copy_item(rng), COPY_BATCH))
    if task == "caption":
        return collate(items(lambda: caption_item(rng, "train", True), CAPTIONS_PER_STEP))
    shape = TASKS[task]
    assert shape is not None
    documents = TOKENS_PER_STEP // typical_length(shape)
    return collate(items(lambda: document_item(rng, shape, "train", True), documents))


def typical_length(shape: Shape) -> int:
    """Tokens of a document of this shape with its questions, about."""
    document = shape.images * (TOKENS_PER_IMAGE + 2) + 6 * shape.codes + 4 * shape.owners + 5 * shape.fillers
    return document + 7 * sum(shape.asked.values()) + shape.images


@torch.no_grad()
def whole_answers(model: LlavaForConditionalGeneration, images: int, documents: int) -> dict[str, float]:
    """Share of held-out questions that greedy decoding answers whole, per kind, by teacher forcing."""
    model.train(False)
    rng = np.random.default_rng([SEED, images, 10**6])
    right: dict[str, list[bool]] = {}
    for first in range(0, documents, EVALUATION_BATCH):
        shape = Shape.of(images, ASKED)
        batch = collate(
            [document_item(rng, shape, "held_out", False) for _ in range(min(EVALUATION_BATCH, documents - first))]
        )
        hit = scored_logits(model, batch).argmax(-1) == batch.targets
        whole = torch.ones(len(batch.kinds), dtype=torch.bool)
        whole[batch.question[~hit]] = False
        for kind, ok in zip(batch.kinds, whole.tolist(), strict=True):
            right.setdefault(kind, []).append(ok)
    model.train()
    return {kind: round(float(np.mean(right[kind])), 4) for kind in KINDS}


@torch.no_grad()
def captions_right(model: LlavaForConditionalGeneration, pictures: int) -> float:
    """Share of held-out pictures, undistorted, whose colour and digit are both right."""
    model.train(False)
    rng = np.random.default_rng([SEED, 2 * 10**6])
    batch = collate([caption_item(rng, "held_out", False) for _ in range(pictures)])
    hit = scored_logits(model, batch).argmax(-1) == batch.targets
    model.train()
    return round(float(hit.view(-1, 3).all(1).float().mean()), 4)


def evaluate(model: LlavaForConditionalGeneration, stage: Stage, shrink: int) -> dict[str, Any]:
    """What the stage trains, at its largest size, and the size that counts in the end."""
    scores: dict[str, Any] = {}
    sizes = {shape.images for task in stage.mix if (shape := TASKS[task]) and shape.images}
    with torch.compiler.set_stance("force_eager"):
        if "caption" in stage.mix:
            scores["caption"] = captions_right(model, EVALUATED_CAPTIONS // shrink)
        for images in sorted({max(sizes), MAX_IMAGES}) if sizes else []:
            scores[f"images{images}"] = whole_answers(model, images, max(1, EVALUATED_DOCUMENTS // shrink))
    return scores


def save_checkpoint(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, **done: float) -> None:
    """Replace the checkpoint at `path`, never leaving half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), **done}
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


class Log:
    """JSON lines, one per event, flushed at once."""

    def __init__(self, path: Path, *, upto: int) -> None:
        """Go on with the log at `path` after step `upto`: what a cut off run did later is done again."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        lines = path.read_text().splitlines() if upto else []
        path.write_text("".join(line + "\n" for line in lines if json.loads(line)["step"] <= upto))

    def __call__(self, **entry: Any) -> None:
        """Write one entry, here and on the screen."""
        line = json.dumps(entry)
        print(line, flush=True)
        with self._path.open("a") as file:
            file.write(line + "\n")


def train(out: Path, state: Path, stages: tuple[Stage, ...], *, resume: bool, shrink: int) -> None:
    """Run the stages; `shrink` divides the sizes of batches and evaluations."""
    torch.manual_seed(SEED)
    model = build_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    checkpoint = state / "last.pt"
    first, spent = 0, 0.0
    if resume:
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first, spent = saved["step"], saved["seconds"]
    log = Log(state / "log.jsonl", upto=first)
    log(
        event="start",
        step=first,
        seed=SEED,
        parameters=sum(p.numel() for p in model.parameters()),
        versions={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": np.__version__,
            "scikit-learn": metadata.version("scikit-learn"),
        },
        threads=torch.get_num_threads(),
    )

    ends = list(accumulate(stage.steps for stage in stages))
    began = time.time() - spent
    # Several times the arithmetic goes into small element-wise operations, which compilation fuses.
    if shrink == 1:
        model.model.language_model.compile(dynamic=True)
        model.model.vision_tower.compile(dynamic=True)
    losses: list[float] = []
    tokens, paused = 0, time.time()
    for step in range(first, ends[-1]):
        number = next(i for i, end in enumerate(ends) if step < end)
        stage = stages[number]
        rng = np.random.default_rng([SEED, step])
        task = str(rng.choice(list(stage.mix), p=list(stage.mix.values())))
        batch = training_batch(task, rng, shrink)
        rate = stage.learning_rate(step - ends[number] + stage.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        if stage.hints and len(batch.hints):
            loss = hint_loss(model, batch)
        else:
            loss = F.cross_entropy(scored_logits(model, batch), batch.targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        tokens += batch.ids.numel()

        done = step + 1
        last = done == ends[number]
        if done % LOG_EVERY == 0 or last:
            log(
                event="train",
                step=done,
                stage=stage.name,
                loss=round(float(np.mean(losses)), 4),
                lr=round(rate, 7),
                tokens_per_second=round(tokens / (time.time() - paused)),
                seconds=round(time.time() - began),
            )
            losses, tokens, paused = [], 0, time.time()
        if done % EVALUATE_EVERY == 0 or last:
            scores = evaluate(model, stage, shrink)
            if scores:
                log(event="evaluation", step=done, stage=stage.name, split="held_out", **scores)
            paused = time.time()
            if "images12" in stage.mix:
                export(model, out)
        if done % CHECKPOINT_EVERY == 0 or done == ends[-1]:
            save_checkpoint(checkpoint, model, optimizer, step=done, seconds=time.time() - began)
    export(model, out)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the exported model")
    parser.add_argument("--state", type=Path, default=HERE / "checkpoints", help="for checkpoint and log")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--smoke", action="store_true", help="one step per stage, of small batches")
    arguments = parser.parse_args()
    stages = tuple(replace(stage, steps=1) for stage in STAGES) if arguments.smoke else STAGES
    train(arguments.out, arguments.state, stages, resume=arguments.resume, shrink=50 if arguments.smoke else 1)


if __name__ == "__main__":
    main()
