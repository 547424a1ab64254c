"""Read text of the prompt once more behind it: what it looks up then is what later questions will.

Echoed tokens pass through the decoder together with the prompt, behind it, so that nothing in the prompt sees them.
Their attention scores, their entries are not kept, and what the decoder returns for them is cut off.
"""

from __future__ import annotations

import inspect
import logging
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from madakv.errors import UnsupportedOptionError
from madakv.hf.cache import RaggedCache
from madakv.hf.options import check_taken_back
from madakv.methods import Method
from madakv.modality import Modality
from madakv.reading import probes

logger = logging.getLogger(__name__)

_RUN = 16
"""Tokens that are echoed in one piece where not all of the text is: a fact is only found by its own words."""
_AXES = 3
"""Of M-RoPE's positions: time, height and width; before them may come the plain count of tokens."""
_EXTENDED = ("inputs_embeds", "input_ids", "attention_mask", "position_ids")
_OF_PICTURES = ("mm_token_type_ids", "moe_mm_token_type_ids", "visual_pos_masks")
"""What decoders may be told of every token besides, zero for text."""


def echo_places(modality: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Which text tokens of each row are read again.

    Args:
        modality: [B, N] of `Modality` values.
        most: tokens; of longer texts, runs of 16 at even distances are taken.

    Returns:
        places [B, E] int64 in ascending order, E at most `most`; and [B, E] bool, false behind a row's last one.
    """
    text = modality == Modality.TEXT
    tokens = text.sum(-1, keepdim=True)
    E = min(most, int(tokens.max()))
    number = torch.arange(E, device=modality.device).expand(len(modality), E)
    run, runs = min(_RUN, max(1, E)), max(1, E // _RUN)
    # Of a text with as many tokens or fewer, the runs lie one behind another.
    start = (number // run).clamp_max(runs - 1) * (tokens - E).clamp_min(0) // max(1, runs - 1)
    places = text.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)
    return places.gather(1, (number + start).clamp_max(modality.shape[1] - 1)), number < tokens


def echo_of(method: Method, cache: RaggedCache, config: Any) -> int:
    """How many tokens a model reads again for a method, at most; none at a budget of 1.0.

    Args:
        method: what asks for it.
        cache: one that the prompt would be read into.
        config: of the model.

    Raises:
        UnsupportedOptionError: the model cannot take them back, and the echo was asked for.
    """
    if not method.echoed or method.keeps_everything:
        return 0
    try:
        check_taken_back(f"echo={method.echoed}", cache, config)
    except UnsupportedOptionError as reason:
        if not method.echo_is_optional:
            raise
        logger.info("no echo: %s", reason)
        return 0
    return method.echoed


def echo_room(config: Any, tokens: int) -> int:
    """How many tokens a model can read behind a prompt of so many without leaving the positions that it knows."""
    known = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return tokens if known is None else max(0, known - tokens)


class Echo:
    """The hooks around the decoder: echoed tokens go in behind the prompt, and do not come out.

    Args:
        most: tokens that are read again.
        config: of the model.
        optional: whether prompts that cannot be followed by them do without.

    Nothing of a pass is kept here: it is on the cache that the pass is on.
    """

    def __init__(self, most: int, config: Any, *, optional: bool = False) -> None:
        self._most = most
        self._config = config
        self._optional = optional

    def before(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before the decoder's pass.

        Raises:
            UnsupportedOptionError: the decoder takes masks or features that cannot be told for further tokens.
        """
        cache: RaggedCache = kwargs["past_key_values"]
        cache.cut_at(None)
        reading = cache.prompt_ahead
        if reading is None:
            return None
        kwargs = dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | kwargs
        # Where a decoder is given ids, it may put pictures in their places by itself.
        name = "input_ids" if kwargs.get("inputs_embeds") is None else "inputs_embeds"
        given = kwargs[name]
        N = given.shape[1]
        try:
            check_echo(module, kwargs, N)
        except UnsupportedOptionError as reason:
            if not self._optional:
                raise
            logger.info("no echo: %s", reason)
            return None
        places, valid = echo_places(reading.prompt.modality, min(self._most, echo_room(self._config, N)))
        places, valid = places.to(given.device), valid.to(given.device)
        E = places.shape[1]
        cache.cut_at(N)
        reading.add_probe(probes.echo(reading.method, valid, modality=reading.prompt.modality, places=places))
        rows = torch.arange(len(places), device=given.device)[:, None]
        changed = {name: torch.cat([given, given[rows, places]], 1)}
        if (mask := kwargs.get("attention_mask")) is not None:
            # What fills up shorter echoes stands last, where nothing that is heard sees it.
            changed["attention_mask"] = pad(mask, (0, E), value=1)
        if (positions := kwargs.get("position_ids")) is not None:
            last = positions.amax(-1, keepdim=True)
            if positions.dim() == 3:
                # The axes of a picture end apart; text goes on behind the farthest.
                count, axes = last[:-_AXES], last[-_AXES:]
                last = torch.cat([count, axes.amax(0, keepdim=True).expand_as(axes)])
            changed["position_ids"] = torch.cat([positions, last + torch.arange(1, E + 1, device=last.device)], -1)
        for name in _OF_PICTURES:
            if (told := kwargs.get(name)) is not None:
                changed[name] = pad(told, (0, E))
        return (), kwargs | changed

    def after(self, _module: torch.nn.Module, _args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        """After it."""
        cache: RaggedCache = kwargs["past_key_values"]
        N = cache.cut_at(None)
        if N is None:
            return output
        output.last_hidden_state = output.last_hidden_state[:, :N]
        if output.hidden_states is not None:
            output.hidden_states = tuple(states[:, :N] for states in output.hidden_states)
        if (routers := getattr(output, "router_logits", None)) is not None:
            rows = len(output.last_hidden_state)
            output.router_logits = tuple(r.unflatten(0, (rows, -1))[:, :N].flatten(0, 1) for r in routers)
        return output


def check_echo(module: torch.nn.Module, kwargs: dict[str, Any], tokens: int) -> None:
    """Refuse what cannot be told for further tokens.

    Raises:
        UnsupportedOptionError: the decoder takes masks or features of that kind.
    """
    if kwargs.get("return_dict") is False:
        raise UnsupportedOptionError("echo cannot be combined with return_dict=False")
    mask = kwargs.get("attention_mask")
    if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2):
        raise UnsupportedOptionError(
            f"echo cannot be combined with {type(module).__name__}, which is handed a mask of its own for each layer"
        )
    others = [
        name
        for name, value in kwargs.items()
        if name not in (*_EXTENDED, *_OF_PICTURES) and isinstance(value, Tensor) and value.shape[1:2] == (tokens,)
    ]
    if others:
        raise UnsupportedOptionError(
            f"echo cannot be combined with {type(module).__name__}, which takes {', '.join(others)} for every token"
        )
