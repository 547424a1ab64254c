"""One prompt being read: who is heard, how that scores, when it is decided, and what then stays."""

from madakv.reading.allocate import Decisions, allocate
from madakv.reading.prompt import Prompt
from madakv.reading.reading import Phase, Reading
from madakv.reading.revision import Revision
from madakv.reading.scores import Scores
from madakv.reading.triggers import AfterPrefill, AfterTokens, Trigger, trigger_of

__all__ = [
    "AfterPrefill",
    "AfterTokens",
    "Decisions",
    "Phase",
    "Prompt",
    "Reading",
    "Revision",
    "Scores",
    "Trigger",
    "allocate",
    "trigger_of",
]
