"""How much of the keys and values a program of the decode kernel takes at a time."""

from __future__ import annotations

from dataclasses import dataclass

_STAGE_BYTES = 1 << 15


@dataclass(frozen=True)
class Tuning:
    """Launch parameters of the kernel that reads chunks.

    Reading is all that counts: per byte there are some 16 operations of the matrix units where the chip could do
    200. To use an H200's memory, about 4 TB/s x 0.7 us = 3 MB have to be on their way, 21 KiB per multiprocessor.
    A stage of 32 KiB on its way while another is worked on holds that with one program, and leaves shared memory
    for two more programs, which read while the first one waits for its own arithmetic.

    Attributes:
        block: entries read at a time, a power of two.
        warps: warps per program.
        stages: depth of the software pipeline that reads ahead.
    """

    block: int
    warps: int = 4
    stages: int = 3

    @classmethod
    def of(cls, entry_bytes: int) -> Tuning:
        """What suits entries whose key and value, as they lie in shared memory, take so many bytes together."""
        fitting = 1 << (_STAGE_BYTES // entry_bytes).bit_length() - 1
        return cls(block=max(16, min(128, fitting)))
