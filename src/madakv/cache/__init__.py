"""Memory: kept prompt entries of uneven heads, packed, and a growing rectangle for what is generated."""

from madakv.cache.ragged import RaggedEntries
from madakv.cache.tail import Tail

__all__ = ["RaggedEntries", "Tail"]
