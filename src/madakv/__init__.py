"""madakv: evict a multimodal LLM's KV cache while it reads the prompt, per attention head and per modality."""

from madakv.api import evict
from madakv.errors import (
    CheckFailedError,
    ConfigurationError,
    InputError,
    MadaKVError,
    MissingExtraError,
    NestedEvictionError,
    UnsupportedModelError,
    UnsupportedOptionError,
)
from madakv.linears import fast_linears
from madakv.methods import Full, MadaKV, Method, list_methods
from madakv.modality import Modality, known_families, register_family
from madakv.plan import KeepPlan
from madakv.reading import allocate
from madakv.run import Kept, Run

__version__ = "0.1.0"

__all__ = [
    "CheckFailedError",
    "ConfigurationError",
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
