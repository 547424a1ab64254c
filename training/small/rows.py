"""Batches: word sequences to copy, single pictures with captions, and documents with many questions each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from architecture import CELL, EOS, PAD, PIXEL_MEAN, PIXEL_STD, VOCABULARY, Architecture
from numpy.typing import NDArray
from stages import Asked
from torch import Tensor
from torch.nn import functional as F

from madakv.evaluation.digits import COLOURS, IMAGE_MARK
from madakv.evaluation.documents import WORDS, Shape, draft
from madakv.evaluation.documents.document import on_canvas
from madakv.evaluation.documents.pictures import THINGS, Content, Grid, Painting, Thing, paint
from madakv.evaluation.documents.words import NAMES, PAINTED, PROSE
from madakv.evaluation.suites import IN_ANY_ORDER
from madakv.question import Question

COPY_LENGTHS = (8, 24)
COPIED = WORDS[: -len(PROSE)]
"""Words that answers can hold."""


@dataclass(frozen=True)
class Item:
    """A sequence in words: a document, then (prompt, answer) pairs one after another."""

    document: list[str]
    asked: list[tuple[list[str], list[str]]]
    kinds: list[str]
    pixels: Sequence[NDArray[np.uint8]]
    contents: Sequence[Content] = ()

    def hints(self, question: int) -> list[str]:
        """What copying gives, where that is (half of) the answer: `n17` for an owner, all words of a repeat."""
        prompt, answer = self.asked[question]
        if self.kinds[question] == "copy":
            return answer
        if self.kinds[question] == "owner":
            return [self.document[self.document.index(prompt[-1]) + 1]]
        return []

    def picture_hints(self) -> dict[int, list[str]]:
        """By the index of its mark in the document, what a picture's last token should know: its name and thing."""
        marks = [i for i, word in enumerate(self.document) if word == IMAGE_MARK]
        hints: dict[int, list[str]] = {}
        for i, content in zip(marks, self.contents, strict=False):
            named = self.document[max(0, i - 2)] in ("image", "pair", "album")
            things = content.words.split() if isinstance(content, Thing) else []
            hints[i] = [*([self.document[i - 1]] if named else []), *things]
        return hints


@dataclass(frozen=True)
class Batch:
    """T tokens per row; the A answer tokens of the whole batch are gathered, since only they are scored.

    Attributes:
        inputs: what the model's `model` takes, tensors on the CPU.
        at: [A] int64, where in the flattened [B * T] each answer token is predicted.
        targets: [A] int64, its id.
        question: [A] int64, which question of the batch it belongs to.
        kinds: of each question.
        hint_at, hints: like `at` and `targets`, for what `Item.hints` and `Item.picture_hints` give.
    """

    inputs: dict[str, Tensor]
    at: Tensor
    targets: Tensor
    question: Tensor
    kinds: list[str]
    hint_at: Tensor
    hints: Tensor

    def accepted(self, words: int) -> Tensor:
        """[A, words] bool: the right tokens of a vocabulary of `words`; in a list, all not named yet."""
        accepted = F.one_hot(self.targets, words).bool()
        for number in (i for i, kind in enumerate(self.kinds) if kind in IN_ANY_ORDER):
            own = (self.question == number).nonzero().flatten()[:-1]
            for i, at in enumerate(own):
                accepted[at, self.targets[own[i:]]] = True
        return accepted

    def hit(self, logits: Tensor) -> Tensor:
        """[A] bool: which answer tokens the greedy choice of `logits` [A, words] gets right."""
        return self.accepted(logits.shape[-1]).gather(1, logits.argmax(-1, keepdim=True)).squeeze(1)

    def loss(self, logits: Tensor) -> Tensor:
        """Mean surprise at the accepted tokens together, so that no order of a list is taught."""
        accepted = self.accepted(logits.shape[-1]).to(logits.device)
        likely = logits.masked_fill(~accepted, float("-inf")).logsumexp(-1)
        return (logits.logsumexp(-1) - likely).mean()

    @property
    def tokens(self) -> int:
        """Tokens of all rows, padding included."""
        return self.inputs["input_ids"].numel()


def copy_item(rng: np.random.Generator) -> Item:
    """Random words, and the same words again as the answer."""
    length = int(rng.integers(COPY_LENGTHS[0], COPY_LENGTHS[1] + 1))
    words = [COPIED[i] for i in rng.integers(len(COPIED), size=length)]
    # The first word of the repeat is given: nothing announces it.
    return Item(words, [(words[:1], words[1:])], ["copy"], [])


def draw_caption(rng: np.random.Generator) -> tuple[Content, str, str]:
    """What one picture shows, its kind, and what is said of it."""
    colours = list(COLOURS)
    sort = rng.random()
    if sort < 0.5:
        thing = THINGS[int(rng.integers(len(THINGS)))]
        return thing, "thing", thing.words
    if sort < 0.8:
        upper, lower = (PAINTED[i] for i in rng.integers(len(PAINTED), size=2))
        return Painting(upper, lower, colours[int(rng.integers(len(colours)))]), "painting", f"{upper} {lower}"
    a, b, c, d = (colours[i] for i in rng.integers(len(colours), size=4))
    return Grid((a, b, c, d)), "grid", f"{a} {b} {c} {d}"


