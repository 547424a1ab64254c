"""Long documents: the same every time, as long as asked for, and answerable."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from madakv import InputError
from madakv.evaluation.documents import KINDS, MILEBENCH, WORDS, Draft, Shape, draft, make_document
from madakv.evaluation.documents.document import SEVERAL_SIZES
from madakv.evaluation.documents.pictures import THINGS, Grid, Painting, Thing, paint
from madakv.evaluation.documents.presentation import ONE_SIZE, SEVERAL
from madakv.evaluation.suites import LENGTHS, SECOND, suite

TASKS = {kind for kind in KINDS if kind != "show"}


def tokens_of(text: str, pictures: int) -> int:
    return len(text.split()) + 15 * pictures


@pytest.mark.parametrize("tokens", LENGTHS)
@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_documents_are_as_long_and_as_visual_as_asked_for(tokens: int, share: float) -> None:
    document = make_document(7, tokens=tokens, visual_share=share)
    length = tokens_of(document.text, len(document.images)) + 8
    # What the questions need is never left out.
    assert 0.88 * tokens <= length <= 1.04 * tokens
    if tokens > 1500:
        assert 16 * len(document.images) / length == pytest.approx(share, abs=0.04)


def test_equal_arguments_give_equal_documents() -> None:
    one, other, third = (make_document(seed, tokens=512) for seed in (3, 3, 4))
    assert one.text == other.text
    assert one.questions == other.questions
    assert all(np.array_equal(a, b) for a, b in zip(one.images, other.images, strict=True))
    assert one.text != third.text


def test_every_kind_is_asked_in_known_words_and_answered_in_several() -> None:
    for seed, tokens in enumerate((512, 1024, 2048)):
        document = make_document(seed, tokens=tokens)
        assert {question.kind for question in document.questions} == set(KINDS)
        assert set(document.text.split()) <= {*WORDS, "<image>"}
        for question in document.questions:
            words = question.answer.split()
            assert len(words) >= 2
            assert {*words, *question.prompt.split()} <= set(WORDS)
    assert set(MILEBENCH) == TASKS | {"second"}


def small() -> Draft:
    shape = Shape(codes=3, owners=2, painted=2, twins=2, albums=2, changes=2, steps=5, pairs=2, named=3, prose=30)
    asked = dict.fromkeys(KINDS, 99)
    return draft(np.random.default_rng(5), shape, split="held_out", asked=asked)


def test_answers_follow_from_the_words_around_the_pictures() -> None:
    drafted = small()
    words = drafted.text.split()
    named = [words[i + 1] for i, word in enumerate(words) if word in ("image", "pair", "code", "owner", "before")]
    assert len(set(named)) == len(named)
    asked = Counter(question.kind for question in drafted.questions)
    assert asked == {
        **{"code": 3, "owner": 2, "read": 2, "twin": 4, "album": 2, "change": 2, "plan": 1, "differ": 2, "show": 3}
    }
    shown = {q.prompt.split()[-1]: q.answer for q in drafted.questions if q.kind == "show"}
    for question in drafted.questions:
        key, answer = question.prompt.split()[-1], question.answer.split()
        if question.kind == "code":
            assert " ".join(["code", key, *answer, "."]) in drafted.text
        elif question.kind == "owner":
            assert question.answer == shown[words[words.index(key) + 1]]
        elif question.kind == "twin":
            assert f"image {answer[2]} <image>" in drafted.text
            assert answer[2] != key
        elif question.kind == "album":
            marks = [i for i, word in enumerate(words) if word == "<image>"]
            held = [c for i, c in zip(marks, drafted.contents, strict=True) if words[i - 2 : i] == ["album", key]]
            assert sorted(answer) == sorted(c.what for c in held if isinstance(c, Thing))
            assert len(set(answer)) == len(held) == 3
        elif question.kind == "change":
            assert words.index("before") >= 0
            assert drafted.text.index(f"before {key} ") < drafted.text.index(f"after {key} ")
    steps = [words[i + 1] for i, word in enumerate(words) if word == "step"]
    assert steps == ["s1", "s2", "s3", "s4", "s5"]


def test_pairs_differ_in_one_cell_alone() -> None:
    """Read off the pixels: the empty cell and the colour that it had."""
    from madakv.evaluation.digits import COLOURS

    def colours(picture: np.ndarray) -> list[str | None]:
        middles = [picture[y + 4 : y + 12, x + 4 : x + 12].mean((0, 1)) for y in (0, 16) for x in (0, 16)]
        nearest = [min(COLOURS, key=lambda c: float(np.abs(np.array(COLOURS[c]) - m).sum())) for m in middles]
        return [colour if m.max() > 60 else None for colour, m in zip(nearest, middles, strict=True)]

    drafted = small()
    words = drafted.text.split()
    marks = [i for i, word in enumerate(words) if word == "<image>"]
    for question in drafted.questions:
        if question.kind == "differ":
            at = words.index(question.prompt.split()[-1])
            first = marks.index(at + 1)
            before, after = (colours(drafted.pixels[first + i]) for i in range(2))
            (empty,) = [i for i in range(4) if after[i] is None]
            assert [colour for i, colour in enumerate(before) if i != empty] == [c for c in after if c]
            assert question.answer == f"{('a1', 'a2', 'b1', 'b2')[empty]} {before[empty]}"


def test_things_of_twins_are_shown_twice() -> None:
    rng = np.random.default_rng(0)
    shape = Shape(twins=2, albums=2, changes=2, steps=5, named=30, unnamed=40, scenery=9)
    for _ in range(5):
        drafted = draft(rng, shape, split="train", asked={"twin": 99})
        shown = Counter(content.words for content in drafted.contents if isinstance(content, Thing))
        assert {shown[" ".join(q.answer.split()[:2])] for q in drafted.questions} == {2}


def test_albums_hold_three_different_things() -> None:
    """Else an answer could name one of them once for two, and be right."""
    drafted = draft(np.random.default_rng(0), Shape(albums=60), split="train", asked={"album": 99})
    assert [len(set(question.answer.split())) for question in drafted.questions] == [3] * 60


def test_beyond_2048_tokens_no_more_pictures_show_things() -> None:
    shown = {}
    for tokens in LENGTHS[1:]:
        drafted = draft(np.random.default_rng(2), Shape.of(tokens, 0.9), split="held_out")
        assert len(drafted.contents) == pytest.approx(tokens * 0.9 / 16, rel=0.1)
        shown[tokens] = sum(isinstance(content, Thing) for content in drafted.contents)
        others = Counter(type(content) for content in drafted.contents if not isinstance(content, Thing))
        assert len(others) == 2
    assert shown[2048] == shown[4096] < 1.5 * shown[1024]
    assert min(others.values()) > 60


def test_pictures_of_several_sizes() -> None:
    document = make_document(2, tokens=512, sizes=SEVERAL_SIZES)
    sizes = {(image.height, image.width) for image in document.images}
    assert sizes == set(SEVERAL_SIZES)


def test_every_content_looks_different() -> None:
    rng = np.random.default_rng(1)
    contents = [*THINGS, Painting("apple", "stone", "red"), Painting("stone", "apple", "red")]
    contents += [Grid(("red", "red", "blue", "blue")), Grid(("red", "red", "blue", None))]
    pictures = paint(rng, contents, split="held_out", distort=False).astype(np.float32)
    assert pictures.shape == (len(contents), 32, 32, 3)
    assert (pictures.max((1, 2, 3)) > 150).all()
    flat = pictures.reshape(len(contents), -1)
    nearest = (np.abs(flat[:, None] - flat[None]).mean(-1) + 1e6 * np.eye(len(contents))).min(1)
    assert nearest.min() > 5


@pytest.mark.parametrize(("tokens", "share"), [(300, 0.5), (1024, 0.4), (1024, 0.99)])
def test_impossible_documents_are_refused(tokens: int, share: float) -> None:
    with pytest.raises(InputError, match=f"got {tokens} and {share}"):
        Shape.of(tokens, share)
    with pytest.raises(InputError, match="owners need"):
        Shape(owners=2, named=1)


def test_the_suite_asks_every_task_of_every_document() -> None:
    samples = list(suite("long")(4, 10, ONE_SIZE))
    assert len(samples) == len({(sample.id, sample.dataset) for sample in samples}) == 4 * 9
    assert {sample.dataset for sample in samples} == TASKS | {"second"}
    lengths = [tokens_of(sample.prompt, sample.images) for sample in samples]
    assert max(lengths) > 3500
    assert min(lengths) < 540
    seconds = [sample for sample in samples if sample.dataset == "second"]
    assert [sample.follow_up is not None for sample in samples] == [s.dataset == "second" for s in samples]
    assert {s.follow_up.split()[1] for s in seconds if s.follow_up} == {"code", "read", "show", "change"}
    assert len(SECOND) == 4
    album, plan = (next(s for s in samples if s.dataset == kind) for kind in ("album", "plan"))
    first, *others = album.gold.split()
    for answer, right in (([*others, first], 1.0), (others, 0.0), ([first, *others, first], 0.0)):
        assert album.judge(" ".join(answer)).scores == {"exact": right}
    first, *others = plan.gold.split()
    assert plan.judge(" ".join([*others, first])).scores == {"exact": 0.0}
    one_length = list(suite("long-1024")(2, 0, SEVERAL))
    assert {sample.id.split("-")[1] for sample in one_length} == {"1024"}
    assert len({image.size for image in one_length[0].pictures()}) > 1
