"""Which modality each prompt token has: the map that scores, budgets and reports are split by."""

from madakv.modality.config import ids_named_after
from madakv.modality.families import Family, known_families, placeholder_ids, register_family
from madakv.modality.kinds import KINDS, Modality, check_modality
from madakv.modality.prompt import prompt_modality

__all__ = [
    "KINDS",
    "Family",
    "Modality",
    "check_modality",
    "ids_named_after",
    "known_families",
    "placeholder_ids",
    "prompt_modality",
    "register_family",
]
