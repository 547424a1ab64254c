"""Documents in plain English: the same questions in sentences, pictures in tiles, for models that can read them."""

from __future__ import annotations

import re

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from madakv import InputError, bundled
from madakv.evaluation.documents import KINDS, Draft, Shape, draft, make_document
from madakv.evaluation.documents.document import TILES
from madakv.evaluation.documents.english import ENGLISH
from madakv.evaluation.documents.pictures import Grid, Painting, Thing
from madakv.evaluation.documents.presentation import ONE_SIZE, PLAIN_ENGLISH, SEVERAL, presentation_for
from madakv.evaluation.samples import EXACT
from madakv.evaluation.suites import suite
from madakv.loading import load


def drafted() -> Draft:
    shape = Shape(codes=3, owners=2, painted=12, twins=2, albums=2, changes=2, steps=5, pairs=2, named=30, prose=60)
    asked = dict.fromkeys(KINDS, 99)
    return draft(np.random.default_rng(5), shape, split="held_out", asked=asked, **vars(PLAIN_ENGLISH))


def said(content: object) -> str:
    assert isinstance(content, Thing)
    return f"{content.colour} {ENGLISH.called(content.what)}"


def test_answers_follow_from_the_sentences_around_the_pictures() -> None:
    document = drafted()
    lines = document.text.split("\n")
    shown: dict[str, list[object]] = {}
    pictures = iter(document.contents)
    for line in lines:
        for _ in range(line.count("<image>")):
            shown.setdefault(line.split(":")[0], []).append(next(pictures))
    whats = {
        heading: [said(c).split()[1] for c in things if isinstance(c, Thing)] for heading, things in shown.items()
    }
    counted = dict.fromkeys(KINDS, 0)
    for question in document.questions:
        counted[question.kind] += 1
        key = re.findall(r"([A-Z]\w+)\?$", question.prompt)
        answer = question.answer.split(", ")
        match question.kind:
            case "code":
                assert f"The code of {key[0]} is {question.answer}." in lines
                assert len(question.answer) == 3
            case "show":
                assert answer == [said(shown[f"Picture {key[0]}"][0])]
            case "read":
                painting = shown[f"Picture {key[0]}"][0]
                assert isinstance(painting, Painting)
                assert question.answer == f"{painting.upper} {painting.lower}"
            case "owner":
                assert f"{key[0]} owns picture {answer[0]}." in lines
                assert answer[1] == said(shown[f"Picture {answer[0]}"][0])
            case "twin":
                assert key[0] != answer[1]
                assert shown[f"Picture {key[0]}"] == shown[f"Picture {answer[1]}"]
                assert answer[0] == said(shown[f"Picture {key[0]}"][0])
            case "album":
                assert sorted(answer) == sorted(whats[f"Album {key[0]}"])
            case "change":
                assert answer == [said(shown[f"{when}, {key[0]}"][0]) for when in ("Before", "After")]
            case "differ":
                full, emptied = shown[f"Pair {key[0]}"]
                assert isinstance(full, Grid)
                assert isinstance(emptied, Grid)
                (cell,) = (number for number, colour in enumerate(emptied.colours) if colour is None)
                assert answer == [key[0], full.colours[cell]]
            case "plan":
                assert answer == [whats[f"Step {step}"][0] for step in ("one", "two", "three", "four", "five")]
    assert all(counted.values())


def test_pictures_fill_tiles() -> None:
    """A thing lies whole in one tile of a wide or high picture; words and grids have a tile to themselves."""
    document = drafted()
    sizes = {pixels.shape[:2] for pixels in document.pixels}
    assert sizes == set(TILES)
    for content, pixels in zip(document.contents, document.pixels, strict=True):
        rows, columns = pixels.shape[0] // 64, pixels.shape[1] // 64
        lit = pixels.reshape(rows, 64, columns, 64, 3).max((1, 3, 4)) > 100
        assert lit.sum() == 1
        if not isinstance(content, Thing):
            assert lit.size == 1


def test_documents_need_no_more_names_than_there_are() -> None:
    with pytest.raises(InputError, match="names"):
        draft(np.random.default_rng(0), Shape(named=200), split="held_out", **vars(PLAIN_ENGLISH))


def test_lengths_grow_with_what_is_asked_for() -> None:
    short, long = (make_document(3, tokens=tokens, **vars(PLAIN_ENGLISH)) for tokens in (512, 2048))
    assert len(long.images) > 3 * len(short.images) >= 54


def test_models_are_asked_in_what_they_read() -> None:
    assert presentation_for(load(None, device="cpu")[1]) == ONE_SIZE
    words = set(bundled.named())
    if "small-qwen2.5-vl" in words:
        assert presentation_for(load("small-qwen2.5-vl", device="cpu")[1]) == SEVERAL
    pieces = pre_tokenizers.ByteLevel.alphabet()
    of_bytes = Tokenizer(models.BPE({piece: i for i, piece in enumerate(sorted(pieces))}, []))
    of_bytes.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert presentation_for(PreTrainedTokenizerFast(tokenizer_object=of_bytes)) == PLAIN_ENGLISH


def test_the_suite_asks_in_english_and_takes_lists_in_any_order() -> None:
    samples = {sample.dataset: sample for sample in suite("long-1024")(1, 3, PLAIN_ENGLISH)}
    assert set(samples) == {*KINDS, "second"} - {"show"}
    assert samples["code"].prompt.split("\n")[-1].startswith("What is the code of ")
    assert samples["second"].follow_up is not None
    gold = samples["album"].gold
    backwards = ", ".join(reversed(gold.split(", ")))
    assert samples["album"].judge(backwards).scores == {EXACT: 1.0}
    assert samples["album"].judge(gold + ", ring").scores == {EXACT: 0.0}
