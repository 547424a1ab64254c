"""Memory: kept prompt entries of uneven heads, packed, and a rectangle for what is generated."""

from madakv.cache.ragged import RaggedEntries
from madakv.cache.tail import FixedTail, Tail

__all__ = ["FixedTail", "RaggedEntries", "Tail"]
