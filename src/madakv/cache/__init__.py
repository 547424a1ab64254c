"""What is stored: kept entries of uneven heads, and a rectangle for what came after them."""

from madakv.cache.entries import Entries
from madakv.cache.memory import LayerMemory
from madakv.cache.ragged import RaggedEntries
from madakv.cache.tail import FixedTail, Tail

__all__ = ["Entries", "FixedTail", "LayerMemory", "RaggedEntries", "Tail"]
