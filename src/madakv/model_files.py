"""A model's files before they are read: where they are, and which of them cannot be what they should be."""

from __future__ import annotations

import json
import re
from pathlib import Path

from madakv.errors import ConfigurationError

_HUB_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)?")
_SETTINGS = re.compile(
    r"(?:config|generation_config|(?:video_)?(?:pre)?processor_config|tokenizer|tokenizer_config|special_tokens_map"
    r"|added_tokens|vocab|chat_template|.+\.index)\.json|chat_template\.jinja|(?:merges|vocab)\.txt"
    r"|(?:tokenizer|spiece|sentencepiece\.bpe)\.model"
)
"""Names of the files beside the weights that transformers reads."""

_POINTER = b"version https://git-lfs.github.com/spec/"
_LENGTH_BYTES = 8
"""Before a safetensors file's header, which they tell the length of."""


def check_source(source: str) -> None:
    """Raise ConfigurationError if a name can be neither a folder's nor a Hub id, or its folder holds no model.

    Settings that cannot be read are refused too: transformers goes on without some of them.
    """
    folder = Path(source)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigurationError("the folder holds no config.json; give the folder of a saved transformers model")
        _check_settings(folder)
    elif folder.exists():
        raise ConfigurationError("it is a file; give the folder that holds it")
    elif not _HUB_ID.fullmatch(source):
        windows = "; on this system, folders are parted by /" if "\\" in source and folder.parts == (source,) else ""
        raise ConfigurationError(
            f"there is no such folder{windows}. Give a folder, a Hub id such as llava-hf/llava-1.5-7b-hf, or one of "
            "the names in --help"
        )


def _check_settings(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        if _SETTINGS.fullmatch(path.name) and path.is_file():
            content = path.read_bytes()
            _refuse_pointer(path, content)
            if path.suffix == ".json":
                try:
                    json.loads(content)
                except ValueError as error:
                    raise ConfigurationError(
                        f"{path.name} is no JSON ({error}): it is broken or cut off; fetch it again"
                    ) from None


def weights_fault(source: str) -> str | None:
    """What is wrong with the first broken one of a folder's weights; None if they look whole."""
    for path in sorted(Path(source).glob("*")):
        try:
            if path.suffix == ".safetensors":
                _check_safetensors(path)
            elif path.suffix == ".bin":
                with path.open("rb") as file:
                    _refuse_pointer(path, file.read(len(_POINTER)))
        except ConfigurationError as error:
            return str(error)
    return None


def _check_safetensors(path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(max(_LENGTH_BYTES, len(_POINTER)))
        _refuse_pointer(path, start)
        length = int.from_bytes(start[:_LENGTH_BYTES], "little")
        if len(start) < _LENGTH_BYTES or _LENGTH_BYTES + length > size:
            raise ConfigurationError(
                f"{path.name} is cut off or no safetensors file ({size:,} bytes); fetch it again"
            )
        file.seek(_LENGTH_BYTES)
        try:
            header = json.loads(file.read(length))
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            raise ConfigurationError(f"{path.name} is no safetensors file; fetch it again") from None
    whole = _LENGTH_BYTES + length + max(ends, default=0)
    if size != whole:
        raise ConfigurationError(f"{path.name} is cut off: {size:,} of {whole:,} bytes are there; fetch it again")


def _refuse_pointer(path: Path, content: bytes) -> None:
    if content.startswith(_POINTER):
        raise ConfigurationError(
            f"{path.name} is a pointer of Git LFS, not the file itself: run `git lfs pull` in its folder"
        )
