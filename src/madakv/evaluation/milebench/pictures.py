"""The pictures of a prompt, opened."""

from __future__ import annotations

from PIL import Image

from madakv.evaluation.milebench.combine import combine
from madakv.evaluation.milebench.data import Question
from madakv.evaluation.milebench.prompts import Prompt, write
from madakv.pictures import open_images


def open_pictures(asked: Question | Prompt) -> list[Image.Image]:
    """Pictures in the order of a prompt's `<image>` marks, as many as it has marks.

    Args:
        asked: a prompt, or a question for the pictures of its whole prompt.

    Returns:
        RGB pictures; a single one, made now if the data has none, where they are combined.

    Raises:
        InputError: a file that is missing or broken; the message names it.
    """
    shown = write(asked) if isinstance(asked, Question) else asked
    images = open_images(shown.images)
    return [combine(images)] if shown.combine else images
