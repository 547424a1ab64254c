"""What becomes of evicted entries: nothing, or a trace in those that stay."""

from madakv.merge.nearest import Merge, merge_evicted, merge_into_nearest, merge_into_nearest_reference

__all__ = ["Merge", "merge_evicted", "merge_into_nearest", "merge_into_nearest_reference"]
