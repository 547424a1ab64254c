"""Which model answered: a digest of weights, tokenizer, processor and template, whatever folder they lie in.

Of a folder or a Hub id it is made from the files that transformers may read, every byte of them: about a second per
2 GB and core, once per run. Samples of the weights would be faster, and would miss a repaired tensor. Files, and not
what is loaded from them: the same folder gives the same fingerprint with every version of transformers. A model that
was changed in memory, or comes from no folder, has `of_model`.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from transformers.utils.hub import cached_file

from madakv.errors import ConfigurationError
from madakv.loading import base_folder

_WEIGHTS = (".safetensors", ".bin")
"""Formats of weights, the one that is taken first; others that lie beside it are not read."""
_SETTINGS = frozenset({".json", ".jinja", ".txt", ".model", ".tiktoken", ".py"})
_LENGTH = 16


def of_source(source: str) -> str:
    """The fingerprint of what `transformers` loads by a name.

    Args:
        source: a folder, or a Hub id that was loaded before. A model that is put together with a language model
            (`madakv.assembled`) is both.

    Raises:
        ConfigurationError: files that cannot be read.
    """
    try:
        folder = Path(source)
        if not folder.is_dir():
            folder = Path(str(cached_file(source, "config.json"))).parent
        own, base = of_folder(folder), base_folder(source)
        return own if base is None else _joined([("adapter", own), ("base", of_folder(base))])
    except OSError as error:
        raise ConfigurationError(f"cannot read the files of the model {source!r}: {error}") from error


def of_folder(folder: Path) -> str:
    """The fingerprint of a model's folder: 16 hexadecimal digits of a SHA-256.

    Args:
        folder: with `config.json`, weights and what its processor was saved as; other files, such as a README, and
            folders, but for further chat templates, do not count.
    """
    files = [path for path in folder.iterdir() if path.is_file()]
    weights = next((own for kind in _WEIGHTS if (own := [path for path in files if path.suffix == kind])), [])
    settings = [path for path in files if path.suffix in _SETTINGS]
    settings += folder.glob("additional_chat_templates/*.jinja")
    chosen = sorted({*weights, *settings})
    with ThreadPoolExecutor(min(len(chosen), os.cpu_count() or 1) or 1) as pool:
        digests = pool.map(_of_file, chosen)
        return _joined(zip((path.relative_to(folder).as_posix() for path in chosen), digests, strict=True))


def of_model(model: Any, processor: Any) -> str:
    """The fingerprint of a model in memory, another one than that of the folder that it may come from.

    Args:
        model: as from `madakv.loading.load`; every tensor of its state counts.
        processor: its processor, or a tokenizer.
    """
    parts = [(f"tensor {name}", _of_tensor(tensor)) for name, tensor in sorted(model.state_dict().items())]
    settings = (model.config, getattr(model, "generation_config", None))
    parts += [("settings", _of_bytes(one.to_json_string().encode())) for one in settings if one is not None]
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        parts.append(("processor", of_folder(Path(folder))))
    return _joined(parts)


def _of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _of_tensor(tensor: torch.Tensor) -> str:
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return _of_bytes(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), content)


def _of_bytes(*parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _joined(parts: Iterable[tuple[str, str]]) -> str:
    return _of_bytes("".join(f"{name}\0{digest}\n" for name, digest in parts).encode())[:_LENGTH]
