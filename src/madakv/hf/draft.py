"""`generate` in two readings: a draft of the answer tells which prompt entries the answer will need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from madakv.errors import UnsupportedOptionError
from madakv.hf.cache import RaggedCache
from madakv.hf.options import effective
from madakv.modality import family_of

_CALL_OPTIONS = (
    "attention_mask",
    "generation_config",
    "logits_processor",
    "stopping_criteria",
    "streamer",
    "tokenizer",
)
_ONE_SEQUENCE = {"num_beams": 1, "num_return_sequences": 1}
_OF_EVERY_TOKEN = ("output_scores", "output_logits", "output_hidden_states")


def generate_with_draft(
    generate: Callable[..., Any], ids: Tensor | None, cache: Callable[[], RaggedCache], draft: int, **options: Any
) -> Any:
    """Draft on an evicted cache, read the prompt again with the draft behind it, and generate from what that keeps.

    The first token comes out of the first prefill, where nothing is missing, and stays.

    Args:
        generate: the model's own, inside `madakv.evict`.
        ids: [B, N] of the prompt.
        cache: makes an empty cache.
        draft: tokens to draft, at least 1.
        options: all other arguments of the call.

    Returns:
        What `generate` returns.

    Raises:
        UnsupportedOptionError: an option that needs every token to come from one reading.
    """
    given = options.get("generation_config")
    model = generate.__self__  # type: ignore[attr-defined]
    _check(model, options, given, ids)
    default = model.generation_config
    assert ids is not None
    most = effective("max_new_tokens", options, given, default)
    streamer = options.pop("streamer", None)
    first = {
        **options,
        "max_new_tokens": draft if most is None else min(draft, most),
        "return_dict_in_generate": False,
    }
    trial = cache()
    if len(trial.evicted_layers) != len(trial.layers):
        raise UnsupportedOptionError(
            f"draft={draft} needs a model whose layers all have full attention: sliding windows and linear states "
            "cannot take a draft back; use lookahead"
        )
    drafted: Tensor = generate(ids, **first, past_key_values=trial)
    N = ids.shape[1]
    ending = effective("eos_token_id", options, given, default)
    end = _ids(ending if isinstance(ending, list) else [] if ending is None else [ending], ids.device)
    placeholders = [int(getattr(model.config, name)) for _, name in family_of(model.config).items()]
    taken = {*placeholders, effective("pad_token_id", options, given, default)}
    filling = next(token for token in range(len(taken) + 1) if token not in taken)
    later = drafted[:, N:]
    ends = torch.isin(later, end)
    # What follows an end is filling, and a placeholder stands for nothing here: both have nothing to say.
    unsaid = (ends.cumsum(-1) - ends.to(torch.int64) > 0) | torch.isin(later, _ids(placeholders, ids.device))
    mask = options.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    kinds = options.get("mm_token_type_ids")
    again = {**options, "attention_mask": torch.cat([mask, torch.ones_like(later)], dim=1), "max_new_tokens": 1}
    if kinds is not None:
        again["mm_token_type_ids"] = torch.cat([kinds, torch.zeros_like(later)], dim=1)
    kept = cache()
    kept.expect_draft(~unsaid)
    generate(torch.cat([ids, later.masked_fill(unsaid, filling)], dim=1), **again, past_key_values=kept)
    # Pictures have been read; only how to generate is still needed.
    last = {name: value for name, value in options.items() if name in _CALL_OPTIONS or hasattr(_PLAIN, name)}
    last["attention_mask"] = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    if streamer is not None:
        last["streamer"] = _FirstTokenApart(streamer)
    started = drafted[:, : N + 1]
    ended = torch.isin(started[:, -1], end)
    if most is not None:
        last["max_new_tokens"] = most - 1
    if (most == 1) or bool(ended.all()):
        if streamer is not None:
            last["streamer"].put(started.cpu())
            streamer.end()
        return started
    out = generate(started, **last, past_key_values=kept)
    if bool(ended.any()):
        sequences = out if isinstance(out, Tensor) else out.sequences
        fill = effective("pad_token_id", options, given, default)
        sequences[ended, N + 1 :] = int(end[0]) if fill is None else fill
    return out


_PLAIN = GenerationConfig()


class _FirstTokenApart:
    """Hands a streamer the prompt and the first token one after another, as it expects them."""

    def __init__(self, streamer: Any) -> None:
        self._streamer = streamer
        self._begun = False

    def put(self, value: Tensor) -> None:
        if not self._begun:
            self._begun = True
            self._streamer.put(value[..., :-1])
            value = value[..., -1].reshape(-1)
        self._streamer.put(value)

    def end(self) -> None:
        self._streamer.end()


def _check(model: Any, options: dict[str, Any], given: Any, ids: Tensor | None) -> None:
    default = model.generation_config
    if ids is None:
        raise UnsupportedOptionError("draft needs input_ids: a prompt of embeddings cannot be followed by a draft")
    if options.get("pixel_values_videos") is not None and any(hasattr(m, "rope_deltas") for m in model.modules()):
        # Where a video ends, these models continue positions in one way within generate and in another after it.
        raise UnsupportedOptionError("draft cannot be combined with videos on M-RoPE models; use lookahead")
    for name, alone in _ONE_SEQUENCE.items():
        if (value := effective(name, options, given, default)) not in (None, alone):
            raise UnsupportedOptionError(
                f"{name}={value} cannot be combined with draft: a draft is one sequence per row"
            )
    for name in _OF_EVERY_TOKEN:
        if effective(name, options, given, default):
            raise UnsupportedOptionError(
                f"{name}=True cannot be combined with draft: the first token is read earlier"
            )


def _ids(tokens: list[int], device: torch.device) -> Tensor:
    return torch.tensor(tokens, device=device, dtype=torch.int64)
