"""Train a small vision-language model on long documents.

    python training/small/train_small.py small-llava --from src/madakv/bundled/model --out DIR [--resume] [--smoke]

The curriculum is declared in `stages.py`. All randomness of step s comes from (SEED, s), so that a
resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from contextlib import nullcontext
from dataclasses import replace
from importlib import metadata
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from architecture import ARCHITECTURES, Architecture
from inherit import adopt, grow, imitate
from numpy.typing import NDArray
from rows import Batch, Item, caption_item, collate, copy_item, document_item, draw_caption
from stages import CAPTIONS_PER_STEP, LENGTHS, MANY, SEED, SHAPES, STAGES, TOKENS_PER_STEP, Stage
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText, AutoTokenizer

from madakv.evaluation.documents import Shape
from madakv.evaluation.documents.pictures import paint

HERE = Path(__file__).parent
LOG_EVERY = 25
EVALUATE_EVERY = 300
CHECKPOINT_EVERY = 50
EVALUATED_TOKENS = 60_000
EVALUATED_CAPTIONS = 400
COPY_BATCH = 125
# What is copied has to be there after three of six layers for the others to look up its picture.
HINTED_LAYER = 3


def scored_logits(model: Any, batch: Batch, device: torch.device) -> torch.Tensor:
    """Logits [A, vocabulary] of the answer tokens."""
    inputs = {name: tensor.to(device) for name, tensor in batch.inputs.items()}
    hidden = model.model(**inputs, use_cache=False).last_hidden_state
    logits: torch.Tensor = model.lm_head(hidden.flatten(0, 1)[batch.at.to(device)])
    return logits.float()


class Tap:
    """Keeps what enters a layer in the middle of the text model, for hints to be read off it."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._seen: torch.Tensor | None = None
        model.model.language_model.layers[HINTED_LAYER].register_forward_pre_hook(self._keep)

    def _keep(self, _module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        self._seen = args[0]

    def loss(self, batch: Batch, device: torch.device) -> torch.Tensor:
        """Of reading the batch's hints off what was kept of its forward pass."""
        assert self._seen is not None
        middle = self._seen.flatten(0, 1)[batch.hint_at.to(device)]
        logits = self._model.lm_head(self._model.model.language_model.norm(middle))
        return F.cross_entropy(logits.float(), batch.hints.to(device))


def draw_shape(rng: np.random.Generator, task: str) -> Shape:
    """The shape of a document of a task."""
    if task in SHAPES:
        return SHAPES[task]
    return Shape.of(LENGTHS[task], float(rng.uniform(0.5, 0.95)))


def training_batch(task: str, rng: np.random.Generator, architecture: Architecture, shrink: int) -> Batch:
    """A batch of about `TOKENS_PER_STEP` tokens (divided by `shrink`) of one task."""
    sizes = architecture.sizes
    if task == "copy":
        items = [copy_item(rng) for _ in range(max(1, COPY_BATCH // shrink))]
    elif task == "caption":
        items = [caption_item(rng, sizes, "train", True) for _ in range(max(1, CAPTIONS_PER_STEP // shrink))]
    else:
        items, tokens = [], 0
        while not items or tokens < TOKENS_PER_STEP / shrink * 0.7:
            items.append(document_item(rng, draw_shape(rng, task), asked_of(task), sizes, "train", True))
            tokens += length(items[-1], architecture)
    return collate(items, architecture)


def asked_of(task: str) -> dict[str, int]:
    """Questions per kind of a training document: more of them where there is more to ask about."""
    if task.startswith(("dense", "match", "lists", "search", "hunt", "albums")):
        return dict.fromkeys(MANY, 99)
    return {**MANY, "show": 24 if task in ("2000", "4000") else MANY["show"]}


def length(item: Item, architecture: Architecture) -> int:
    """Tokens of an item, about."""
    pictures = sum(len(architecture.picture_ids(*p.shape[:2])) for p in item.pixels)
    return pictures + len(item.document) + sum(len(p) + len(a) for p, a in item.asked)


@torch.no_grad()
def whole_answers(
    model: Any, task: str, architecture: Architecture, device: torch.device, tokens: int
) -> dict[str, float]:
    """Share of held-out questions that greedy decoding answers whole, per kind, by teacher forcing."""
    model.train(False)
    rng = np.random.default_rng([SEED, *task.encode(), 10**6])
    right: dict[str, list[bool]] = {}
    seen = 0
    while seen < tokens:
        if task == "caption":
            items = [caption_item(rng, architecture.sizes, "held_out", False) for _ in range(EVALUATED_CAPTIONS)]
            seen = tokens
        else:
            items = [document_item(rng, draw_shape(rng, task), None, architecture.sizes, "held_out", False)]
        batch = collate(items, architecture)
        hit = batch.hit(scored_logits(model, batch, device).cpu())
        whole = torch.ones(len(batch.kinds), dtype=torch.bool)
        whole[batch.question[~hit]] = False
        for kind, ok in zip(batch.kinds, whole.tolist(), strict=True):
            right.setdefault(kind, []).append(ok)
        seen += batch.tokens
    model.train()
    return {kind: round(float(np.mean(right[kind])), 4) for kind in sorted(right)}


def save_checkpoint(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, **done: float) -> None:
    """Replace the checkpoint at `path`, never leaving half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), **done}
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def resumed_step(state: Path) -> int:
    """The step that a run is resumed at."""
    return int(torch.load(state / "last.pt", map_location="cpu")["step"])


class Log:
    """JSON lines, one per event, flushed at once."""

    def __init__(self, path: Path, *, upto: int) -> None:
        """Go on with the log at `path` after step `upto`: what a cut off run did later is done again."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        lines = path.read_text().splitlines() if upto and path.exists() else []
        path.write_text("".join(line + "\n" for line in lines if json.loads(line)["step"] <= upto))

    def __call__(self, **entry: Any) -> None:
        """Write one entry, here and on the screen."""
        line = json.dumps(entry)
        print(line, flush=True)
        with self._path.open("a") as file:
            file.write(line + "\n")


def start(architecture: Architecture, ancestor: Path | None, log: Log, device: torch.device) -> Any:
    """A model to train: fresh, or started from a trained one."""
    torch.manual_seed(SEED)
    model = architecture.build().to(device)
    if ancestor is None:
        return model
    old: Any = AutoModelForImageTextToText.from_pretrained(ancestor, dtype=torch.float32)
    old.to(device)
    if architecture.name == "small-llava":
        grow(model, old, AutoTokenizer.from_pretrained(ancestor).get_vocab())
        return model
    adopt(model, old)

    def pictures(step: int) -> NDArray[np.uint8]:
        rng = np.random.default_rng([SEED, step, 3])
        contents = [draw_caption(rng)[0] for _ in range(CAPTIONS_PER_STEP)]
        return paint(rng, contents, split="train", distort=True)

    imitate(model, old, pictures, log)
    return model


def train(
    architecture: Architecture,
    out: Path,
    state: Path,
    stages: tuple[Stage, ...],
    *,
    ancestor: Path | None,
    resume: bool,
    last_stage: bool,
    shrink: int,
    device: torch.device,
) -> None:
    """Run the stages; `shrink` divides the sizes of batches and evaluations."""
    ends = list(accumulate(stage.steps for stage in stages))
    log = Log(state / "log.jsonl", upto=resumed_step(state) if resume else ends[-2] if last_stage else 0)
    if last_stage and not resume:
        # Weights alone: what a stage changes in the configuration is in `architecture.py`.
        model = architecture.build().to(device).train()
        model.load_state_dict(AutoModelForImageTextToText.from_pretrained(str(ancestor)).state_dict())
    else:
        model = start(architecture, None if resume else ancestor, log, device).train()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    checkpoint = state / "last.pt"
    first, spent = ends[-2] if last_stage else 0, 0.0
    if resume:
        saved = torch.load(checkpoint, map_location=device)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first, spent = saved["step"], saved["seconds"]
    log(
        event="start",
        step=first,
        model=architecture.name,
        seed=SEED,
        parameters=sum(p.numel() for p in model.parameters()),
        versions={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": np.__version__,
            "scikit-learn": metadata.version("scikit-learn"),
        },
        device=torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads",
    )

    began = time.time() - spent
    tap = Tap(model)
    # Several times the arithmetic goes into small element-wise operations, which compilation fuses.
    for number, layer in enumerate(model.model.language_model.layers if shrink == 1 else ()):
        if number != HINTED_LAYER:
            layer.compile(dynamic=True)
    # On a CPU without matrix units bf16 is slower than fp32.
    precision = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()
    losses: list[float] = []
    hint_losses: list[float] = []
    tokens, paused = 0, time.time()
    for step in range(first, ends[-1]):
        number = next(i for i, end in enumerate(ends) if step < end)
        stage = stages[number]
        rng = np.random.default_rng([SEED, step])
        task = str(rng.choice(list(stage.mix), p=list(stage.mix.values())))
        batch = training_batch(task, rng, architecture, shrink)
        rate = stage.learning_rate(step - ends[number] + stage.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with precision:
            loss = batch.loss(scored_logits(model, batch, device))
            hint = tap.loss(batch, device) if stage.hints and len(batch.hints) else loss.new_zeros(())
        optimizer.zero_grad()
        (loss + hint).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        hint_losses.append(float(hint.detach()))
        tokens += batch.tokens

        done = step + 1
        last = done == ends[number]
        if done % LOG_EVERY == 0 or last:
            log(
                event="train",
                step=done,
                stage=stage.name,
                loss=round(float(np.mean(losses)), 4),
                hint=round(float(np.mean(hint_losses)), 4),
                lr=round(rate, 7),
                tokens_per_second=round(tokens / (time.time() - paused)),
                seconds=round(time.time() - began),
            )
            losses, hint_losses, tokens, paused = [], [], 0, time.time()
        if done % EVALUATE_EVERY == 0 or last:
            with torch.compiler.set_stance("force_eager"), precision:
                for judged in (t for t in stage.mix if t in ("facts", "caption", *LENGTHS)):
                    scores = whole_answers(model, judged, architecture, device, EVALUATED_TOKENS // shrink)
                    log(event="evaluation", step=done, split="held_out", task=judged, **scores)
            paused = time.time()
        if done % CHECKPOINT_EVERY == 0 or done == ends[-1]:
            save_checkpoint(checkpoint, model, optimizer, step=done, seconds=time.time() - began)
    architecture.export(model, out)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=sorted(ARCHITECTURES))
    parser.add_argument("--out", type=Path, required=True, help="folder for the exported model")
    parser.add_argument("--from", type=Path, dest="ancestor", help="folder of the trained model to start from")
    parser.add_argument("--state", type=Path, help="for checkpoint and log")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument(
        "--last-stage", action="store_true", help="only that, from the weights in --from with a new optimizer"
    )
    parser.add_argument("--smoke", action="store_true", help="one step per stage, of small batches")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    if arguments.last_stage and arguments.ancestor is None:
        parser.error("--last-stage needs --from, the folder of the model that the stage before it left")
    stages = STAGES[arguments.model]
    if arguments.smoke:
        stages = tuple(replace(stage, steps=1) for stage in stages)
    train(
        ARCHITECTURES[arguments.model],
        arguments.out,
        arguments.state or HERE / "checkpoints" / arguments.model,
        stages,
        ancestor=arguments.ancestor,
        resume=arguments.resume,
        last_stage=arguments.last_stage,
        shrink=20 if arguments.smoke else 1,
        device=torch.device(arguments.device),
    )


if __name__ == "__main__":
    main()
