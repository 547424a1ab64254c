"""Documents: facts and pictures in mixed order, and the questions about them.

Every question's last word is its key, so that attention is on the evidence while the question is read, and its
answer has several tokens, so that most of it is generated after eviction:

==========  ==============  ====================  =====================================================
kind        prompt          answer                needs
==========  ==============  ====================  =====================================================
``code``    ? code n3       4 7 1                 a span of text
``read``    ? read n5       apple river           one picture of painted words
``twin``    ? twin n5       red 7 n17             a picture, then the other one that shows the same
``owner``   ? show n7       red 7                 a picture, through the fact ``owner n7 n17 .``
``differ``  ? differ n9     b1 red                two pictures: which cell is empty in one, and what the other has
``plan``    ? plan          ring 4 7 cross 1      the pictures of all steps, in order
``change``  ? change n8     red 7 blue ring       two pictures of a thing, before and after
``album``   ? album n6      7 ring 4              the three pictures of an album, in any order
``show``    ? show n17      red 7                 one picture, by its name
==========  ==============  ====================  =====================================================

Models that read English are asked the same of the same pictures in whole sentences (`documents.english`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from madakv.errors import InputError
from madakv.evaluation.digits import (
    COLOURS,
    DIGITS,
    IMAGE_MARK,
    SPLITS,
    Document,
    known_split,
)
from madakv.evaluation.documents.pictures import THINGS, Content, Grid, Painting, Thing, paint
from madakv.evaluation.documents.shape import Shape
from madakv.evaluation.documents.wording import TERSE, Wording
from madakv.evaluation.documents.words import PAINTED
from madakv.extras import require
from madakv.question import Question

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SIZES = ((32, 32),)
"""The size of pictures (height, width) for models that scale all to one."""
SEVERAL_SIZES = ((32, 32), (32, 48), (48, 32), (48, 48))
TILES = (*[(64, 64)] * 6, (64, 128), (128, 64))
"""For models that cut pictures into tiles of 64 x 64, and read a wide one as two and a smaller whole."""


@dataclass(frozen=True)
class Draft:
    """A document before its pictures become `PIL` images: `pixels` is uint8 [height, width, 3] per picture."""

    text: str
    contents: tuple[Content, ...]
    pixels: tuple[NDArray[np.uint8], ...]
    questions: tuple[Question, ...]


def make_document(
    seed: int,
    *,
    tokens: int,
    visual_share: float | None = None,
    split: str = "held_out",
    sizes: Sequence[tuple[int, int]] = SIZES,
    scale: int = 1,
    wording: Wording = TERSE,
) -> Document:
    """Document number `seed` of a split with one question per kind; equal arguments give equal documents.

    Args:
        seed: which document.
        tokens: length with a question, with `wording.lengths.picture` per picture; several sizes make it longer.
        visual_share: of pictures in `tokens`; None draws it from 0.5 to 0.95.
        split: "train" or "held_out".
        sizes: of pictures, (height, width) in multiples of 16; each picture takes one at random.
        scale: how many times as large as 32 x 32 what a picture shows is drawn.
        wording: what it is written in.
    """
    require("documents need", "eval", "scikit-learn")
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng([seed, SPLITS.index(known_split(split)), tokens])
    share = float(rng.uniform(0.5, 0.95)) if visual_share is None else visual_share
    shape = Shape.of(tokens, share, wording.lengths)
    drafted = draft(rng, shape, split=split, sizes=sizes, scale=scale, wording=wording)
    pictures = tuple(Image.fromarray(pixels) for pixels in drafted.pixels)
    return Document(drafted.text, pictures, drafted.questions)


def draft(
    rng: np.random.Generator,
    shape: Shape,
    *,
    split: str,
    sizes: Sequence[tuple[int, int]] = SIZES,
    distort: bool = False,
    asked: Mapping[str, int] | None = None,
    scale: int = 1,
    wording: Wording = TERSE,
) -> Draft:
    """Draw a document of the given shape.

    Args:
        rng: the only source of chance.
        shape: what it holds.
        split: whose handwriting.
        sizes: see `make_document`.
        distort: vary the handwriting, for training.
        asked: questions per kind; None asks one of every kind that the document can answer.
        scale, wording: see `make_document`.

    Raises:
        InputError: the wording has fewer names than the document needs.
    """
    writer = _Writer(rng, shape, wording)
    blocks = writer.write()
    contents = [content for block in blocks for content in block.contents]
    pixels = on_canvas(rng, paint(rng, contents, split=split, distort=distort), contents, sizes, scale)
    questions = []
    for kind, pool in writer.asked.items():
        order = rng.permutation(len(pool))[: 1 if asked is None else asked.get(kind, 0)]
        questions += [Question(kind, *pool[i]) for i in order]
    shuffled = [questions[i] for i in rng.permutation(len(questions))]
    return Draft(wording.joint.join(block.words for block in blocks), tuple(contents), pixels, tuple(shuffled))


def on_canvas(
    rng: np.random.Generator,
    pictures: NDArray[np.uint8],
    contents: Sequence[Content],
    sizes: Sequence[tuple[int, int]],
    scale: int = 1,
) -> tuple[NDArray[np.uint8], ...]:
    """Each picture somewhere on a dark canvas of one of the sizes; grids, which are compared, fill theirs.

    With a `scale`, pictures are enlarged, and lie within a tile of their own size; painted words, which a smaller
    whole would make illegible, then fill their canvas too.
    """
    import numpy as np

    fills = Grid if scale == 1 else (Grid, Painting)
    placed = []
    for small, content in zip(pictures, contents, strict=True):
        picture = small if scale == 1 else enlarged(small, scale)
        room = picture.shape[:2] if isinstance(content, fills) else sizes[int(rng.integers(len(sizes)))]
        step = 1 if scale == 1 else picture.shape[0]
        y, x = (step * int(rng.integers((room[axis] - picture.shape[axis]) // step + 1)) for axis in range(2))
        canvas = np.zeros((*room, 3), np.uint8)
        canvas[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
        placed.append(canvas)
    return tuple(placed)


def enlarged(picture: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """A picture [height, width, 3] at `scale` times its size, smoothly."""
    import numpy as np
    from PIL import Image

    height, width = picture.shape[:2]
    larger = Image.fromarray(picture).resize((scale * width, scale * height), Image.Resampling.BICUBIC)
    return np.asarray(larger)


@dataclass
class _Block:
    """What stays together: words with `<image>` marks, and what the pictures show.

    Blocks with the same `track` keep their order.
    """

    words: str
    contents: tuple[Content, ...] = ()
    track: str | None = None


class _Writer:
    """Draws facts and pictures, and remembers what can be asked about them."""

    def __init__(self, rng: np.random.Generator, shape: Shape, wording: Wording) -> None:
        if shape.names > len(wording.names):
            raise InputError(f"this document needs {shape.names} names; there are {len(wording.names)}")
        self._rng = rng
        self._shape = shape
        self._wording = wording
        self._names = [wording.names[i] for i in rng.permutation(len(wording.names))[: shape.names]]
        things = [THINGS[i] for i in rng.permutation(len(THINGS))]
        # Things of twins occur nowhere else.
        self._special, self._common = things[: shape.twins], things[shape.twins :]
        self._blocks: list[_Block] = []
        self.asked: dict[str, list[tuple[str, str]]] = {}
        """(prompt, answer) of every question that can be asked, per kind."""

    def write(self) -> list[_Block]:
        """All blocks in reading order."""
        shape = self._shape
        for _ in range(shape.codes):
            self._code()
        for _ in range(shape.painted):
            self._painting()
        for _ in range(shape.twins):
            self._twin()
        for _ in range(shape.albums):
            self._album()
        for _ in range(shape.changes):
            self._change()
        for _ in range(shape.pairs):
            self._pair()
        self._plan()
        self._pictures()
        self._blocks += [_Block(IMAGE_MARK, (self._thing(),)) for _ in range(shape.unnamed)]
        self._blocks += [_Block(IMAGE_MARK, (self._scenery(),)) for _ in range(shape.scenery)]
        self._prose()
        return self._in_order()

    def _in_order(self) -> list[_Block]:
        """Blocks in random order, those of a track in theirs."""
        shuffled = [self._blocks[i] for i in self._rng.permutation(len(self._blocks))]
        waiting = {block.track: [b for b in self._blocks if b.track == block.track] for block in shuffled}
        return [waiting[block.track].pop(0) if block.track else block for block in shuffled]

    def _block(self, part: str, contents: Sequence[Content] = (), track: str | None = None, **named: str) -> None:
        words = self._wording.parts[part].format(mark=IMAGE_MARK, **named)
        self._blocks.append(_Block(words, tuple(contents), track))

    def _ask(self, kind: str, answer: str, name: str = "") -> None:
        self.asked.setdefault(kind, []).append((self._wording.asked[kind].format(name=name), answer))

    def _said(self, thing: Thing) -> str:
        return f"{thing.colour} {self._wording.called(thing.what)}"

    def _whats(self, things: Sequence[Thing]) -> str:
        return self._wording.listed([self._wording.called(thing.what) for thing in things])

    def _thing(self) -> Thing:
        thing: Thing = self._common[int(self._rng.integers(len(self._common)))]
        return thing

    def _scenery(self) -> Content:
        return self._grid() if self._rng.random() < 0.5 else self._words()

    def _grid(self) -> Grid:
        colours = list(COLOURS)
        return Grid(tuple(colours[i] for i in self._rng.integers(len(colours), size=4)))

    def _words(self) -> Painting:
        upper, lower = (PAINTED[i] for i in self._rng.permutation(len(PAINTED))[:2])
        return Painting(upper, lower, list(COLOURS)[int(self._rng.integers(len(COLOURS)))])

    def _picture(self, content: Content) -> str:
        name: str = self._names.pop()
        self._block("picture", (content,), name=name)
        return name

    def _code(self) -> None:
        name = self._names.pop()
        code = self._wording.within.join(DIGITS[d] for d in self._rng.integers(10, size=3))
        self._block("code", name=name, code=code)
        self._ask("code", code, name)

    def _painting(self) -> None:
        words = self._words()
        name = self._picture(words)
        self._ask("read", f"{words.upper} {words.lower}", name)

    def _twin(self) -> None:
        thing = self._special.pop()
        one, other = self._picture(thing), self._picture(thing)
        self._ask("twin", self._wording.listed([self._said(thing), other]), one)
        self._ask("twin", self._wording.listed([self._said(thing), one]), other)

    def _album(self) -> None:
        name = self._names.pop()
        shown: list[Thing] = []
        while len(shown) < 3:
            thing = self._thing()
            if thing.what not in [other.what for other in shown]:
                shown.append(thing)
        for thing in shown:
            self._block("album", (thing,), name=name)
        self._ask("album", self._whats(shown), name)

    def _change(self) -> None:
        name = self._names.pop()
        before, after = self._thing(), self._thing()
        self._block("before", (before,), name, name=name)
        self._block("after", (after,), name, name=name)
        self._ask("change", self._wording.listed([self._said(before), self._said(after)]), name)

    def _pair(self) -> None:
        name = self._names.pop()
        full = self._grid()
        cell = int(self._rng.integers(4))
        emptied = Grid(tuple(None if i == cell else colour for i, colour in enumerate(full.colours)))
        self._block("pair", (full, emptied), name=name)
        colour = full.colours[cell]
        assert colour is not None
        said = self._wording.emptied.format(cell=self._wording.cells[cell], colour=colour, name=name)
        self._ask("differ", said, name)

    def _plan(self) -> None:
        shown = [self._thing() for _ in range(self._shape.steps)]
        for step, thing in zip(self._wording.steps, shown, strict=False):
            self._block("step", (thing,), "plan", name=step)
        if shown:
            self._ask("plan", self._whats(shown))

    def _pictures(self) -> None:
        for number in range(self._shape.named):
            thing = self._thing()
            name = self._picture(thing)
            self._ask("show", self._said(thing), name)
            if number < self._shape.owners:
                owner = self._names.pop()
                self._block("owner", name=owner, other=name)
                self._ask("owner", self._wording.owned.format(other=name, thing=self._said(thing)), owner)

    def _prose(self) -> None:
        left = self._shape.prose
        while left > 0:
            sentence, length = self._wording.sentence(self._rng, left)
            self._blocks.append(_Block(sentence))
            left -= length
