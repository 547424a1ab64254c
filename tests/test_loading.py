"""Model folders that are broken or not all there are refused in one line that says what to mend."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from madakv import bundled
from madakv.errors import ConfigurationError
from madakv.loading import load
from madakv.model_weights import check_weights
from tests.families.zoo import FAMILIES

Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4665a5ea423c2713d436b5ee5\nsize 10214856\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(bundled.model_path(), tmp_path / "model")


def rewrite(folder: Path, change: Change) -> None:
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def refused(source: Path | str, *words: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(str(source), device="cpu")
    message = str(caught.value)
    assert message.startswith(f"cannot load the model {str(source)!r}")
    for word in words:
        assert word in message
    return message


def test_a_model_without_a_layers_weights_is_refused_with_their_names(folder: Path) -> None:
    """It answered at random, with exit code 0: transformers makes up what is missing."""
    weights = load_file(folder / "model.safetensors")
    layer = [name for name in weights if ".layers.1." in name and "language_model" in name]
    assert len(layer) == 9
    rewrite(folder, lambda weights: {name: weights[name] for name in weights if name not in layer})
    message = refused(folder, "missing", "layers.1.input_layernorm.weight", "and 6 more")
    assert len(message) < 500


def test_weights_of_another_shape_are_named(folder: Path) -> None:
    def narrowed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        (name,) = (
            name for name in weights if name.endswith("layers.0.self_attn.q_proj.weight") and "language" in name
        )
        return weights | {name: weights[name][:-8].contiguous()}

    rewrite(folder, narrowed)
    refused(folder, "another shape", "layers.0.self_attn.q_proj.weight ([184, 192] for [192, 192])")


def test_a_config_with_fewer_layers_than_the_weights_is_refused(folder: Path) -> None:
    def fewer(config: dict[str, Any]) -> None:
        config["text_config"]["num_hidden_layers"] -= 1
        config["text_config"].pop("layer_types", None)

    edit(folder / "config.json", fewer)
    refused(folder, "no place in the model", "layers.3.input_layernorm.weight")


def test_a_bias_that_the_config_does_not_know_is_refused(folder: Path) -> None:
    def biased(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        (name,) = (
            name for name in weights if name.endswith("layers.0.self_attn.q_proj.weight") and "language" in name
        )
        return weights | {name.replace(".weight", ".bias"): torch.ones(len(weights[name]))}

    rewrite(folder, biased)
    refused(folder, "no place in the model", "layers.0.self_attn.q_proj.bias")


def test_heads_for_training_and_stored_buffers_are_let_through(folder: Path) -> None:
    more = {"mtp.fc.weight": torch.ones(3), "language_model.model.rotary_emb.inv_freq": torch.ones(16)}
    rewrite(folder, lambda weights: weights | more)
    load(str(folder), device="cpu")


@pytest.mark.parametrize("name", [None, "small-llava", "small-qwen2.5-vl"])
def test_models_of_the_package_load(name: str | None) -> None:
    model, _ = load(name, device="cpu")
    assert not model.training


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_whole_models_of_every_family_are_let_through(name: str, tmp_path: Path) -> None:
    """Weights that tie, and buffers that no file holds, are not missing."""
    model = FAMILIES[name].build()
    model.save_pretrained(tmp_path)
    options = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    loaded, info = type(model).from_pretrained(tmp_path, **options)
    check_weights(loaded, info)
    lost = next(parameter for parameter, _ in model.named_parameters() if "layers.1." in parameter)
    with pytest.raises(ConfigurationError, match=re.escape(lost)):
        check_weights(loaded, info | {"missing_keys": {*info["missing_keys"], lost}})


JSON = [
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
]


@pytest.mark.parametrize("name", JSON)
@pytest.mark.parametrize("how", ["cut", "empty", "other", "binary"])
def test_settings_that_are_no_json_are_named(folder: Path, name: str, how: str) -> None:
    """transformers goes on without a generation config that is broken: the end of answers is lost."""
    whole = (folder / name).read_bytes()
    broken = {"cut": whole[: len(whole) // 2], "empty": b"", "other": b"hello", "binary": b"\xff\xfe\x00abc"}
    (folder / name).write_bytes(broken[how])
    refused(folder, f"{name} is no JSON", "fetch it again")


@pytest.mark.parametrize("name", [*JSON, "chat_template.jinja", "model.safetensors"])
def test_pointers_of_git_lfs_are_named(folder: Path, name: str) -> None:
    (folder / name).write_text(POINTER)
    refused(folder, f"{name} is a pointer of Git LFS", "git lfs pull")


def test_pointers_beside_the_model_do_not_matter(folder: Path) -> None:
    for name in ("pytorch_model.bin", "consolidated.safetensors", "README.md", "training.json"):
        (folder / name).write_text(POINTER)
    load(str(folder), device="cpu")


def test_a_checkpoint_of_torch_may_be_a_pointer_too(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_text(POINTER)
    refused(folder, "pytorch_model.bin is a pointer of Git LFS")


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "cut off or no safetensors file (0 bytes)"),
        (5, "cut off or no safetensors file"),
        (2000, "cut off or no safetensors file"),
        (5_000_000, "cut off: 5,000,000 of 10,214,856 bytes are there"),
        (10_214_855, "cut off"),
    ],
)
def test_weights_that_are_cut_off_are_told_by_their_size(folder: Path, size: int, words: str) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    refused(folder, f"model.safetensors is {words}", "fetch it again")


def test_weights_that_are_something_else(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((8).to_bytes(8, "little") + b"no json!" + b"0" * 100)
    refused(folder, "model.safetensors is no safetensors file")


@pytest.mark.parametrize(
    "source",
    ["/no/such/folder", "./nothing", "a/b/c", "C:\\models\\llava", "~/nothing", "my model", "https://x.org/a"],
)
def test_a_folder_that_is_not_there_is_not_called_a_bad_id(source: str) -> None:
    message = refused(source, "there is no such folder", "Hub id such as")
    assert "Repo id" not in message
    assert ("parted by /" in message) == ("\\" in source)


def test_what_could_be_a_hub_id_names_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused("no-such-owner/no-such-model", "there is no such folder, and as a Hub id: ")


def test_a_file_and_a_folder_without_a_model(tmp_path: Path) -> None:
    refused(bundled.model_path() / "config.json", "it is a file")
    refused(tmp_path, "holds no config.json")


def test_config_of_another_kind(folder: Path) -> None:
    (folder / "config.json").write_text("[1, 2]")
    refused(folder, "model_type")
