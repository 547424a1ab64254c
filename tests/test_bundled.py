"""The model that ships inside the package loads through transformers' front doors and does its work."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    pipeline,
)

from madakv import bundled
from madakv.evaluation.digits import INDICES, WORDS, Document, make_document

ROOT = Path(__file__).parent.parent
TRAIN = ROOT / "training" / "bundled" / "train.py"
IMAGES = 6


# transformers leaves the calls on models and processors untyped.
Loaded = tuple[Any, Any]


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return bundled.load()


def answer(loaded: Loaded, images: tuple[Image.Image, ...], prompt: str) -> str:
    model, processor = loaded
    inputs = processor(images=list(images), text=prompt, return_tensors="pt")
    produced = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
    decoded: str = processor.decode(produced, skip_special_tokens=True)
    return decoded


def test_loads_through_the_auto_classes_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    model: Any = AutoModelForImageTextToText.from_pretrained(bundled.model_path())
    processor = AutoProcessor.from_pretrained(bundled.model_path())
    assert type(model) is LlavaForConditionalGeneration
    assert type(processor) is LlavaProcessor
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_folder_is_small() -> None:
    assert sum(file.stat().st_size for file in bundled.model_path().iterdir()) <= 12e6


def test_load_gives_evaluation_mode(loaded: Loaded) -> None:
    assert not loaded[0].training
    assert loaded[0].dtype == torch.float32


def test_words_survive_the_tokenizer(loaded: Loaded) -> None:
    tokenizer = loaded[1].tokenizer
    text = " ".join(WORDS)
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert len(ids) == len(WORDS)
    assert tokenizer.decode(ids) == text
    assert tokenizer("never-seen")["input_ids"] == [tokenizer.unk_token_id]


def test_pictures_of_any_size_become_sixteen_tokens(
    loaded: Loaded,
) -> None:
    model, processor = loaded
    pictures = [Image.new("RGB", (57, 91)), Image.new("L", (32, 32))]
    inputs = processor(images=pictures, text="image i1 <image> image i2 <image>", return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 2 * 16
    assert inputs["pixel_values"].shape == (2, 3, 32, 32)


def test_processor_gives_the_pixels_of_training(
    loaded: Loaded,
) -> None:
    picture = make_document(0).images[0]
    given = loaded[1](images=[picture], text="<image>", return_tensors="pt")["pixel_values"][0]
    wanted = (torch.tensor(np.asarray(picture)).permute(2, 0, 1) / 255 - 0.5) / 0.5
    torch.testing.assert_close(given, wanted)


def test_padding_is_on_the_left(loaded: Loaded) -> None:
    tokenizer = loaded[1].tokenizer
    padded = tokenizer(["code n1 1 2 3 .", "code"], padding=True)["input_ids"]
    assert padded[1][:-1] == [tokenizer.pad_token_id] * 5


def correct_answers(loaded: Loaded, document: Document) -> dict[str, bool]:
    return {
        question.kind: answer(loaded, document.images, f"{document.text} {question.prompt}") == question.answer
        for question in document.questions
    }


def test_answers_held_out_documents(loaded: Loaded) -> None:
    results = [correct_answers(loaded, make_document(seed, images=IMAGES)) for seed in range(4)]
    assert np.mean([ok for result in results for ok in result.values()]) >= 0.9
    assert np.mean([result["code"] for result in results]) == 1


def test_answers_come_from_the_document(loaded: Loaded) -> None:
    one, other = make_document(0, images=IMAGES), make_document(1, images=IMAGES)
    question = one.questions[-1]
    assert question.kind == "list"
    assert answer(loaded, other.images, f"{one.text} {question.prompt}") == other.questions[-1].answer


def test_a_padded_batch_gives_what_single_rows_give(
    loaded: Loaded,
) -> None:
    model, processor = loaded
    documents = [make_document(2, images=3), make_document(3, images=IMAGES)]
    prompts = [f"{document.text} {document.questions[0].prompt}" for document in documents]
    inputs = processor(
        images=[list(document.images) for document in documents],
        text=prompts,
        padding=True,
        return_tensors="pt",
    )
    produced = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
    together = processor.batch_decode(produced, skip_special_tokens=True)
    alone = [answer(loaded, document.images, prompt) for document, prompt in zip(documents, prompts, strict=True)]
    assert together == alone


def test_the_sample_is_answered_right(loaded: Loaded) -> None:
    sample = bundled.sample()
    assert len(sample.images) == sample.text.count("<image>") == len(INDICES)
    assert [question.kind for question in sample.questions] == ["code", "show", "owner", "which", "list"]
    assert all(correct_answers(loaded, Document(sample.text, sample.images, sample.questions)).values())


def test_the_pipeline_answers_a_chat(loaded: Loaded) -> None:
    model, processor = loaded
    sample = bundled.sample()
    question = sample.questions[0]
    content: list[dict[str, object]] = []
    for i, part in enumerate(sample.text.split("<image>")):
        if i:
            content.append({"type": "image", "image": sample.images[i - 1]})
        content.append({"type": "text", "text": part.strip()})
    content.append({"type": "text", "text": question.prompt})
    ask: Any = pipeline("image-text-to-text", model=model, processor=processor)
    reply = ask(text=[{"role": "user", "content": content}], return_full_text=False)
    assert reply[0]["generated_text"].strip() == question.answer


@pytest.mark.slow
def test_training_runs_and_resumes(tmp_path: Path) -> None:
    def run(*arguments: str) -> list[dict[str, Any]]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        command = [
            sys.executable,
            str(TRAIN),
            "--smoke",
            "--out",
            str(tmp_path / "model"),
            "--state",
            str(tmp_path),
        ]
        subprocess.run([*command, *arguments], check=True, env=environment, capture_output=True)
        return [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]

    log = run()
    steps = [entry["step"] for entry in log if entry["event"] == "train"]
    assert steps == sorted(steps)
    assert steps
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    assert model.config.architectures == ["LlavaForConditionalGeneration"]
    assert run("--resume")[-1] == {**log[0], "step": steps[-1]}
