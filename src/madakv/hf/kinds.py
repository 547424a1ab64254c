"""`mm_token_type_ids` beside `inputs_embeds`: they say which embeddings are pictures where there are no token ids."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

_KINDS = "mm_token_type_ids"


def takes_kinds(prepare: Callable[..., dict[str, Any]], forward: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """`prepare_inputs_for_generation` that lets `mm_token_type_ids` through to the prompt's forward pass.

    `generate` asks its signature what may be passed, and refuses all else; of models that do not read these ids
    themselves, madakv does.

    Args:
        prepare: the model's own.
        forward: the model's forward pass.
    """
    if any(_KINDS in inspect.signature(function).parameters for function in (prepare, forward)):
        return prepare

    @functools.wraps(prepare)
    def prepared(*args: Any, **kwargs: Any) -> dict[str, Any]:
        inputs = prepare(*args, **kwargs)
        if not kwargs.get("is_first_iteration"):
            inputs.pop(_KINDS, None)
        return inputs

    signature = inspect.signature(prepare)
    kinds = inspect.Parameter(_KINDS, inspect.Parameter.KEYWORD_ONLY, default=None)
    named = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    others = [one for one in signature.parameters.values() if one.kind is inspect.Parameter.VAR_KEYWORD]
    prepared.__signature__ = signature.replace(parameters=[*named, kinds, *others])  # type: ignore[attr-defined]
    return prepared
