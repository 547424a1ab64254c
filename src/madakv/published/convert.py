"""From a GGUF of the Llama architecture to a folder that transformers loads: bfloat16 weights, tokenizer, template.

All files are written here and not by transformers, whose versions write different ones: a model's fingerprint is the
same wherever it was converted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from madakv.errors import InputError
from madakv.published.gguf import Gguf

_WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_OF_A_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL = 3
"""The type of tokens that are written by templates, and never by merges."""


def convert(content: bytearray, folder: Path) -> None:
    """Write the files of a model into a folder.

    Args:
        content: a GGUF file, whole; its tokenizer of the kind that SmolLM's is.
        folder: an empty one.

    Raises:
        InputError: another architecture or tokenizer.
    """
    gguf = Gguf(content)
    given = gguf.settings
    kinds = tuple(given.get(key) for key in ("general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre"))
    if kinds != ("llama", "gpt2", "smollm"):
        raise InputError(f"cannot convert a GGUF of {kinds}: known is ('llama', 'gpt2', 'smollm')")
    ids = {f"{name}_token_id": given[f"tokenizer.ggml.{key}_token_id"] for name, key in _SPECIAL.items()}
    _write(folder / "config.json", _config(gguf) | ids)
    _write(folder / "generation_config.json", {name: ids[name] for name in sorted(ids)})
    _write(folder / "tokenizer.json", _tokenizer(given))
    _write(folder / "tokenizer_config.json", _tokenizer_config(given))
    (folder / "chat_template.jinja").write_text(given["tokenizer.chat_template"], encoding="utf-8", newline="\n")
    tensors = {_name(name): _tensor(gguf, name) for name in gguf.names}
    (folder / "model.safetensors").write_bytes(save(tensors, {"format": "pt"}))


_SPECIAL = {"bos": "bos", "eos": "eos", "pad": "padding"}
"""Special tokens: transformers' name and GGUF's."""


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8", newline="\n")


def _config(gguf: Gguf) -> dict[str, Any]:
    """`config.json`, but for special tokens."""
    own = {key.removeprefix("llama."): value for key, value in gguf.settings.items() if key.startswith("llama.")}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "hidden_size": own["embedding_length"],
        "intermediate_size": own["feed_forward_length"],
        "num_hidden_layers": own["block_count"],
        "num_attention_heads": own["attention.head_count"],
        "num_key_value_heads": own["attention.head_count_kv"],
        "head_dim": own["rope.dimension_count"],
        "max_position_embeddings": own["context_length"],
        # As float32 a GGUF has 9.999999747378752e-06 for 1e-05.
        "rms_norm_eps": float(f"{own['attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_parameters": {"rope_type": "default", "rope_theta": own["rope.freq_base"]},
        "tie_word_embeddings": "output.weight" not in gguf.names,
        "vocab_size": own["vocab_size"],
    }


def _tokenizer(given: dict[str, Any]) -> dict[str, Any]:
    """`tokenizer.json`: byte-level BPE like GPT-2's, but every digit a word of its own ("smollm")."""
    tokens, kinds = given["tokenizer.ggml.tokens"], given["tokenizer.ggml.token_type"]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    bytes_only = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": token, **plain}
            for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
            if kind == _CONTROL
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, bytes_only],
        },
        "post_processor": None,
        "decoder": bytes_only | {"add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in given["tokenizer.ggml.merges"]],
        },
    }


def _tokenizer_config(given: dict[str, Any]) -> dict[str, Any]:
    tokens = given["tokenizer.ggml.tokens"]
    named = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{name}_token": tokens[given[f"tokenizer.ggml.{key}_token_id"]] for name, key in named.items()},
        "model_max_length": given["llama.context_length"],
        "clean_up_tokenization_spaces": False,
    }


def _name(name: str) -> str:
    """transformers' name of a tensor."""
    if name in _WHOLE:
        return _WHOLE[name]
    _, layer, part, role = name.split(".")
    return f"model.layers.{layer}.{_OF_A_LAYER[part]}.{role}"


def _tensor(gguf: Gguf, name: str) -> torch.Tensor:
    """One tensor in bfloat16, contiguous."""
    tensor = gguf.tensor(name)
    part = name.split(".")[-2]
    if part in ("attn_q", "attn_k"):
        heads = gguf.settings["llama.attention.head_count" + ("_kv" if part == "attn_k" else "")]
        # llama.cpp turns neighbouring numbers by their position, transformers those half a head apart.
        tensor = tensor.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
    return tensor.to(torch.bfloat16).contiguous()
