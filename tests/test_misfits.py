"""A model and a processor that are not of one kind, a template that does not work: one line that says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from madakv import bundled
from madakv.cli.app import app
from madakv.errors import InputError
from madakv.fitting import check_inputs

ASKED = "image i1 <image> ? show i1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(bundled.model_path(), tmp_path / "model")


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def generate(folder: Path, prompt: str = ASKED, *options: str) -> Any:
    picture = folder.parent / "picture.png"
    Image.new("RGB", (40, 40), "red").save(picture)
    given = ["--image", str(picture)] if "<image>" in prompt else []
    return CliRunner().invoke(
        app, ["generate", "--model", str(folder), *given, "--prompt", prompt, "--max-new-tokens", "2", *options]
    )


def refused(folder: Path, *words: str, prompt: str = ASKED) -> None:
    result = generate(folder, prompt)
    assert result.exit_code == 2, result.exception
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


def test_what_is_whole_answers(folder: Path) -> None:
    assert generate(folder).exit_code == 0


def test_a_processor_of_another_size(folder: Path) -> None:
    def twice(config: dict[str, Any]) -> None:
        for name in ("size", "crop_size"):
            config["image_processor"][name] = {"height": 64, "width": 64}

    edit(folder / "processor_config.json", twice)
    refused(folder, "(64*64) doesn't match model (32*32)", "take both from one model")


@pytest.mark.parametrize("name", ["patch_size", "merge_size", "temporal_patch_size"])
def test_a_processor_of_other_patches(tmp_path: Path, name: str) -> None:
    """There is no check in the model: shapes do not fit somewhere within."""
    folder = shutil.copytree(bundled.named()["small-qwen2.5-vl"], tmp_path / "model")
    settings = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    wanted = settings[name]
    edit(folder / "processor_config.json", lambda config: config["image_processor"].update({name: 2 * wanted}))
    refused(folder, f"{name} {2 * wanted} instead of {wanted}", "take both from one model")


@pytest.mark.parametrize("token", [7, 99_999])
def test_an_image_token_of_another_id(folder: Path, token: int) -> None:
    edit(folder / "config.json", lambda config: config.update(image_token_id=token))
    refused(folder, "image tokens do not match", "take both from one model")


def test_a_tokenizer_of_a_larger_vocabulary(folder: Path) -> None:
    edit(folder / "tokenizer.json", lambda config: config["model"]["vocab"].update(elephant=5000))
    refused(folder, "token id 5000, but the model knows 122", prompt="elephant <image>")
    refused(folder, "token id 5000, but the model knows 122", prompt="elephant")
    assert generate(folder).exit_code == 0


def test_a_processor_without_patch_size(folder: Path) -> None:
    edit(folder / "processor_config.json", lambda config: config.pop("patch_size"))
    refused(folder, "processor_config.json has no patch_size", "vision_config")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}", "its chat template fails in line 1: Unexpected end of template"),
        ("{{ raise_exception('no [/b] pictures') }}", "its chat template fails: no [/b] pictures"),
        ("{{ messages[0].foo.bar }}", "its chat template fails: 'dict object' has no attribute 'foo'"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "RecursionError"),
    ],
)
@pytest.mark.parametrize("prompt", [ASKED, "red"])
def test_a_template_that_does_not_work(folder: Path, template: str, words: str, prompt: str) -> None:
    (folder / "chat_template.jinja").write_text(template)
    refused(folder, "LlavaProcessor cannot process this prompt", words, prompt=prompt)


def test_ids_that_the_config_names_may_lie_beyond_the_vocabulary() -> None:
    """Gemma 3's token of pictures does; it is never looked up."""
    model, _ = bundled.load()
    model.config.image_token_id = 5000
    check_inputs(model, {"input_ids": torch.tensor([[3, 5000, 4]])})
    with pytest.raises(InputError, match="token id 5001"):
        check_inputs(model, {"input_ids": torch.tensor([[3, 5001, 5000]])})
