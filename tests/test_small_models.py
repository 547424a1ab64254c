"""The models of the long documents: they load by name, read as they were trained, and answer."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import madakv
from madakv import ConfigurationError, bundled
from madakv.answering import answer
from madakv.bundled.processor import PictureProcessor
from madakv.evaluation.documents import WORDS, Question, make_document
from madakv.evaluation.documents.document import SIZES
from madakv.evaluation.documents.presentation import presentation_for
from madakv.evaluation.samples import EXACT, Judge, equal_to
from madakv.evaluation.suites import IN_ANY_ORDER
from madakv.loading import load, source_of
from madakv.methods import from_text
from madakv.prompts import model_inputs

TRAINING = Path(__file__).parents[1] / "training" / "small"


NAMES = ["small-llava", "small-qwen2.5-vl"]


def test_they_are_found_by_name_and_small() -> None:
    assert list(bundled.named()) == [*NAMES, "small-smolvlm"]
    size = sum(file.stat().st_size for folder in bundled.named().values() for file in folder.iterdir())
    assert size < 48 << 20


def test_they_are_found_where_a_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not in the wheel: whoever lacks them is told where they are, in one line."""
    checkout = bundled.named()["small-llava"]
    monkeypatch.setenv("MADAKV_MODELS", str(tmp_path))
    assert bundled.named() == {}
    with pytest.raises(ConfigurationError) as caught:
        load("small-llava", device="cpu")
    for part in (str(tmp_path), "models/small-llava of madakv's repository", "MADAKV_MODELS"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    (tmp_path / "small-llava").symlink_to(checkout)
    assert source_of("small-llava") == str(tmp_path / "small-llava")
    monkeypatch.setenv("MADAKV_MODELS", "")
    assert source_of("small-llava") == str(checkout)


@pytest.mark.parametrize("name", NAMES)
def test_every_word_of_the_documents_is_known(name: str) -> None:
    assert set(WORDS) <= set(load(name, device="cpu")[1].tokenizer.get_vocab())


def judged(question: Question) -> Judge:
    return equal_to(question.answer, in_any_order=question.kind in IN_ANY_ORDER)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_long_documents_are_answered(name: str) -> None:
    """Most answers of 500 and 1,000 tokens are right, whole; with a draft at a tenth of the memory as well."""
    model, processor = load(name, device="cpu")
    assert model.dtype == torch.float32
    assert 5e6 <= sum(p.numel() for p in model.parameters()) <= 30e6
    presentation = presentation_for(processor)
    right: dict[str, list[bool]] = {"full": [], "madakv:draft=8": []}
    for seed, tokens in ((900, 512), (901, 1024)):
        document = make_document(seed, tokens=tokens, **vars(presentation))
        for question in document.questions:
            inputs = model_inputs(processor, f"{document.text} {question.prompt}", document.images)
            for typed, answers in right.items():
                method = from_text(typed, budget=None if typed == "full" else 0.1)
                said = answer(model, processor, inputs, method, max_new_tokens=12).text
                answers.append(judged(question)(said).scores[EXACT] == 1)
    assert sum(right["full"]) >= 16
    assert sum(right["madakv:draft=8"]) >= sum(right["full"]) - 2


@pytest.mark.parametrize("name", NAMES)
def test_processors_give_what_training_reads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TRAINING))
    for module in ("architecture", "rows", "stages"):
        sys.modules.pop(module, None)
    from architecture import ARCHITECTURES  # type: ignore[import-not-found]
    from rows import Item, collate  # type: ignore[import-not-found]

    architecture = ARCHITECTURES[name]
    document = make_document(3, tokens=512, sizes=architecture.sizes)
    question = document.questions[0]
    inputs = model_inputs(architecture.processor(), f"{document.text} {question.prompt}", document.images)
    pixels = [np.array(image) for image in document.images]
    asked = [(question.prompt.split(), question.answer.split())]
    trained = collate([Item(document.text.split(), asked, [question.kind], pixels)], architecture).inputs
    N = inputs["input_ids"].shape[1]
    assert torch.equal(inputs["input_ids"], trained["input_ids"][:, :N])
    assert torch.equal(inputs["pixel_values"], trained["pixel_values"])
    if name != "small-llava":
        assert torch.equal(inputs["image_grid_thw"], trained["image_grid_thw"])
        assert len({tuple(grid) for grid in inputs["image_grid_thw"].tolist()}) > 1
        model = architecture.build().eval()
        with torch.no_grad():
            plain = model(**inputs, use_cache=True).logits[:, -1]
            with madakv.evict(model, budget=0.2):
                evicted = model(**inputs, use_cache=True).logits[:, -1]
        torch.testing.assert_close(evicted, plain, rtol=1e-4, atol=1e-4)
    else:
        assert architecture.sizes == SIZES


