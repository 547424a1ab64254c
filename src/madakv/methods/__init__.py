"""The published methods, one file each, all through the same plan, cache and attention."""

from madakv.methods.base import Allocator, Method
from madakv.methods.full import Full
from madakv.methods.madakv import MadaKV
from madakv.methods.registry import from_text, list_methods, resolve

__all__ = ["Allocator", "Full", "MadaKV", "Method", "from_text", "list_methods", "resolve"]
