"""Real text, asked in plain English: RULER's tasks and others, and the next-token loss on what follows."""

from madakv.evaluation.texts.suite import COUNTS_FROM, TASKS, TEXT_LENGTHS, text_documents

__all__ = ["COUNTS_FROM", "TASKS", "TEXT_LENGTHS", "text_documents"]
