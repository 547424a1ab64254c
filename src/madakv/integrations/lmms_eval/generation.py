"""From the generation settings of an lmms-eval task to options of `generate`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

_MAX_NEW_TOKENS = 1024
"""For tasks that name no length; the simple models of lmms-eval take the same."""

_OF_SAMPLING = ("temperature", "top_p", "top_k")
_READ = {"max_new_tokens", "num_beams", "repetition_penalty", "do_sample", "until", *_OF_SAMPLING}


def options_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `generate`.

    Args:
        settings: a task's `generation_kwargs`. It is sampled only where the temperature is above zero and `do_sample`
            is not false; what is not known here is named in a warning and left out.
    """
    unread = sorted(settings.keys() - _READ)
    if unread:
        warnings.warn(f"generation settings that the model 'madakv' leaves out: {', '.join(unread)}", stacklevel=2)
    given = {name: value for name, value in settings.items() if value is not None}
    sampled = bool(given.get("do_sample", given.get("temperature", 0))) and given.get("temperature") != 0
    options = {
        "max_new_tokens": int(given.get("max_new_tokens", _MAX_NEW_TOKENS)),
        "num_beams": int(given.get("num_beams", 1)),
        "do_sample": sampled,
    }
    if "repetition_penalty" in given:
        options["repetition_penalty"] = given["repetition_penalty"]
    if sampled:
        # Task files write 0 where they mean that nothing is cut off.
        options |= {name: given[name] for name in _OF_SAMPLING if given.get(name)}
    return options


def cut(text: str, until: str | Sequence[str] | None) -> str:
    """The answer up to the first of a task's stop strings.

    Args:
        text: a decoded answer.
        until: stop strings. An empty line is not one: lmms-eval fills it into every task that names none.
    """
    stops = [until] if isinstance(until, str) else until or []
    for stop in stops:
        if stop not in ("", "\n\n"):
            text = text.partition(stop)[0]
    return text
