"""Tasks and scores that show what eviction costs."""
