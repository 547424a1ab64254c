"""Old names of options: they work for one more version, and warn. This file goes with them."""

from __future__ import annotations

import sys
import warnings
from abc import ABCMeta
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, cast

_OURS = {"madakv", "contextlib", "dataclasses"}


class Renaming(ABCMeta):
    """Lets the constructors of methods take old names as well."""

    def __call__(cls, *args: Any, **options: Any) -> Any:
        """An instance, from new or old names."""
        method = cast(Any, cls)
        options = method.modern(options)
        if weights := getattr(method, "weights", None):
            old = {field.name: options.pop(field.name) for field in fields(weights) if field.name in options}
            for name in old:
                warn_renamed(cls.__name__, name, f"weights={type(weights).__qualname__}({name}=...)")
            if old:
                options["weights"] = reweighed(options.get("weights", weights), old)
        return super().__call__(*args, **options)


def reweighed(weights: Any, changes: Mapping[str, Any]) -> Any:
    """A method's weights with changes; what is none of them is left for the constructor to refuse."""
    return replace(weights, **changes) if is_dataclass(weights) and not isinstance(weights, type) else weights


def warn_renamed(method: str, old: str, new: str) -> None:
    """Warn of an old name where the caller stands, outside of this library."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in _OURS:
        level, frame = level + 1, frame.f_back
    warnings.warn(f"{method}: {old} is now {new}; the old name goes with the next version", DeprecationWarning, level)
