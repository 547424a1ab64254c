"""SmolLM2 with a LoRA, reading one document and many questions about it at once.

A question with its answer is a branch: it sees the document and itself, as if nothing else had been asked, and starts
at the position after the document. The document is read once for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig

RANK = 16
STRENGTH = 2.0
MOST_WEIGHTS = 3_000_000
"""Attention weights per head, beyond which they are made again in the backward pass: all layers' take 3 KB each."""
ADAPTED = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


class Adapted(nn.Module):
    """A frozen linear map and what is learnt beside it."""

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.lora_A = nn.Parameter(torch.randn(RANK, weight.shape[1]) / weight.shape[1] ** 0.5)
        self.lora_B = nn.Parameter(torch.zeros(weight.shape[0], RANK))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        return F.linear(x, self.weight) + STRENGTH * F.linear(F.linear(x, self.lora_A), self.lora_B)


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a batch of B documents stand: D of each, then M branches of L.

    Attributes:
        lengths: [B] tokens of each document.
        seen: [B, M, D] bool, which of a document's tokens a branch may see; what is hidden was evicted, as it were.
        cos, sin: [B, 1, D + M * L, head_dim] of the positions.
        document: D.
        branches: M.
        length: L.
    """

    seen: Tensor
    cos: Tensor
    sin: Tensor
    document: int
    branches: int
    length: int


def layout(lengths: Tensor, places: Tensor, seen: Tensor, length: int, theta: float, head_dim: int) -> Layout:
    """A `Layout` for documents of `lengths` [B] at positions `places` [B, D], and branches of `length` that
    see of them what `seen` [B, M, D] says."""
    B, M, D = seen.shape
    device = seen.device
    inside = torch.arange(D, device=device).expand(B, D)
    first = places.gather(1, lengths[:, None] - 1) + 1
    after = first[:, :, None] + torch.arange(length, device=device).expand(1, M, length)
    positions = torch.cat([places, after.reshape(B, -1)], 1)
    frequencies = theta ** -(torch.arange(0, head_dim, 2, device=device).float() / head_dim)
    angles = (positions[:, None, :, None].float() * frequencies).repeat(1, 1, 1, 2)
    return Layout(seen & (inside < lengths[:, None])[:, None], angles.cos(), angles.sin(), D, M, length)


def turned(x: Tensor, at: Layout) -> Tensor:
    """Rotary positions, as Llama has them."""
    half = x.shape[-1] // 2
    other = torch.cat([-x[..., half:], x[..., :half]], -1)
    return (x * at.cos + other * at.sin).to(x.dtype)


def attend(query: Tensor, key: Tensor, value: Tensor, at: Layout) -> Tensor:
    """Query [B, Hq, D + M * L, head_dim], key and value [B, H, ...]: documents causally, branches see theirs and
    themselves."""
    B, heads, _, width = query.shape
    groups = heads // key.shape[1]
    D, M, L = at.document, at.branches, at.length
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    documents = _causal(query[:, :, :D], key[:, :, :D], value[:, :, :D])
    asking = query[:, :, D:] * width**-0.5
    own_key, own_value = (x[:, :, D:].reshape(B, heads, M, L, width) for x in (key, value))
    far = (asking @ key[:, :, :D].mT).view(B, heads, M, L, D)
    far = far.masked_fill(~at.seen[:, None, :, None], float("-inf"))
    near = asking.view(B, heads, M, L, width) @ own_key.mT
    near = near.masked_fill(torch.ones(L, L, dtype=torch.bool, device=near.device).triu(1), float("-inf"))
    weights = torch.cat([far, near], -1).softmax(-1)
    far_weights, near_weights = weights.split([D, L], -1)
    out = far_weights.reshape(B, heads, M * L, D) @ value[:, :, :D]
    out = out + (near_weights @ own_value).view(B, heads, M * L, width)
    return torch.cat([documents, out], 2)


def _causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    if query.is_cuda:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)
    # The backward pass of PyTorch's own for CPUs takes longer than all of the rest.
    D = query.shape[2]
    hidden = torch.ones(D, D, dtype=torch.bool).triu(1)
    weights = (query * query.shape[-1] ** -0.5 @ key.mT).masked_fill(hidden, float("-inf"))
    out: Tensor = weights.softmax(-1) @ value
    return out


class Layer(nn.Module):
    """One of Llama's."""

    before: Tensor
    between: Tensor
    q_proj: Adapted
    k_proj: Adapted
    v_proj: Adapted
    o_proj: Adapted
    gate_proj: Adapted
    up_proj: Adapted
    down_proj: Adapted

    def __init__(self, config: Any, weights: dict[str, Tensor], prefix: str) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.width, self.eps = config.head_dim, config.rms_norm_eps
        for name in ADAPTED:
            self.add_module(name.split(".")[1], Adapted(weights[f"{prefix}{name}.weight"]))
        self.register_buffer("before", weights[prefix + "input_layernorm.weight"], persistent=False)
        self.register_buffer("between", weights[prefix + "post_attention_layernorm.weight"], persistent=False)

    def forward(self, x: Tensor, at: Layout) -> Tensor:
        """[B, D + M * L, hidden]."""
        B, N, _ = x.shape
        h = F.rms_norm(x, x.shape[-1:], self.before, self.eps)
        query = turned(self.q_proj(h).view(B, N, self.heads, self.width).transpose(1, 2), at)
        key = turned(self.k_proj(h).view(B, N, self.kv_heads, self.width).transpose(1, 2), at)
        value = self.v_proj(h).view(B, N, self.kv_heads, self.width).transpose(1, 2)
        if torch.is_grad_enabled() and B * N * at.document > MOST_WEIGHTS:
            attended = checkpoint(attend, query, key, value, at, use_reentrant=False)
        else:
            attended = attend(query, key, value, at)
        x = x + self.o_proj(attended.transpose(1, 2).reshape(B, N, -1))
        h = F.rms_norm(x, x.shape[-1:], self.between, self.eps)
        out: Tensor = x + self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))
        return out


