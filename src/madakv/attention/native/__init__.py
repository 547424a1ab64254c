"""Decode attention on a CPU in one pass, by a kernel that the machine's C++ compiler builds when it is first used."""

from madakv.attention.native.decode import native_partial

__all__ = ["native_partial"]
