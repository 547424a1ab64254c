"""Reading a GGUF file: its settings, and its tensors in float32.

The format is llama.cpp's (ggml-org/ggml, docs/gguf.md; blocks of quantised tensors: ggml-common.h). transformers
reads it too, with two further packages, packed or not by its version. Only the types of tensors that known models
have are read.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from madakv.errors import InputError

_MAGIC, _VERSION = b"GGUF", 3
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_F32, _Q4_1, _Q8_0 = 0, 3, 8
_BLOCKS = {_F32: (1, 4), _Q4_1: (32, 20), _Q8_0: (32, 34)}
"""Numbers in a block, and bytes, by a tensor's type."""


@dataclass(frozen=True)
class _Stored:
    shape: tuple[int, ...]
    kind: int
    offset: int


class Gguf:
    """An open file.

    Attributes:
        settings: its key-value pairs; arrays are lists.

    Raises:
        InputError: no GGUF file of version 3, or tensors of a type that is not known here.
    """

    def __init__(self, content: bytearray) -> None:
        if content[:4] != _MAGIC or struct.unpack_from("<I", content, 4) != (_VERSION,):
            raise InputError(f"no GGUF file of version {_VERSION}: it begins with {bytes(content[:8])!r}")
        self._content, self._position = content, 8
        tensors, pairs = self._scalar("Q"), self._scalar("Q")
        self.settings: dict[str, Any] = {self._string(): self._value(self._scalar("I")) for _ in range(pairs)}
        self._stored = {self._string(): self._described() for _ in range(tensors)}
        alignment = self.settings.get("general.alignment", 32)
        self._data = -(-self._position // alignment) * alignment

    @property
    def names(self) -> tuple[str, ...]:
        """Of its tensors, in their order."""
        return tuple(self._stored)

    def tensor(self, name: str) -> torch.Tensor:
        """One of its tensors, float32, unpacked; rows first, as PyTorch has them."""
        stored = self._stored[name]
        if stored.kind not in _BLOCKS:
            raise InputError(f"the tensor {name} is of type {stored.kind}; known are {sorted(_BLOCKS)}")
        numbers, nbytes = _BLOCKS[stored.kind]
        count = prod(stored.shape) // numbers
        raw = torch.frombuffer(
            self._content, dtype=torch.uint8, count=count * nbytes, offset=self._data + stored.offset
        )
        return _unpacked(raw.view(count, nbytes), stored.kind).reshape(stored.shape)

    def _scalar(self, kind: str) -> Any:
        (value,) = struct.unpack_from(f"<{kind}", self._content, self._position)
        self._position += struct.calcsize(f"<{kind}")
        return value

    def _string(self) -> str:
        start = self._position + 8
        self._position = start + self._scalar("Q")
        return self._content[start : self._position].decode()

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            inner, count = self._scalar("I"), self._scalar("Q")
            return [self._value(inner) for _ in range(count)]
        return self._scalar(_SCALARS[kind])

    def _described(self) -> _Stored:
        # The fastest dimension comes first.
        shape = tuple(self._scalar("Q") for _ in range(self._scalar("I")))[::-1]
        return _Stored(shape, self._scalar("I"), self._scalar("Q"))


def _unpacked(blocks: torch.Tensor, kind: int) -> torch.Tensor:
    """Blocks of bytes [count, bytes] as float32 [count, numbers]."""
    if kind == _F32:
        return blocks.view(torch.float32).clone()
    scale = _half(blocks[:, :2])
    if kind == _Q8_0:
        return blocks[:, 2:].view(torch.int8).float() * scale
    # Q4_1: scale, smallest value, and two numbers in a byte: the first half of the block in the lower bits.
    packed = blocks[:, 4:]
    return torch.cat((packed & 15, packed >> 4), dim=1).float() * scale + _half(blocks[:, 2:4])


def _half(two: torch.Tensor) -> torch.Tensor:
    return two.contiguous().view(torch.float16).float()