class Language(nn.Module):
    """The published language model, frozen, with a LoRA; and embeddings of the tokens that frame pictures.

    Args:
        base: the folder of SmolLM2-135M-Instruct.
        framing: how many tokens are new; they start as the newline is.
        like: the token that they start as.
    """

    table: Tensor
    norm: Tensor

    def __init__(self, base: Path, framing: int, like: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config: Any = AutoConfig.from_pretrained(base)
        weights = {name: tensor.to(dtype) for name, tensor in load_file(base / "model.safetensors").items()}
        self.register_buffer("table", weights["model.embed_tokens.weight"], persistent=False)
        self.register_buffer("norm", weights["model.norm.weight"], persistent=False)
        self.layers = nn.ModuleList(
            Layer(self.config, weights, f"model.layers.{i}.") for i in range(self.config.num_hidden_layers)
        )
        self.framing = nn.Parameter(self.table[like].float().repeat(framing, 1))

    def embed(self, ids: Tensor) -> Tensor:
        """Of token ids of any shape, new ones included."""
        return F.embedding(ids, torch.cat([self.table, self.framing.to(self.table.dtype)]))

    def forward(
        self, embedded: Tensor, lengths: Tensor, places: Tensor, seen: Tensor, length: int, scored: Tensor
    ) -> Tensor:
        """Logits [A, vocabulary] where answers are predicted.

        Args:
            embedded: [B, D + M * L, hidden].
            lengths, places, seen, length: see `layout`.
            scored: [A] int64, places in the flattened [B * (D + M * L)].
        """
        theta = float(self.config.rope_parameters["rope_theta"])
        at = layout(lengths, places, seen, length, theta, self.config.head_dim)
        x = embedded
        for layer in self.layers:
            x = layer(x, at)
        x = F.rms_norm(x.flatten(0, 1)[scored], x.shape[-1:], self.norm, self.config.rms_norm_eps)
        return F.linear(x, self.table)
