"""Documents with all their questions, as tensors for `language.Language`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from captions import Words
from numpy.typing import NDArray
from pictures import Painter, covered
from PIL import Image
from smolvlm import SIDE, TEXT_VOCABULARY, VISUAL_TOKENS, expanded, with_framing
from torch import Tensor

from madakv.evaluation.digits import IMAGE_MARK
from madakv.evaluation.documents import KINDS, Draft, Question, Shape, draft
from madakv.evaluation.documents.english import ENGLISH
from madakv.evaluation.documents.pictures import Thing
from madakv.evaluation.documents.presentation import PLAIN_ENGLISH

BEFORE, BETWEEN, END = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"
"""Around a document with its question, and its answer: what the chat template writes."""
AGAIN = "\n" + BEFORE
"""Before a second question."""
TWICE = 0.15
"""Share of training documents whose questions are asked in turns of two."""
EVERYTHING = dict.fromkeys(KINDS, 99)


def tiles(picture: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """What the image processor makes of a picture: its tiles and, if it has several, the whole as one more."""
    height, width = picture.shape[:2]
    cut = [picture[y : y + SIDE, x : x + SIDE] for y in range(0, height, SIDE) for x in range(0, width, SIDE)]
    if len(cut) == 1:
        return cut
    whole = Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return [*cut, np.asarray(whole)]


def in_reading_order(question: Question, drafted: Draft) -> str:
    """The answer. An album's is right in any order, of which only this one can be learnt."""
    if question.kind != "album":
        return question.answer
    name = question.prompt.removesuffix("?").rpartition(" ")[2]
    heading = ENGLISH.parts["album"].format(name=name, mark="")
    pieces = zip(drafted.text.split(IMAGE_MARK), drafted.contents, strict=False)
    things = [thing for piece, thing in pieces if piece.endswith(heading) and isinstance(thing, Thing)]
    shown = [ENGLISH.called(thing.what) for thing in things]
    assert sorted(shown) == sorted(question.answer.split(ENGLISH.also))
    return ENGLISH.listed(shown)


@dataclass(frozen=True)
class Item:
    """One document.

    Attributes:
        document: ids.
        branches: of one question or of two turns: ids, and where in them each answer with its end stands.
        kinds: of the questions.
        pixels: uint8 [n, 64, 64, 3], every tile in reading order.
        said: int64 [n, 16], what its visual tokens are to say.
    """

    document: list[int]
    branches: list[tuple[list[int], list[range]]]
    kinds: list[str]
    pixels: NDArray[np.uint8]
    said: NDArray[np.int64]


class Reader:
    """Makes items of drafts."""

    def __init__(self, words: Words, painter: Painter) -> None:
        self._painter = painter
        self.tokenizer = with_framing(words.tokenizer)
        self.image_id = TEXT_VOCABULARY

    def ids(self, text: str) -> list[int]:
        """Of a text with special tokens."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def item(self, drafted: Draft, *, turns: int = 1) -> Item:
        """A document and its questions, in turns of so many."""
        text, pixels, said = BEFORE, [], []
        pieces = drafted.text.split(IMAGE_MARK)
        for piece, content, picture in zip(pieces, drafted.contents, drafted.pixels, strict=False):
            own = tiles(picture)
            rows, columns = (0, 0) if len(own) == 1 else (picture.shape[0] // SIDE, picture.shape[1] // SIDE)
            text += piece + expanded(rows, columns)
            pixels += own
            said += [self._painter.said(content, covered(tile)) for tile in own]
        document = self.ids(text + pieces[-1] + ENGLISH.joint)
        branches = []
        for first in range(0, len(drafted.questions), turns):
            ids: list[int] = []
            answers = []
            for question in drafted.questions[first : first + turns]:
                ids += self.ids((AGAIN if ids else "") + question.prompt + BETWEEN)
                answer = self.ids(in_reading_order(question, drafted) + END)
                answers.append(range(len(ids), len(ids) + len(answer)))
                ids += answer
            branches.append((ids, answers))
        return Item(document, branches, [q.kind for q in drafted.questions], np.stack(pixels), np.stack(said))

    def drawn(self, rng: np.random.Generator, shape: Shape, split: str, most: int | None = None) -> Item:
        """A random document with every question that it can answer, or one of every kind where `most` is 1."""
        asked = EVERYTHING if most is None else dict.fromkeys(KINDS, most)
        style = vars(PLAIN_ENGLISH)
        drafted = draft(rng, shape, split=split, distort=split == "train", asked=asked, **style)
        return self.item(drafted, turns=2 if split == "train" and rng.random() < TWICE else 1)


def hard_shape(rng: np.random.Generator) -> Shape:
    """A little of what is hard to learn, and of nothing else."""
    kept = {name: int(rng.binomial(count, 0.4)) for name, count in {"twins": 3, "albums": 2, "pairs": 5}.items()}
    return Shape(**kept, steps=int(rng.choice([0, 2, 3, 4, 5])), named=int(rng.integers(1, 4)))


def small_shape(rng: np.random.Generator, share: float) -> Shape:
    """Some of everything, and more of what is hard to learn: each part is there with a probability of `share`."""
    full = {"codes": 1, "owners": 1, "painted": 1, "twins": 4, "albums": 2, "changes": 1, "steps": 6, "pairs": 8}
    kept = {name: int(rng.binomial(count, share)) for name, count in full.items()}
    if kept["steps"] == 1:
        kept["steps"] = 2
    named = max(kept["owners"], int(rng.integers(1, 4)))
    prose = int(rng.integers(0, 30))
    return Shape(**kept, named=named, unnamed=int(rng.binomial(2, share / 2)), prose=prose)


@dataclass(frozen=True)
class Batch:
    """B documents of D tokens, M branches of L, n tiles, A scored tokens.

    Attributes:
        ids: int64 [B, D + M * L]; visual tokens and what is padded are 0.
        visual: int64 [n * 16], where visual tokens stand in the flattened ids.
        pixels: uint8 [n, 64, 64, 3].
        said: int64 [n, 16].
        lengths: int64 [B].
        places: int64 [B, D], positions of the documents' tokens; questions stand behind the last.
        seen: bool [B, M, D].
        length: L.
        scored, targets: int64 [A]: where answers are predicted, and their ids.
        question: int64 [A], which question they belong to.
        kinds: of the questions.
    """

    ids: Tensor
    visual: Tensor
    pixels: Tensor
    said: Tensor
    lengths: Tensor
    places: Tensor
    seen: Tensor
    length: int
    scored: Tensor
    targets: Tensor
    question: Tensor
    kinds: list[str]

    def to(self, device: torch.device) -> Batch:
        """On a device."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: v.to(device) for name, v in own.items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    @property
    def tokens(self) -> int:
        """Of documents and branches, padding included."""
        return self.ids.numel()