@pytest.mark.parametrize("task", ["hunt-1000", "dense-2000"])
def test_no_question_of_a_training_row_is_answered_by_another(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TRAINING))
    for module in ("architecture", "rows", "stages"):
        sys.modules.pop(module, None)
    from rows import document_item
    from stages import MANY, SHAPES  # type: ignore[import-not-found]

    shape = SHAPES[task]
    asked = dict.fromkeys(MANY, 99)
    item = document_item(np.random.default_rng(5), shape, asked, SIZES, "train", False)
    keys: dict[str, list[str]] = {kind: [] for kind in MANY}
    for (prompt, answered), kind in zip(item.asked, item.kinds, strict=True):
        keys[kind].append(prompt[-1])
        if kind == "twin":
            keys["its other"] = [*keys.get("its other", []), answered[-1]]
    owned = [item.document[item.document.index(key) + 1] for key in keys["owner"]]
    assert len(keys["twin"]) == shape.twins
    assert not set(keys["twin"]) & set(keys["its other"])
    assert len(owned) == shape.owners
    assert len(keys["show"]) == shape.named - shape.owners
    assert not set(keys["show"]) & set(owned)


def test_its_own_processor_reads_pictures_with_torchvision_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("madakv.loading.is_torchvision_available", lambda: True)
    elsewhere = shutil.copytree(bundled.named()["small-qwen2.5-vl"], tmp_path / "model")
    for source in ("small-qwen2.5-vl", str(elsewhere)):
        assert type(load(source, device="cpu")[1]) is PictureProcessor


def test_qwen_loads_without_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exported, loaded by folder, and asked about pictures: what `generate` needs is all there."""
    monkeypatch.syspath_prepend(str(TRAINING))
    sys.modules.pop("architecture", None)
    from architecture import ARCHITECTURES

    architecture = ARCHITECTURES["small-qwen2.5-vl"]
    architecture.export(architecture.build(), tmp_path)
    model, processor = load(str(tmp_path), device="cpu")
    document = make_document(3, tokens=512, sizes=architecture.sizes)
    inputs = model_inputs(processor, f"{document.text} {document.questions[0].prompt}", document.images)
    assert inputs["image_grid_thw"].shape[0] == len(document.images)
    plain = model.generate(**inputs, max_new_tokens=6)
    with madakv.evict(model, budget=1.0, draft=3):
        assert torch.equal(model.generate(**inputs, max_new_tokens=6), plain)
    with madakv.evict(model, budget=0.1, draft=3) as run:
        assert model.generate(**inputs, max_new_tokens=6).shape == plain.shape
    assert run.last is not None
    assert run.last.kv_bytes < 0.11 * run.last.kv_bytes_full


def test_models_are_averaged(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(bundled.named()["small-llava"], first)
    weights = load_file(first / "model.safetensors")
    shutil.copytree(first, second)
    others = {name: weight + 2 for name, weight in weights.items()}
    save_file(others, second / "model.safetensors", {"format": "pt"})
    command = [sys.executable, str(TRAINING / "average.py"), str(first), str(second), "--out", str(tmp_path / "mean")]
    subprocess.run(command, check=True)
    mean = load_file(tmp_path / "mean" / "model.safetensors")
    assert mean.keys() == weights.keys()
    for name, weight in weights.items():
        assert torch.equal(mean[name], ((weight.double() + others[name].double()) / 2).to(weight.dtype))
    load(str(tmp_path / "mean"), device="cpu")


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_logs_are_drawn(name: str, tmp_path: Path) -> None:
    out = tmp_path / "curves.png"
    command = [sys.executable, str(TRAINING / "curves.py"), str(TRAINING / f"log-{name}.jsonl"), "--out", str(out)]
    subprocess.run(command, check=True)
    assert out.read_bytes().startswith(b"\x89PNG")
