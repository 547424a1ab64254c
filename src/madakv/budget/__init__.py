"""How many entries each layer, head and modality may keep, and which ones they are."""

from madakv.budget.apportion import apportion
from madakv.budget.entries import per_head, prompt_entries
from madakv.budget.mpa import Demand, best_of_all_heads, demand, preference, top_of_each_modality
from madakv.budget.pool import SharedPool

__all__ = [
    "Demand",
    "SharedPool",
    "apportion",
    "best_of_all_heads",
    "demand",
    "per_head",
    "preference",
    "prompt_entries",
    "top_of_each_modality",
]
