"""The documents are reproducible, and their answers follow from what they show."""

import re

import numpy as np
import pytest
from numpy.typing import NDArray

from madakv.evaluation import digits
from madakv.evaluation.digits import COLOURS, KINDS, WORDS, Document, Shape, draft, make_document

SEEDS = range(20)


def read_digit(picture: NDArray[np.uint8], split: str) -> str:
    """The digit of an undistorted picture, by looking for the very glyph it was made from."""
    glyphs, labels = digits.digit_pool(split)
    ink = picture.max(-1).astype(float)
    ink = ink / ink.max()
    best = (np.inf, -1)
    for top in range(9):
        for left in range(9):
            seen = ink[top + 1 : top + 24 : 3, left + 1 : left + 24 : 3]
            # Ink outside the window belongs to another placement.
            outside = ink.sum() - ink[top : top + 24, left : left + 24].sum()
            error = ((glyphs - seen) ** 2).sum((1, 2)) + 0.1 * outside
            best = min(best, (float(error.min()), int(labels[error.argmin()])))
    return str(best[1])


def read_colour(picture: NDArray[np.uint8]) -> str:
    brightest = np.argsort(picture.sum(-1).reshape(-1))[-20:]
    paint = picture.reshape(-1, 3)[brightest].mean(0)
    paint = paint / np.linalg.norm(paint)
    return max(COLOURS, key=lambda name: float(paint @ np.array(COLOURS[name]) / np.linalg.norm(COLOURS[name])))


def answer_from_evidence(document: Document, prompt: str) -> str:
    """The answer to `prompt`, from the text's sentences and the pictures' pixels only."""
    pictures = [np.asarray(image) for image in document.images]
    key = prompt.split()[-1]
    if prompt.startswith("? code"):
        return str(re.findall(rf"code {key} (\d \d \d) \.", document.text)[0])
    if prompt.startswith("? which"):
        return " ".join(f"i{i}" for i, picture in enumerate(pictures, 1) if read_colour(picture) == key)
    if prompt == "? list":
        return " ".join(read_digit(picture, "held_out") for picture in pictures)
    if key.startswith("n"):
        key = re.findall(rf"owner {key} (i\d+) \.", document.text)[0]
    shown = pictures[int(key[1:]) - 1]
    return f"{read_colour(shown)} {read_digit(shown, 'held_out')}"


@pytest.mark.parametrize("seed", [0, 1])
def test_answers_follow_from_the_evidence(seed: int) -> None:
    document = make_document(seed)
    for question in document.questions:
        assert question.answer == answer_from_evidence(document, question.prompt), question


def test_equal_arguments_give_equal_documents() -> None:
    first, again = make_document(5, images=4), make_document(5, images=4)
    assert first == again
    assert [image.tobytes() for image in first.images] == [image.tobytes() for image in again.images]
    assert make_document(6, images=4).text != first.text
    assert make_document(5, images=4, split="train").text != first.text or (
        make_document(5, images=4, split="train").images[0].tobytes() != first.images[0].tobytes()
    )


def test_no_digit_is_in_both_splits() -> None:
    held_out = {glyph.tobytes() for glyph in digits.digit_pool("held_out")[0]}
    train = {glyph.tobytes() for glyph in digits.digit_pool("train")[0]}
    assert not held_out & train
    assert len(held_out) == 300
    assert len(train) == 1797 - 300


@pytest.mark.parametrize("images", [2, 3, 4, 6, 8, 12])
def test_marks_match_images_in_reading_order(images: int) -> None:
    document = make_document(1, images=images)
    assert len(document.images) == images
    assert re.findall(r"image (i\d+) <image>", document.text) == [f"i{i}" for i in range(1, images + 1)]
    assert document.text.count("<image>") == images
    assert {image.size for image in document.images} == {(32, 32)}
    assert {image.mode for image in document.images} == {"RGB"}


def test_each_kind_is_asked_once_and_ends_with_its_key() -> None:
    for seed in SEEDS:
        questions = make_document(seed).questions
        assert tuple(question.kind for question in questions) == KINDS
        for question in questions:
            assert question.prompt.startswith("? ")
            assert len(question.answer.split()) >= 2


def test_twelve_pictures_make_three_hundred_tokens() -> None:
    for seed in SEEDS:
        words = make_document(seed).text.split()
        assert len(words) + 12 * 15 >= 300


def test_every_word_is_in_the_vocabulary() -> None:
    assert len(set(WORDS)) == len(WORDS)
    for seed in SEEDS:
        document = make_document(seed)
        asked = [f"{question.prompt} {question.answer}" for question in document.questions]
        assert set(" ".join([document.text, *asked]).split()) <= {*WORDS, "<image>"}


def test_names_are_used_once() -> None:
    for seed in SEEDS:
        names = re.findall(r"(?:code|owner) (n\d+)", make_document(seed).text)
        assert len(names) == len(set(names)) == 8 + 6


def test_distortion_changes_pictures_and_keeps_words() -> None:
    plain = draft(np.random.default_rng(3), Shape.of(4), split="train")
    bent = draft(np.random.default_rng(3), Shape.of(4), split="train", distort=True)
    assert plain.pixels.shape == bent.pixels.shape == (4, 32, 32, 3)
    assert (plain.pixels != bent.pixels).mean() > 0.1


def test_impossible_documents_are_refused() -> None:
    with pytest.raises(ValueError, match="13"):
        make_document(0, images=13)
    with pytest.raises(ValueError, match="needs 2 images"):
        make_document(0, images=1)
    with pytest.raises(ValueError, match="unknown split 'test'"):
        make_document(0, split="test")
