"""Decode attention for GPUs, in Triton; the one place that imports triton, which not every installation has."""

from madakv.attention.triton.decode import ragged_decode
from madakv.attention.triton.paged import triton_paged
from madakv.attention.triton.schedule import DecodeSchedule, decode_schedule
from madakv.attention.triton.tuning import Tuning

__all__ = ["DecodeSchedule", "Tuning", "decode_schedule", "ragged_decode", "triton_paged"]