def collate(items: Sequence[Item], image_id: int, *, multiple: int = 32) -> Batch:
    """One batch; lengths are rounded up, so that few shapes occur."""

    def up(n: int) -> int:
        return -(-n // multiple) * multiple

    D = up(max(len(item.document) for item in items))
    M = max(len(item.branches) for item in items)
    L = max(len(ids) for item in items for ids, _ in item.branches)
    ids = torch.zeros(len(items), D + M * L, dtype=torch.int64)
    scored: list[int] = []
    targets: list[int] = []
    question: list[int] = []
    kinds: list[str] = []
    for row, item in enumerate(items):
        ids[row, : len(item.document)] = torch.tensor(item.document)
        asked = iter(item.kinds)
        for number, (branch, answers) in enumerate(item.branches):
            start = D + number * L
            ids[row, start : start + len(branch)] = torch.tensor(branch)
            for answer in answers:
                scored += [row * ids.shape[1] + start + place - 1 for place in answer]
                targets += [branch[place] for place in answer]
                question += [len(kinds)] * len(answer)
                kinds.append(next(asked))
    visual = (ids.flatten() == image_id).nonzero().flatten()
    said = torch.from_numpy(np.concatenate([item.said for item in items]))
    assert len(visual) == len(said) * VISUAL_TOKENS
    ids.view(-1)[visual] = 0
    return Batch(
        ids=ids,
        visual=visual,
        pixels=torch.from_numpy(np.concatenate([item.pixels for item in items])),
        said=said,
        lengths=torch.tensor([len(item.document) for item in items]),
        places=torch.arange(D).repeat(len(items), 1),
        seen=torch.ones(len(items), M, D, dtype=torch.bool),
        length=L,
        scored=torch.tensor(scored),
        targets=torch.tensor(targets),
        question=torch.tensor(question),
        kinds=kinds,
    )


def hidden(batch: Batch, rng: np.random.Generator, share: float, least: float) -> Batch:
    """Some visual tokens hidden from the questions of `share` of the documents: U(`least`, 1) of them stay."""
    seen = batch.seen.clone()
    B, _, D = seen.shape
    width = batch.ids.shape[1]
    rows, places = batch.visual // width, batch.visual % width
    for row in range(B):
        if rng.random() < share:
            own = places[rows == row]
            gone = own[torch.from_numpy(rng.random(len(own)) > rng.uniform(least, 1))]
            seen[row, :, gone[gone < D]] = False
    return replace(batch, seen=seen)


def stretched(batch: Batch, rng: np.random.Generator, share: float, farthest: int) -> Batch:
    """`share` of the documents in pieces that stand apart, as if much lay between them (PoSE, arXiv 2309.10400).

    They end at a position that is uniform up to `farthest`. Pieces begin between words as well as within them.
    """
    places = batch.places.clone()
    for row, length in enumerate(batch.lengths.tolist()):
        if rng.random() < share and length < farthest:
            pieces = int(rng.integers(1, 9))
            starts = np.sort(rng.integers(1, length, size=pieces))
            shifts = np.sort(rng.integers(0, rng.integers(length, farthest + 1) - length + 1, size=pieces))
            for start, shift in zip(starts, np.diff(shifts, prepend=0), strict=True):
                places[row, start:] += int(shift)
    return replace(batch, places=places)
