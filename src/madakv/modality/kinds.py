"""The modalities that a token can have."""

from __future__ import annotations

from enum import IntEnum

from torch import Tensor

from madakv.errors import InputError


class Modality(IntEnum):
    """Modality ids, the same numbers as the `mm_token_type_ids` of transformers' processors."""

    PADDING = -1
    TEXT = 0
    IMAGE = 1
    VIDEO = 2
    AUDIO = 3


KINDS = tuple(kind for kind in Modality if kind != Modality.PADDING)
"""The modalities that a token can have, padding aside; their number M is the size of every per-modality axis."""


def check_modality(modality: Tensor, *, name: str) -> None:
    """Raise InputError, naming the tensor, if it holds anything but `Modality` values."""
    known = (modality >= Modality.PADDING) & (modality <= Modality.AUDIO)
    if not bool(known.all()):
        raise InputError(
            f"{name} holds {modality[~known].unique().tolist()}; known are 0 text, 1 image, 2 video, 3 audio and "
            "-1 padding"
        )
