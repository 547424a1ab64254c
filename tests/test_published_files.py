"""GGUF files and what is made of them, held to plain loops and to what transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from madakv.errors import InputError
from madakv.loading import load
from madakv.published.convert import convert
from madakv.published.gguf import Gguf
from tests import published as tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("converted")
    convert(tiny.gguf(tiny.settings(), tiny.tensors()), made)
    return made


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[Any, Any]:
    return load(str(folder), device="cpu", dtype="float32")


def test_settings_are_read_as_they_were_written() -> None:
    wanted = tiny.settings()
    found = Gguf(tiny.gguf(wanted, {})).settings
    epsilon = "llama.attention.layer_norm_rms_epsilon"
    assert found.pop(epsilon) == pytest.approx(wanted.pop(epsilon))
    assert found == wanted


@pytest.mark.parametrize("name", ["token_embd.weight", "output_norm.weight", "blk.1.ffn_down.weight"])
def test_tensors_are_unpacked_as_a_plain_loop_does_it(name: str) -> None:
    wanted = tiny.tensors()[name]
    found = Gguf(tiny.gguf(tiny.settings(), tiny.tensors())).tensor(name)
    assert found.dtype == torch.float32
    # The loop computes in float64.
    torch.testing.assert_close(found, torch.tensor(wanted.numbers).reshape(wanted.shape), rtol=1e-6, atol=1e-8)


def test_what_is_no_gguf_is_refused() -> None:
    with pytest.raises(InputError, match=r"no GGUF file of version 3: it begins with b'PK"):
        Gguf(bytearray(tiny.wheel()))
    unknown = tiny.Packed((32,), 12, bytes(144))
    with pytest.raises(InputError, match=r"the tensor x is of type 12; known are \[0, 3, 8\]"):
        Gguf(tiny.gguf({}, {"x": unknown})).tensor("x")


@pytest.mark.parametrize("key", ["general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre"])
def test_another_architecture_or_tokenizer_is_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot convert a GGUF of .*'other'"):
        convert(tiny.gguf(tiny.settings() | {key: "other"}, tiny.tensors()), tmp_path)


def test_the_folder_loads_with_every_setting(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    config = model.config
    assert type(model).__name__ == "LlamaForCausalLM"
    assert getattr(config, "quantization_config", None) is None
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (64, 96, 2)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 1, 32)
    assert (config.rms_norm_eps, config.max_position_embeddings) == (1e-5, 512)
    assert config.rope_parameters["rope_theta"] == 10000
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (2, 2)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert (tokenizer.unk_token, tokenizer.pad_token) == ("<|endoftext|>", "<|im_end|>")


def test_weights_are_rounded_to_bfloat16_once(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    wanted = tiny.tensors()["blk.1.ffn_down.weight"]
    found = weights["model.layers.1.mlp.down_proj.weight"]
    assert torch.equal(found, torch.tensor(wanted.numbers).reshape(wanted.shape).bfloat16())


@pytest.mark.parametrize(("part", "heads"), [("q", tiny.HEADS), ("k", tiny.KV_HEADS)])
def test_rows_of_queries_and_keys_are_in_transformers_order(folder: Path, part: str, heads: int) -> None:
    """llama.cpp turns rows 2i and 2i + 1 of a head together, transformers i and i + D / 2."""
    given = tiny.tensors()[f"blk.0.attn_{part}.weight"]
    rows = torch.tensor(given.numbers).reshape(given.shape).bfloat16()
    found = load_file(folder / "model.safetensors")[f"model.layers.0.self_attn.{part}_proj.weight"]
    half = tiny.HEAD // 2
    for head in range(heads):
        start = head * tiny.HEAD
        for i in range(half):
            for odd in (0, 1):
                assert torch.equal(found[start + odd * half + i], rows[start + 2 * i + odd])


def test_text_becomes_tokens_as_the_model_learned_them(loaded: tuple[Any, Any]) -> None:
    """Each digit is a word of its own: before one, both blanks are one token, which they would not be otherwise."""
    _, tokenizer = loaded
    assert tokenizer.tokenize("hi hi  12 3") == ["hi", "Ġhi", "ĠĠ", "1", "2", "Ġ", "3"]
    text = "hi é 世界 <|im_end|> 12\n"
    ids = tokenizer(text)["input_ids"]
    assert 2 in ids
    assert tokenizer.decode(ids) == text
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi 1"}], tokenize=False)
    assert chat == "<|im_start|>hi 1<|im_end|>\n"


def test_the_same_bytes_come_every_time(folder: Path, tmp_path: Path) -> None:
    convert(tiny.gguf(tiny.settings(), tiny.tensors()), tmp_path)
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())
    assert all((folder / name).read_bytes() == (tmp_path / name).read_bytes() for name in names)
