"""What is noted while a prompt is read and answered, for those who want to look at it later."""

from madakv.recording.exchange import Exchange
from madakv.recording.recording import Looked, Recording

__all__ = ["Exchange", "Looked", "Recording"]
