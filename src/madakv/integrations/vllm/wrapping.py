"""Methods of vLLM's classes that something of ours stands around."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

_OURS = "_madakv_wraps"


def wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Put a function around a method, once.

    Args:
        owner: the class; or the module of a function, whose first argument then is the object.
        name: of the method.
        around: is called with the object, the method bound to it, and the arguments.
    """
    original = getattr(owner, name)
    if getattr(original, _OURS, None) is around:
        return

    @functools.wraps(original)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(self, functools.partial(original, self), *args, **kwargs)

    setattr(wrapped, _OURS, around)
    setattr(owner, name, wrapped)
