"""Batches for the three kinds of training material: word sequences to copy, captions, and documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from model import EOS, PAD, PIXEL_MEAN, PIXEL_STD, TOKENS_PER_IMAGE, VOCABULARY
from numpy.typing import NDArray
from torch import Tensor

from madakv.evaluation.digits import IMAGE_MARK, INDICES, WORDS, Shape, draft

COPY_LENGTHS = (8, 24)


@dataclass(frozen=True)
class Item:
    """A sequence in words: a document, then (prompt, answer) pairs that see it but not each other."""

    document: list[str]
    asked: list[tuple[list[str], list[str]]]
    kinds: list[str]
    pixels: NDArray[np.uint8]

    def hints(self, question: int) -> list[str]:
        """What copying gives, where that is (half of) the answer: `i5` for `? show n7`, all words of a repeat."""
        prompt, answer = self.asked[question]
        if self.kinds[question] == "copy":
            return answer
        if self.kinds[question] == "owner":
            return [self.document[self.document.index(prompt[-1]) + 1]]
        return []


@dataclass(frozen=True)
class Batch:
    """T tokens per row; the A answer tokens of the whole batch are gathered, since only they are scored.

    `mask` is True where a token (dim 2) sees another (dim 3). `at` are flat indices into [B * T].
    `question` numbers the question of every answer token, and `kinds` names the kind of every question.
    """

    ids: Tensor  # int64 [B, T]
    positions: Tensor  # int64 [B, T]
    mask: Tensor  # bool [B, 1, T, T]
    pixels: Tensor | None  # float32 [pictures, 3, 32, 32]
    at: Tensor  # int64 [A]
    targets: Tensor  # int64 [A]
    question: Tensor  # int64 [A]
    kinds: list[str]
    hint_at: Tensor  # int64 [hints]: flat indices of the tokens that are given one
    hints: Tensor  # int64 [hints]


def copy_item(rng: np.random.Generator) -> Item:
    """Random words, repeated once: what induction heads are learnt from."""
    length = int(rng.integers(COPY_LENGTHS[0], COPY_LENGTHS[1] + 1))
    words = [WORDS[i] for i in rng.integers(len(WORDS), size=length)]
    # The first word of the repeat is given: nothing announces it.
    return Item(words, [(words[:1], words[1:])], ["copy"], np.empty((0, 32, 32, 3), np.uint8))


def caption_item(rng: np.random.Generator, split: str, distort: bool) -> Item:
    """One picture and, right after it, its colour and digit."""
    drafted = draft(rng, Shape(1, 0, 0, 0, {"show": 1}), split=split, distort=distort)
    answer = drafted.questions[0].answer.split()
    number = INDICES[int(rng.integers(len(INDICES)))]
    return Item(["image", number], [([IMAGE_MARK], answer)], ["caption"], drafted.pixels)


def document_item(rng: np.random.Generator, shape: Shape, split: str, distort: bool) -> Item:
    """A document with all its questions."""
    drafted = draft(rng, shape, split=split, distort=distort)
    asked = [(q.prompt.split(), q.answer.split()) for q in drafted.questions]
    return Item(drafted.text.split(), asked, [q.kind for q in drafted.questions], drafted.pixels)


def _ids(words: Sequence[str]) -> list[int]:
    ids: list[int] = []
    for word in words:
        ids += [VOCABULARY[word]] * (TOKENS_PER_IMAGE if word == IMAGE_MARK else 1)
    return ids


def collate(items: Sequence[Item]) -> Batch:
    """Rows padded on the right to the longest."""
    rows: list[list[int]] = []
    positions: list[list[int]] = []
    owners: list[list[int]] = []  # 0 for the document, q + 1 for its question q
    at: list[tuple[int, int]] = []
    targets: list[int] = []
    question: list[int] = []
    kinds: list[str] = []
    hint_at: list[tuple[int, int]] = []
    hints: list[int] = []
    for row, item in enumerate(items):
        ids = _ids(item.document)
        position = list(range(len(ids)))
        owner = [0] * len(ids)
        start = len(ids)
        for q, (prompt, answer) in enumerate(item.asked):
            asked, answered = _ids(prompt), _ids(answer)
            first = len(ids) + len(asked) - 1
            at += [(row, first + i) for i in range(len(answered) + 1)]
            targets += [*answered, VOCABULARY[EOS]]
            question += [len(kinds)] * (len(answered) + 1)
            kinds.append(item.kinds[q])
            hinted = _ids(item.hints(q))
            hint_at += [(row, first + i) for i in range(len(hinted))]
            hints += hinted
            ids += asked + answered
            position += range(start, start + len(asked) + len(answered))
            owner += [q + 1] * (len(asked) + len(answered))
        rows.append(ids)
        positions.append(position)
        owners.append(owner)
    width = max(len(ids) for ids in rows)
    padded = torch.tensor([ids + [VOCABULARY[PAD]] * (width - len(ids)) for ids in rows])
    seen = torch.tensor([owner + [-1] * (width - len(owner)) for owner in owners])
    mask = (seen[:, None, :] == 0) | (seen[:, None, :] == seen[:, :, None])
    mask &= torch.ones(width, width, dtype=torch.bool).tril()
    pixels = np.concatenate([item.pixels for item in items])
    return Batch(
        ids=padded,
        positions=torch.tensor([position + [0] * (width - len(position)) for position in positions]),
        mask=mask[:, None],
        pixels=normalise(pixels) if len(pixels) else None,
        at=torch.tensor([row * width + column for row, column in at]),
        targets=torch.tensor(targets),
        question=torch.tensor(question),
        kinds=kinds,
        hint_at=torch.tensor([row * width + column for row, column in hint_at], dtype=torch.int64),
        hints=torch.tensor(hints, dtype=torch.int64),
    )


def normalise(pixels: NDArray[np.uint8]) -> Tensor:
    """What the image processor does: uint8 [n, 32, 32, 3] to float32 [n, 3, 32, 32]."""
    scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return ((scaled - PIXEL_MEAN) / PIXEL_STD).contiguous()
