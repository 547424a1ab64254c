"""The only place that knows transformers: caches, attention functions, hooks and generation options."""
