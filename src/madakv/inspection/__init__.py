"""A page that shows what the cache kept of a prompt, and what the answer rested on."""