def caption_item(rng: np.random.Generator, sizes: Sequence[tuple[int, int]], split: str, distort: bool) -> Item:
    """One picture and, right after it, what it shows."""
    content, kind, said = draw_caption(rng)
    pixels = on_canvas(rng, paint(rng, [content], split=split, distort=distort), [content], sizes)
    name = NAMES[int(rng.integers(len(NAMES)))]
    return Item(["image", name], [([IMAGE_MARK], said.split())], [kind], pixels)


def document_item(
    rng: np.random.Generator,
    shape: Shape,
    asked: Asked | None,
    sizes: Sequence[tuple[int, int]],
    split: str,
    distort: bool,
) -> Item:
    """A document with its questions."""
    drafted = draft(rng, shape, split=split, sizes=sizes, distort=distort, asked=asked)
    words = drafted.text.split()
    questions = untold(words, drafted.questions)
    pairs = [(q.prompt.split(), q.answer.split()) for q in questions]
    return Item(words, pairs, [q.kind for q in questions], drafted.pixels, drafted.contents)


def untold(document: list[str], questions: Sequence[Question]) -> list[Question]:
    """Without those that another question of the row answers in its words, so that all look at pictures.

    `? twin n5 red 7 n17` tells the twin of n17, and `? show n17 red 7` what the owner of n17 shows.
    """
    key = {question: question.prompt.split()[-1] for question in questions}
    owned = {document[document.index(key[q]) + 1] for q in questions if q.kind == "owner"}
    kept: list[Question] = []
    twins: set[str] = set()
    for question in questions:
        told = question.kind == "show" and key[question] in owned
        if question.kind == "twin":
            told = question.answer.split()[-1] in twins
            twins.add(key[question])
        if not told:
            kept.append(question)
    return kept


def collate(items: Sequence[Item], architecture: Architecture) -> Batch:
    """Rows padded on the right to the longest; attention is causal, so that padding is never seen."""
    rows: list[list[int]] = []
    at: list[tuple[int, int]] = []
    targets: list[int] = []
    question: list[int] = []
    kinds: list[str] = []
    hint_at: list[tuple[int, int]] = []
    hints: list[int] = []
    for row, item in enumerate(items):
        pictures = iter(item.pixels)
        knows = item.picture_hints()
        ids: list[int] = []
        for i, word in enumerate(item.document):
            ids += _ids(word, pictures, architecture)
            known = [VOCABULARY[hint] for hint in knows.get(i, ())]
            hint_at += [(row, len(ids) - 1 - architecture.framed)] * len(known)
            hints += known
        for number, ((prompt, answer), kind) in enumerate(zip(item.asked, item.kinds, strict=True)):
            for word in prompt:
                ids += _ids(word, pictures, architecture)
            answered = [VOCABULARY[word] for word in answer]
            at += [(row, len(ids) - 1 + i) for i in range(len(answered) + 1)]
            targets += [*answered, VOCABULARY[EOS]]
            hinted = [VOCABULARY[word] for word in item.hints(number)]
            hint_at += [(row, len(ids) - 1 + i) for i in range(len(hinted))]
            hints += hinted
            question += [len(kinds)] * (len(answered) + 1)
            kinds.append(kind)
            ids += answered
        rows.append(ids)
    width = max(len(ids) for ids in rows)
    inputs = {"input_ids": torch.tensor([ids + [VOCABULARY[PAD]] * (width - len(ids)) for ids in rows])}
    pixels = [picture for item in items for picture in item.pixels]
    if architecture.framed:
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == VOCABULARY[IMAGE_MARK]).long()
    if pixels and architecture.framed:
        inputs["image_grid_thw"] = torch.tensor([[1, 2 * p.shape[0] // CELL, 2 * p.shape[1] // CELL] for p in pixels])
        inputs["pixel_values"] = torch.cat([patches(p) for p in pixels])
    elif pixels:
        inputs["pixel_values"] = normalise(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    return Batch(
        inputs=inputs,
        at=torch.tensor([row * width + column for row, column in at]),
        targets=torch.tensor(targets),
        question=torch.tensor(question),
        kinds=kinds,
        hint_at=torch.tensor([row * width + column for row, column in hint_at], dtype=torch.int64),
        hints=torch.tensor(hints, dtype=torch.int64),
    )


def _ids(word: str, pictures: Iterator[NDArray[np.uint8]], architecture: Architecture) -> list[int]:
    """The ids of a word, or of the next picture."""
    return architecture.picture_ids(*next(pictures).shape[:2]) if word == IMAGE_MARK else [VOCABULARY[word]]


def normalise(pixels: NDArray[np.uint8]) -> Tensor:
    """uint8 [..., 3] to float32 as the image processors do."""
    return (torch.from_numpy(pixels).float() / 255 - PIXEL_MEAN) / PIXEL_STD


def patches(picture: NDArray[np.uint8]) -> Tensor:
    """[height, width, 3] to Qwen's rows of patches, [patches, 3 * 2 * side * side], 2 x 2 neighbours together."""
    side = CELL // 2
    height, width = picture.shape[0] // CELL, picture.shape[1] // CELL
    cells = normalise(picture).view(height, 2, side, width, 2, side, 3)
    cells = cells.permute(0, 3, 1, 4, 6, 2, 5).reshape(height * width * 4, 3, 1, side, side)
    return cells.expand(-1, -1, 2, -1, -1).reshape(height * width * 4, -1)
