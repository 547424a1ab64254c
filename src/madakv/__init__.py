"""madakv: evict a multimodal LLM's KV cache while it reads the prompt, per attention head and per modality."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from madakv.api import evict
    from madakv.errors import (
        CheckFailedError,
        ConfigurationError,
        DownloadError,
        InputError,
        MadaKVError,
        MissingExtraError,
        NestedEvictionError,
        UnsupportedModelError,
        UnsupportedOptionError,
    )
    from madakv.kept import Kept
    from madakv.linears import fast_linears
    from madakv.methods import Full, MadaKV, Method, list_methods
    from madakv.modality import Modality, known_families, register_family
    from madakv.plan import KeepPlan
    from madakv.reading import allocate
    from madakv.run import Run

__version__ = "0.1.0"

__all__ = [
    "CheckFailedError",
    "ConfigurationError",
    "DownloadError",
    "Full",
    "InputError",
    "KeepPlan",
    "Kept",
    "MadaKV",
    "MadaKVError",
    "Method",
    "MissingExtraError",
    "Modality",
    "NestedEvictionError",
    "Run",
    "UnsupportedModelError",
    "UnsupportedOptionError",
    "__version__",
    "allocate",
    "evict",
    "fast_linears",
    "known_families",
    "list_methods",
    "register_family",
]

# Imported when they are first asked for: torch and transformers take seconds, in which a command could neither print
# its help nor end on Ctrl-C.
_HOMES = {
    "evict": "api",
    "allocate": "reading",
    "fast_linears": "linears",
    **dict.fromkeys(("Full", "MadaKV", "Method", "list_methods"), "methods"),
    **dict.fromkeys(("Modality", "known_families", "register_family"), "modality"),
    "KeepPlan": "plan",
    "Kept": "kept",
    "Run": "run",
    **dict.fromkeys((name for name in __all__ if name.endswith("Error")), "errors"),
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            if find_spec(f"{__name__}.{name}") is None:
                raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
            # A room, such as `madakv.reading`.
            return import_module(f"{__name__}.{name}")
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
