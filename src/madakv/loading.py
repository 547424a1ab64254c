"""Load a model and its processor from an id, a folder, or the package itself."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

from madakv import bundled
from madakv.errors import ConfigurationError

_DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(model: str | None, *, device: str | None = None, dtype: str = "auto") -> tuple[Any, Any]:
    """A model in eval mode and its processor; a tokenizer for text-only models.

    Args:
        model: Hub id or folder; None loads the model that comes with the package.
        device: such as "cuda" or "cpu"; None takes a GPU if there is one.
        dtype: "auto" (as saved), "float32", "bfloat16" or "float16".

    Raises:
        ConfigurationError: no such model, an unreadable one, or an unknown dtype or device.
    """
    if dtype not in _DTYPES:
        raise ConfigurationError(f"dtype must be one of {', '.join(_DTYPES)}; got {dtype!r}")
    source = str(bundled.model_path()) if model is None else model
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        config = AutoConfig.from_pretrained(source)
        multimodal = type(config) in AutoModelForImageTextToText._model_mapping
        auto_model = AutoModelForImageTextToText if multimodal else AutoModelForCausalLM
        loaded: Any = auto_model.from_pretrained(source, dtype=_DTYPES[dtype])
        loaded = loaded.to(device).eval()
        processor = (AutoProcessor if multimodal else AutoTokenizer).from_pretrained(source)
    except (OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigurationError(f"cannot load the model {source!r} on {device!r}: {reason}") from error
    return loaded, processor
