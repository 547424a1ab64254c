"""`generate` in two readings: a draft of the answer tells which prompt entries the answer will need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteriaList, StopStringCriteria
from transformers.generation.utils import GenerateDecoderOnlyOutput

from madakv.errors import UnsupportedOptionError
from madakv.hf.cache import RaggedCache
from madakv.hf.options import check_draft, effective, most_new_tokens
from madakv.modality import Modality, ids_named_after, placeholder_ids
from madakv.reading import probes

_CALL_OPTIONS = (
    *("attention_mask", "generation_config", "logits_processor", "stopping_criteria", "streamer", "tokenizer"),
    "prefix_allowed_tokens_fn",
)
_ONE_SEQUENCE = {"num_beams": 1, "num_return_sequences": 1}
# Of these, token types let a prompt attend to all that stands behind it, so that it would see its answer.
_OF_ONE_CALL = ("position_ids", "token_type_ids", "max_time")
_OF_EVERY_TOKEN = ("output_scores", "output_logits", "output_hidden_states")
_TOLD_OF_PICTURES = ("mm_token_type_ids", "moe_mm_token_type_ids")
"""What models may be told of every token of a prompt, zero for text."""
_PLAIN = GenerationConfig()


def generate_with_draft(
    model: Any,
    generate: Callable[..., Any],
    ids: Tensor | None,
    cache: Callable[[], RaggedCache],
    draft: int,
    **options: Any,
) -> Any:
    """Draft on an evicted cache, read the prompt again with the draft behind it, and generate from what that keeps.

    The first token comes out of the first prefill, where nothing is missing, and stays.

    Args:
        model: inside `madakv.evict`.
        generate: its own.
        ids: [B, N] of the prompt.
        cache: makes an empty cache.
        draft: tokens to draft, at least 1.
        options: all other arguments of the call.

    Returns:
        What `generate` returns.

    Raises:
        UnsupportedOptionError: an option that needs every token to come from one reading, or a model that cannot take
            a draft back.
    """
    call = _Call(model, generate, options)
    if ids is None:
        raise UnsupportedOptionError("draft needs input_ids: a prompt of embeddings cannot be followed by a draft")
    call.check(cache(), draft)
    most = call.most_new_tokens(ids)
    if most < 1:
        # transformers says what is wrong.
        return generate(ids, **options, past_key_values=cache())
    drafted = call.draft(ids, cache(), min(draft, most))
    stops = call.stops(drafted, ids.shape[1])
    kept = cache()
    call.read_again(ids, drafted, stops, kept)
    return call.go_on(ids, drafted, stops, kept, most)


class _Call:
    """One call of `generate`, made in three.

    Args:
        model: the model.
        generate: its own.
        options: of the call, the prompt's ids aside.
    """

    def __init__(self, model: Any, generate: Callable[..., Any], options: dict[str, Any]) -> None:
        self._model = model
        self._generate = generate
        self._options = {name: value for name, value in options.items() if name not in ("streamer", "max_length")}
        self._all = options
        ending = self._effective("eos_token_id")
        self._end = ending if isinstance(ending, list) else [] if ending is None else [ending]
        self._pad = self._effective("pad_token_id")

    def _effective(self, name: str) -> Any:
        return effective(name, self._all, self._all.get("generation_config"), self._model.generation_config)

    def check(self, cache: RaggedCache, draft: int) -> None:
        """Refuse what cannot be done in two readings."""
        check_draft(draft, cache, self._model.config)
        videos = self._all.get("pixel_values_videos") is not None
        if videos and any(hasattr(module, "rope_deltas") for module in self._model.modules()):
            # Where a video ends, these models continue positions in one way within generate and in another after it.
            raise UnsupportedOptionError("draft cannot be combined with videos on M-RoPE models; use lookahead")
        for name, alone in _ONE_SEQUENCE.items():
            if (value := self._effective(name)) not in (None, alone):
                raise UnsupportedOptionError(
                    f"{name}={value} cannot be combined with draft, which is one sequence per row"
                )
        for name in _OF_ONE_CALL:
            if self._effective(name) is not None:
                raise UnsupportedOptionError(f"{name} cannot be combined with draft, which takes more than one call")
        for name in _OF_EVERY_TOKEN:
            if self._effective(name):
                raise UnsupportedOptionError(
                    f"{name}=True cannot be combined with draft: tokens come from two readings"
                )

    def most_new_tokens(self, ids: Tensor) -> int:
        """How long the answer may be."""
        given, default = self._all.get("generation_config"), self._model.generation_config
        return most_new_tokens(ids.shape[1], self._all, given, default)

    def draft(self, ids: Tensor, cache: RaggedCache, tokens: int) -> Tensor:
        """[B, N + n]: the prompt and a draft of up to so many tokens."""
        options = {**self._options, "max_new_tokens": tokens, "return_dict_in_generate": False}
        drafted: Tensor = self._generate(ids, **options, past_key_values=cache)
        return drafted

    def stops(self, drafted: Tensor, prompt: int) -> Tensor:
        """[B, n] bool: where the answer is over after a token of the draft."""
        criteria = StoppingCriteriaList(self._all.get("stopping_criteria") or [])
        if strings := self._effective("stop_strings"):
            criteria.append(StopStringCriteria(tokenizer=self._all["tokenizer"], stop_strings=strings))
        lengths = range(prompt + 1, drafted.shape[1] + 1)
        return torch.stack([criteria(drafted[:, :n], ()) for n in lengths], dim=1) | self._ends(drafted[:, prompt:])

    def _ends(self, tokens: Tensor) -> Tensor:
        return torch.isin(tokens, torch.tensor(self._end, device=tokens.device, dtype=torch.int64))

    def _mask(self, ids: Tensor) -> Tensor:
        """[B, N]: the prompt's mask, as transformers infers it where none is given."""
        given: Tensor | None = self._all.get("attention_mask")
        if given is not None:
            return given
        padded = self._pad is not None and self._pad not in self._end and bool((ids == self._pad).any())
        return (ids != self._pad).to(torch.int64) if padded else torch.ones_like(ids)

    def read_again(self, ids: Tensor, drafted: Tensor, stops: Tensor, kept: RaggedCache) -> None:
        """Read the prompt with the draft behind it into `kept`, which scores by both and keeps of the prompt."""
        later = drafted[:, ids.shape[1] :]
        config = self._model.config
        # Omni models count sounds by the tokens before them.
        named = {*ids_named_after(config, Modality.AUDIO), *sum(placeholder_ids(config).values(), ())}
        placeholder = torch.isin(later, torch.tensor(sorted(named), device=ids.device, dtype=torch.int64))
        # What follows an end is filling, and a placeholder stands for nothing here: both have nothing to say.
        unsaid = (stops.cumsum(-1) - stops.to(torch.int64) > 0) | placeholder
        filling = next(token for token in range(len(named) + 2) if token not in (*named, self._pad))
        options = {**self._options, "max_new_tokens": 1, "min_new_tokens": None}
        options["attention_mask"] = torch.cat([self._mask(ids), (~unsaid).to(later.dtype)], dim=1)
        for name in _TOLD_OF_PICTURES:
            if (kinds := options.get(name)) is not None:
                options[name] = torch.cat([kinds, kinds.new_zeros(later.shape)], dim=1)
        kept.expect(probes.draft(kept.method, ~unsaid))
        self._generate(torch.cat([ids, later.masked_fill(unsaid, filling)], 1), **options, past_key_values=kept)

    def go_on(self, ids: Tensor, drafted: Tensor, stops: Tensor, kept: RaggedCache, most: int) -> Any:
        """Generate from `kept` what follows the draft's first token."""
        N = ids.shape[1]
        started, over = drafted[:, : N + 1], stops[:, 0]
        streamer = self._all.get("streamer")
        apart = None if streamer is None else _FirstTokenApart(streamer)
        if most == 1 or bool(over.all()):
            if apart is not None:
                apart.put(started.cpu())
                apart.end()
            if self._effective("return_dict_in_generate"):
                return GenerateDecoderOnlyOutput(sequences=started, past_key_values=kept)  # type: ignore[arg-type]
            return started
        out = self._generate(started, **self._later_options(ids, over, most, apart), past_key_values=kept)
        ended = self._ends(started[:, -1])
        if bool(ended.any()):
            sequences = out if isinstance(out, Tensor) else out.sequences
            sequences[ended, N + 1 :] = self._end[0] if self._pad is None else self._pad
        return out

    def _later_options(self, ids: Tensor, over: Tensor, most: int, streamer: Any) -> dict[str, Any]:
        """How to generate; pictures have been read. What counts from where a call begins, begins one token later."""
        options = {name: x for name, x in self._options.items() if name in _CALL_OPTIONS or hasattr(_PLAIN, name)}
        options["attention_mask"] = torch.cat([self._mask(ids), torch.ones_like(ids[:, :1])], dim=1)
        options["max_new_tokens"] = most - 1
        if least := self._effective("min_new_tokens"):
            options["min_new_tokens"] = least - 1
        if self._effective("begin_suppress_tokens"):
            options["begin_suppress_tokens"] = []
        if decay := self._effective("exponential_decay_length_penalty"):
            options["exponential_decay_length_penalty"] = (decay[0] - 1, decay[1])
        if bool(over.any()):
            own = self._all.get("stopping_criteria") or []
            options["stopping_criteria"] = StoppingCriteriaList([*own, lambda *_, **__: over])
        if streamer is not None:
            options["streamer"] = streamer
        return options


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
