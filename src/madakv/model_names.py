"""The models that can be asked for by name: those of the repository, and published ones."""

from __future__ import annotations

from pathlib import Path

from madakv import bundled
from madakv.errors import ConfigurationError
from madakv.published import known


def names() -> dict[str, str]:
    """Every name, and what it stands for, in one line."""
    return bundled.NAMES | {name: model.about for name, model in known.KNOWN.items()}


def folder_of(name: str) -> Path:
    """The folder of one of `names()`.

    Raises:
        ConfigurationError: no such name, or it is not here; the message says how to have it.
    """
    if name in known.KNOWN:
        return known.folder_of(name)
    if name not in bundled.NAMES:
        raise ConfigurationError(f"no model is called {name!r}; there are {', '.join(names())}")
    return bundled.folder_of(name)
