"""Whether a model got all of its weights, and its files held nothing that it should have had."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from madakv.errors import ConfigurationError

_MOST_NAMED = 3


def check_weights(model: Any, info: Mapping[str, Any]) -> None:
    """Refuse a model with tensors that are not its files'; transformers fills them with random numbers.

    Tensors that tie to others and buffers that are computed are none of them; transformers leaves them out of its
    account.

    Args:
        model: loaded, with `ignore_mismatched_sizes`.
        info: what `from_pretrained(..., output_loading_info=True)` tells beside it.

    Raises:
        ConfigurationError: tensors are missing, have another shape, or have no place in the model although it has
            such modules; names some of them.
    """
    faults = []
    if missing := sorted(info["missing_keys"]):
        faults.append(f"tensors are missing: {_some(missing)}")
    if mismatched := sorted(info["mismatched_keys"]):
        named = [f"{name} ({list(found)} for {list(wanted)})" for name, found, wanted in mismatched]
        faults.append(f"tensors are of another shape than config.json asks for: {_some(named)}")
    if homeless := _homeless(model, info["unexpected_keys"]):
        faults.append(f"tensors have no place in the model: {_some(homeless)}")
    faults += info["error_msgs"]
    if faults:
        raise ConfigurationError(f"{'; '.join(faults)}. Its weights and config.json are not of one whole model")


def _homeless(model: Any, unexpected: Collection[str]) -> list[str]:
    """Unexpected tensors that the model should have had, sorted.

    Those are one more layer of a kind that the model has, and one more tensor of a module of its own, such as a bias.
    Whole further parts, such as heads for training, are left out on purpose, and buffers are made anew.
    """
    roles = {_role(name) for name, _ in model.named_parameters()}
    modules = {name for name, _ in model.named_modules()}
    buffers = {name for name, _ in model.named_buffers()}
    return sorted(
        name
        for name in unexpected
        if name not in buffers and (_role(name) in roles or name.rpartition(".")[0] in modules)
    )


def _role(name: str) -> str:
    """A tensor's name whatever its layer."""
    return re.sub(r"\.\d+\.", ".*.", name)


def _some(names: list[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more:,} more" if more > 0 else "")
