"""Accuracy under eviction: documents with questions, a runner that survives, and its tables."""
