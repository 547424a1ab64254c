"""Reports made of seeded noise, with something to find in them, for tests of the page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from madakv.inspection.report import Glance, Report, Side, View

WORDS = [
    "the",
    "cache",
    "of",
    "a",
    "long",
    "prompt",
    "holds",
    "what",
    "each",
    "head",
    "read",
    ",",
    "and",
    "most",
    ".\n",
]


def report(
    *,
    text: int = 240,
    pictures: int = 3,
    grid: int = 6,
    layers: int = 4,
    heads: int = 2,
    sides: int = 2,
    answer: int = 6,
    size: int = 96,
    recorded: bool = True,
    seed: int = 0,
) -> Report:
    """Text and pictures in turn, each picture of `grid` x `grid` tokens; more is kept of the last picture."""
    random = np.random.default_rng(seed)
    tokens: list[str] = []
    modality: list[int] = []
    views = []
    for number in range(pictures + 1):
        share = text // (pictures + 1) + (text % (pictures + 1) if number == 0 else 0)
        tokens += [" " + WORDS[i % len(WORDS)] for i in range(share)]
        modality += [0] * share
        if number == pictures:
            break
        first = len(tokens)
        tokens += [""] * grid**2
        modality += [1] * grid**2
        views.append(
            View(
                f"picture {number + 1}",
                scenery(size, random),
                np.arange(first, first + grid**2),
                grid_boxes(grid, grid),
            )
        )
    worth = random.gamma(0.5, 1.0, len(tokens)).astype(np.float32)
    if views:
        worth[views[-1].tokens] += 2 * (random.random(grid**2) > 0.6)
    return Report(
        model="synthetic/model-3b",
        tokens=tokens,
        modality=np.array(modality, dtype=np.int64),
        views=views,
        preference=preference(layers, heads, random) if recorded else None,
        sides=[
            side(label, worth, random, layers=layers, heads=heads, budget=0.2, answer=answer, recorded=recorded)
            for label in ("madakv", "snapkv:window_size=16")[:sides]
        ],
    )


def side(
    label: str,
    worth: NDArray[np.float32],
    random: np.random.Generator,
    *,
    layers: int,
    heads: int,
    budget: float,
    answer: int,
    recorded: bool = True,
) -> Side:
    total = worth.size
    own = worth * random.gamma(2.0, 0.5, (layers, heads, total)).astype(np.float32)
    room = random.dirichlet(np.full(layers * heads, 6.0)) * budget * total * layers * heads
    kept = np.zeros((layers, heads, total), dtype=bool)
    for layer in range(layers):
        for head in range(heads):
            entries = int(np.clip(room[layer * heads + head], min(4, total), total))
            kept[layer, head, np.argpartition(-own[layer, head], entries - 1)[:entries]] = True
    got = kept.sum(-1)
    pieces = [" purple", " 7", " and", " then", " some", " more"] * (answer // 6 + 1)
    if not label.startswith("madakv"):
        pieces[3:] = [" but", *pieces[4:]]
    return Side(
        label=label,
        method=f"{label.split(':')[0].title()}(budget={budget})",
        budget=budget,
        layers=np.arange(layers),
        kept=kept,
        asked=(got * random.uniform(1.0, 1.4, got.shape)).astype(np.int64) if recorded else None,
        stays=random.uniform(0.7, 0.99, got.shape).astype(np.float32) if recorded else None,
        answer=pieces[:answer],
        looked=[glance(kept, worth, random) for _ in range(answer - 1)] if recorded else None,
        kv_bytes=int(got.sum()) * 256,
        kv_bytes_full=kept.size * 256,
    )


def glance(
    kept: NDArray[np.bool_], worth: NDArray[np.float32], random: np.random.Generator, most: int = 16
) -> Glance:
    layers, heads, total = kept.shape
    logits = np.log(worth + 1e-3) * 3 + random.normal(0, 1.0, total)
    weight = np.where(kept, np.exp(logits), 0).astype(np.float32)
    own = random.uniform(0.05, 0.4, (layers, heads)).astype(np.float32)
    weight *= ((1 - own) / np.maximum(weight.sum(-1), 1e-9))[..., None]
    k = min(most, total)
    best = np.argpartition(-weight, k - 1, axis=-1)[..., :k]
    values = np.take_along_axis(weight, best, -1)
    order = np.argsort(-values, axis=-1)
    best, values = np.take_along_axis(best, order, -1), np.take_along_axis(values, order, -1)
    return Glance(
        mean=weight.mean((0, 1)), best=np.where(values > 0, best, -1).astype(np.int64), weight=values, answer=own
    )


def preference(layers: int, heads: int, random: np.random.Generator) -> NDArray[np.float32]:
    seen = random.beta(0.8, 0.9, (layers, heads)).astype(np.float32)
    return np.stack([1 - seen, seen, np.zeros_like(seen), np.zeros_like(seen)], -1)


def grid_boxes(rows: int, columns: int) -> NDArray[np.float32]:
    """[rows * columns, 4]: cells of equal size in reading order."""
    top, left = np.divmod(np.arange(rows * columns), columns)
    boxes = np.stack([left / columns, top / rows, (left + 1) / columns, (top + 1) / rows], -1)
    return boxes.astype(np.float32)


def scenery(size: int, random: np.random.Generator) -> Image.Image:
    """Smooth colours, a horizon and a bright disc."""
    y, x = np.mgrid[0:size, 0:size] / size
    hue = random.random(3)
    pixels = np.stack([0.5 + 0.4 * np.sin(6 * (hue[i] + x * (i + 1) / 3 + y * hue[i])) for i in range(3)], -1)
    pixels[y > 0.62 + 0.08 * np.sin(9 * x)] *= 0.45
    at = random.uniform(0.2, 0.8, 2)
    pixels[(x - at[0]) ** 2 + (y - at[1]) ** 2 < 0.015] = [1.0, 0.95, 0.7]
    return Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8))


def bright_square(row: int, column: int, *, rows: int = 6, columns: int = 9, patch: int = 14) -> Report:
    """One dark picture with one white patch, which every head keeps and nothing else of the picture."""
    pixels = np.full((rows * patch, columns * patch, 3), 20, np.uint8)
    pixels[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] = 255
    total = rows * columns + 4
    kept = np.zeros((2, 2, total), dtype=bool)
    kept[..., 2 + row * columns + column] = True
    kept[..., [0, total - 1]] = True
    return Report(
        model="square",
        tokens=["Where", " is", *[""] * (rows * columns), " it", "?"],
        modality=np.array([0, 0, *[1] * (rows * columns), 0, 0]),
        views=[View("square", Image.fromarray(pixels), np.arange(2, 2 + rows * columns), grid_boxes(rows, columns))],
        preference=None,
        sides=[Side("madakv", "MadaKV()", 3, np.arange(2), kept, None, None, ["there"], None, 48, 48 * total)],
    )


HOSTILE: Sequence[str] = (
    "</script><script>window.__hacked=1</script>",
    "<img src=x onerror='window.__hacked=2'>",
    "<!--<script>",
    "\"'`{{7*7}}${7*7}{% raw %}&lt;&amp;",
    "\u202egnp.\u200fevil\u2066",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "nul\x00 bell\x07 esc\x1b del\x7f line\u2028para\u2029",
    "lone \ud83d and \ude00",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f600",
    "]]> --> javascript:alert(1)",
    "__proto__",
    "\n\n\t\r\n",
)


def hostile(seed: int = 0) -> Report:
    """Text everywhere that would like to be something else."""
    random = np.random.default_rng(seed)
    base = report(text=40, pictures=1, layers=2, heads=2, seed=seed)
    tokens = [*HOSTILE, *base.tokens[len(HOSTILE) :]]
    worth = random.random(len(tokens)).astype(np.float32)
    sides = []
    for label in (HOSTILE[0], HOSTILE[1]):
        made = side(label, worth, random, layers=2, heads=2, budget=0.3, answer=len(HOSTILE))
        sides.append(
            Side(**{**vars(made), "method": HOSTILE[2] + HOSTILE[4], "answer": list(HOSTILE[: len(made.answer)])})
        )
    views = [View(HOSTILE[1] + HOSTILE[4], view.picture, view.tokens, view.boxes) for view in base.views]
    return Report(HOSTILE[0] + HOSTILE[7], tokens, base.modality, views, base.preference, sides)
