"""MileBench as tasks of lmms-eval: a template, a thin file for each dataset, and what they call."""
