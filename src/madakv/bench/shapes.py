"""The language models of published vision-language models, as shapes: real dimensions, random weights."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from madakv.bench.roofline import Cost
from madakv.errors import ConfigurationError


@dataclass(frozen=True)
class Shape:
    """Dimensions of a language model, as its published config has them.

    Attributes:
        kind: transformers' class of the text model; M-RoPE and vision tower are left out.
        hidden, intermediate, layers, query_heads, kv_heads, head_dim, vocabulary: of the config.
        image_tokens: typical tokens per picture.
        tied: whether the head shares the embedding's weights.
    """

    kind: Literal["llama", "qwen2"]
    hidden: int
    intermediate: int
    layers: int
    query_heads: int
    kv_heads: int
    vocabulary: int
    image_tokens: int
    head_dim: int = 128
    tied: bool = False

    def cost(self, layers: int, *, with_head: bool, itemsize: int) -> Cost:
        """What a step costs, of the first `layers` layers."""
        wide, narrow = self.query_heads * self.head_dim, self.kv_heads * self.head_dim
        attention = self.hidden * (2 * wide + 2 * narrow)
        biases = wide + 2 * narrow if self.kind == "qwen2" else 0
        layer = attention + biases + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return Cost(
            layers=layers,
            query_heads=self.query_heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            body=layers * layer + self.hidden,
            head=self.vocabulary * self.hidden if with_head else 0,
            itemsize=itemsize,
        )


SHAPES = {
    "llava-1.5-7b": Shape("llama", 4096, 11008, 32, 32, 32, 32064, 576),
    "llava-1.5-13b": Shape("llama", 5120, 13824, 40, 40, 40, 32064, 576),
    "llava-next-mistral-7b": Shape("llama", 4096, 14336, 32, 32, 8, 32064, 2144),
    "qwen2.5-vl-3b": Shape("qwen2", 2048, 11008, 36, 16, 2, 151936, 1024, tied=True),
    "qwen2.5-vl-7b": Shape("qwen2", 3584, 18944, 28, 28, 4, 152064, 1024),
    "internvl3-8b": Shape("qwen2", 3584, 18944, 28, 28, 4, 151674, 256),
}
"""By the name that `--shape` takes."""

_LEAST_PEAK, _MOST_PEAK = 0.5, 3.0
_INITIAL_STD = 0.02


def shape(name: str) -> Shape:
    """The shape of that name.

    Raises:
        ConfigurationError: there is none.
    """
    if name not in SHAPES:
        near = difflib.get_close_matches(name, SHAPES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigurationError(f"unknown shape {name!r}; {hint}known: {', '.join(SHAPES)}")
    return SHAPES[name]


def peaks(heads: int) -> torch.Tensor:
    """[H] fp32, the standard deviation of each KV head's attention logits, from flat to sharp.

    Random weights would make all heads alike, and uneven budgets even.
    """
    return torch.logspace(0, 1, heads, base=_MOST_PEAK / _LEAST_PEAK) * _LEAST_PEAK


def random_model(chosen: Shape, layers: int, *, dtype: torch.dtype, device: torch.device) -> Any:
    """A transformers model with random weights, in eval mode.

    With fewer layers than the real model has, embedding and head are left out: they would weigh as much as several
    layers, and hide what a whole model gains.
    """
    whole = layers == chosen.layers
    config = AutoConfig.for_model(
        chosen.kind,
        hidden_size=chosen.hidden,
        intermediate_size=chosen.intermediate,
        num_hidden_layers=layers,
        num_attention_heads=chosen.query_heads,
        num_key_value_heads=chosen.kv_heads,
        vocab_size=chosen.vocabulary if whole else 8,
        max_position_embeddings=1 << 20,
        initializer_range=_INITIAL_STD,
        tie_word_embeddings=chosen.tied and whole,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        **({"head_dim": chosen.head_dim} if chosen.kind == "llama" else {}),
    )
    auto: Any = AutoModelForCausalLM if whole else AutoModel
    with torch.device(device):
        model = auto.from_config(config, dtype=dtype).eval()
    # Hidden states behind a norm have unit variance, so that logits start with this deviation in every head.
    start = _INITIAL_STD**2 * chosen.hidden
    factor = (peaks(chosen.kv_heads) / start).to(device)
    with torch.no_grad():
        for layer in model.get_decoder().layers:
            weight = layer.self_attn.q_proj.weight
            weight.copy_((weight.view(chosen.kv_heads, -1) * factor[:, None]).view_as(weight))
    return model


def cost_of(model: Any) -> Cost:
    """What a step of a loaded model costs, by its own parameters.

    Experts that a token does not visit are counted, too: the floor of a mixture is too high.
    """
    config = model.config.get_text_config(decoder=True)
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    embedding = decoder.get_input_embeddings().weight
    heads = config.num_attention_heads
    return Cost(
        layers=config.num_hidden_layers,
        query_heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        body=sum(x.numel() for x in decoder.parameters()) - embedding.numel(),
        head=0 if head is None else head.weight.numel(),
        itemsize=embedding.element_size(),
    )
