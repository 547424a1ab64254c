"""Load a model and its processor from an id, a folder, or the package itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.utils.import_utils import is_torchvision_available

from madakv import assembled, bundled
from madakv.bundled.processor import PictureProcessor
from madakv.errors import ConfigurationError, MadaKVError
from madakv.extras import torchvision_fault
from madakv.model_files import check_source, weights_fault
from madakv.model_names import folder_of, names
from madakv.model_weights import check_weights

_DTYPES: dict[str, str | torch.dtype] = {
    "auto": "auto",
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def load(model: str | None, *, device: str | None = None, dtype: str = "auto") -> tuple[Any, Any]:
    """A model in eval mode and its processor; a tokenizer for text-only models.

    Args:
        model: Hub id, folder, or one of the names that `madakv models` lists; None loads the model that comes with
            the package.
        device: such as "cuda" or "cpu"; None takes a GPU if there is one.
        dtype: "auto" (as saved), "float32", "bfloat16" or "float16".

    Raises:
        ConfigurationError: no such model, an unreadable one, one whose files are not all there or not all its own, or
            an unknown dtype or device.
    """
    if dtype not in _DTYPES:
        raise ConfigurationError(f"dtype must be one of {', '.join(_DTYPES)}; got {dtype!r}")
    source = source_of(model)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    try:
        check_source(source)
        return _load(source, device, _DTYPES[dtype])
    except Exception as error:
        # Broken files lead to whatever their readers raise: SafetensorError, a bare Exception of tokenizers, ...
        raise ConfigurationError(
            f"cannot load the model {source!r} on {device!r}: {_reason(error, source)}"
        ) from error


def _load(source: str, device: str, dtype: str | torch.dtype) -> tuple[Any, Any]:
    base = base_folder(source)
    if base is not None:
        model, processor = assembled.load(Path(source), base, dtype)
        return model.to(device).eval(), processor
    config = AutoConfig.from_pretrained(source)
    multimodal = config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    auto_model: Any = AutoModelForImageTextToText if multimodal else AutoModelForCausalLM
    # Tensors of another shape are told beside the model, where an exception would not name them.
    loaded, info = auto_model.from_pretrained(
        source, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
    )
    check_weights(loaded, info)
    return loaded.to(device).eval(), _processor_class(config, multimodal, source).from_pretrained(source)


def _reason(error: Exception, source: str) -> str:
    """Why a model could not be loaded: what is known of its files, or else what transformers says."""
    if isinstance(error, MadaKVError):
        return str(error)
    if fault := weights_fault(source) or torchvision_fault():
        return fault
    text = " ".join(str(error).split()) or type(error).__name__
    # Whole sentences: the first lines of these messages end where the terminal of their author did.
    told = text if len(text) <= 300 else text[:300].rsplit(". ", 1)[0]
    return told if Path(source).exists() else f"there is no such folder, and as a Hub id: {told}"


def source_of(model: str | None) -> str:
    """The folder or Hub id that a model's name stands for, see `load`.

    Raises:
        ConfigurationError: a model that has a name and is not here.
    """
    if model is None:
        return str(bundled.model_path())
    if model in names() and not Path(model).exists():
        return str(folder_of(model))
    return model


def base_folder(source: str) -> Path | None:
    """Where the language model lies that a folder's model is put together with; None if it has all of its own.

    Raises:
        ConfigurationError: it is not here; the message says how to bring it.
    """
    said = assembled.description(Path(source))
    if said is None:
        return None
    base = Path(source_of(said.base))
    if not (base / "config.json").is_file():
        raise ConfigurationError(
            f"it needs the language model {said.base}, which is not here: `madakv models get {said.base}` brings it"
        )
    return base


def _processor_class(config: Any, multimodal: bool, source: str) -> Any:
    """What reads a model's inputs; of Qwen2.5-VL the pictures alone, if videos cannot be read or it knows none."""
    if not multimodal:
        return AutoTokenizer
    if config.model_type == "qwen2_5_vl" and (_saved_for_pictures(source) or not is_torchvision_available()):
        return PictureProcessor
    return AutoProcessor


def _saved_for_pictures(source: str) -> bool:
    """Whether a folder's processor was saved as ours, which transformers does not know by its name."""
    settings = Path(source) / "processor_config.json"
    if not settings.is_file():
        return False
    return bool(json.loads(settings.read_text()).get("processor_class") == PictureProcessor.__name__)


def check_device(name: str) -> None:
    """Raise ConfigurationError unless there is a device of that name which can hold a model."""
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise ConfigurationError(f"unknown device {name!r}: use cpu or cuda") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(f"no CUDA device for --device {name}: use cpu")
    if kind == "meta":
        raise ConfigurationError("the device 'meta' holds no data: use cpu or cuda")
