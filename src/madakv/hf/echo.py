"""Read text of the prompt once more behind it: what it looks up then is what answers will.

Where all of the text is read again, it passes through the decoder together with the prompt, behind it, and layers are
evicted on the way. Where the question has to be known first, to choose by it, or where layers keep states that no
pass takes back, it is read after the prompt, which is kept whole until then. Either way nothing in the prompt sees
it: its attention scores, its entries are not kept, states are put back, and what the decoder returns is the prompt's.
"""

from __future__ import annotations

import inspect
import logging
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from madakv.hf.cache import RaggedCache
from madakv.hf.options import rope_by_length
from madakv.hf.states import put_back
from madakv.modality import Modality
from madakv.reading import Reading, probes
from madakv.reading.echo import echo_places, fits
from madakv.scoring.rotary import AXES

logger = logging.getLogger(__name__)

_EXTENDED = ("inputs_embeds", "input_ids", "attention_mask", "position_ids")
_OF_PICTURES = ("mm_token_type_ids", "moe_mm_token_type_ids", "visual_pos_masks")
"""What decoders may be told of every token besides, zero for text."""


def echo_room(config: Any, tokens: int) -> int:
    """How many tokens a model can read behind a prompt of so many and go on as if it had not.

    Args:
        config: of the model.
        tokens: N.
    """
    text = config.get_text_config(decoder=True)
    known = getattr(text, "max_position_embeddings", None)
    if (own := rope_by_length(config)) is not None:
        # Behind these positions, all that follows would be rotated as in a longer text.
        known = own
    return tokens if known is None else max(0, known - tokens)


def most_echoed(reading: Reading, config: Any) -> Tensor:
    """[B] int64: how many tokens of each row are read again, at most.

    Args:
        reading: of the prompt.
        config: of the model.
    """
    wanted = reading.method.most_echoed(reading.prompt.valid.sum(-1))
    room = echo_room(config, reading.prompt.length)
    if bool((wanted > room).any()):
        logger.warning(
            "an echo of %d tokens instead of %d: behind a prompt of %d tokens the model knows no more positions",
            room,
            int(wanted.max()),
            reading.prompt.length,
        )
    return wanted.clamp_max(room)


class Echo:
    """The hooks around the decoder: echoed tokens go in behind the prompt, and do not come out.

    Args:
        config: of the model.

    Nothing of a pass is kept here: it is on the cache that the pass is on.
    """

    def __init__(self, config: Any) -> None:
        self._config = config

    def before(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before the decoder's pass."""
        cache: RaggedCache = kwargs["past_key_values"]
        cache.cut_at(None)
        reading = cache.prompt_ahead
        if reading is None:
            return None
        kwargs = dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | kwargs
        name = _given(kwargs)
        N = kwargs[name].shape[1]
        most = most_echoed(reading, self._config)
        if not bool(torch.minimum(most, (reading.prompt.modality == Modality.TEXT).sum(-1)).any()):
            return None
        # A draft that is read with the prompt must not be seen by what is read without it elsewhere.
        alone = reading.prompt.length == N
        if not fits(reading.prompt.modality, most) or not alone or not _can_go_along(cache, kwargs, N):
            reading.hold_for_echo(most)
            return (), kwargs
        places, heard = echo_places(reading.prompt.modality, most)
        given = kwargs[name]
        places, heard = places.to(given.device), heard.to(given.device)
        E = places.shape[1]
        cache.cut_at(N)
        reading.add_probe(probes.echo(reading.method, heard, reading.prompt.modality, places))
        changed = {name: torch.cat([given, _picked(given, places)], 1)}
        if (mask := kwargs.get("attention_mask")) is not None:
            # What fills up shorter echoes stands last, where nothing that is heard sees it.
            changed["attention_mask"] = pad(mask, (0, E), value=1)
        if (positions := kwargs.get("position_ids")) is not None:
            changed["position_ids"] = torch.cat([positions, _behind(positions, E)], -1)
        for name in _OF_PICTURES:
            if (told := kwargs.get(name)) is not None:
                changed[name] = pad(told, (0, E))
        return (), kwargs | changed

    def after(self, module: torch.nn.Module, _args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        """After it."""
        cache: RaggedCache = kwargs["past_key_values"]
        reading = cache.reading
        if isinstance(reading, Reading) and reading.awaits_echo:
            self._read_after(module, kwargs, cache, reading)
            return output
        N = cache.cut_at(None)
        if N is None:
            return output
        output.last_hidden_state = output.last_hidden_state[:, :N]
        if output.hidden_states is not None:
            # Of layers that nobody asked for, there are none.
            output.hidden_states = tuple(None if states is None else states[:, :N] for states in output.hidden_states)
        if (routers := getattr(output, "router_logits", None)) is not None:
            rows = len(output.last_hidden_state)
            output.router_logits = tuple(r.unflatten(0, (rows, -1))[:, :N].flatten(0, 1) for r in routers)
        return output

    @torch.no_grad()
    def _read_after(
        self, module: torch.nn.Module, kwargs: dict[str, Any], cache: RaggedCache, reading: Reading
    ) -> None:
        """Read the echo in a pass of its own; what it leaves behind is its scores alone."""
        name = _given(kwargs)
        given: Tensor = kwargs[name]
        places, heard = reading.echo_places()
        places, heard = places.to(given.device), heard.to(given.device)
        N, E = given.shape[1], places.shape[1]
        valid = reading.prompt.valid.to(given.device)
        told: dict[str, Any] = {name: _picked(given, places)}
        if (positions := kwargs.get("position_ids")) is not None:
            told["position_ids"] = _behind(positions[..., : reading.prompt.length], E)
        if not bool(valid.all()) or not bool(heard.all()):
            told["attention_mask"] = torch.cat([valid, heard], 1).long()
        for other, value in kwargs.items():
            if other not in _EXTENDED and isinstance(value, Tensor) and value.shape[1:2] == (N,):
                told[other] = _picked(value, places)
        with put_back(cache), reading.hearing_echo(places, heard):
            module(**told, past_key_values=cache, use_cache=True)
        cache.forget_tail()


def _given(kwargs: dict[str, Any]) -> str:
    """What a decoder reads: where it is given ids, it may put pictures in their places by itself."""
    return "input_ids" if kwargs.get("inputs_embeds") is None else "inputs_embeds"


def _picked(told: Tensor, places: Tensor) -> Tensor:
    """Of [B or 1, N, ...], what is told of the tokens at `places` [B, E]."""
    rows = torch.arange(len(places), device=told.device)[:, None]
    return told.expand(len(places), *told.shape[1:])[rows, places]


def _behind(positions: Tensor, tokens: int) -> Tensor:
    """The positions of so many tokens of text behind all others; the shape's last axis aside, as given."""
    last = positions.amax(-1, keepdim=True)
    if positions.dim() == 3:
        # The axes of a picture end apart; text goes on behind the farthest.
        count, axes = last[:-AXES], last[-AXES:]
        last = torch.cat([count, axes.amax(0, keepdim=True).expand_as(axes)])
    return last + torch.arange(1, tokens + 1, device=last.device)


def _can_go_along(cache: RaggedCache, kwargs: dict[str, Any], tokens: int) -> bool:
    """Whether more tokens can be read together with the prompt of so many, and be taken back."""
    mask = kwargs.get("attention_mask")
    return (
        len(cache.evicted_layers) == len(cache.layers)
        and kwargs.get("return_dict") is not False
        and (mask is None or (isinstance(mask, Tensor) and mask.dim() == 2))
        # What is said of every token would have to be said of more.
        and not any(
            name not in (*_EXTENDED, *_OF_PICTURES) and isinstance(value, Tensor) and value.shape[1:2] == (tokens,)
            for name, value in kwargs.items()
        )
    )
