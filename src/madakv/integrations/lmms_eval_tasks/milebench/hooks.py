"""What MileBench's task files call: madakv's own reader, prompts, pictures and scores.

A document of lmms-eval is a question as plain values, since it lies in a table on disk and goes between processes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from datasets import Dataset as Table
from PIL import Image

from madakv.errors import InputError
from madakv.evaluation.milebench.catalogue import DATASETS
from madakv.evaluation.milebench.data import Question, read
from madakv.evaluation.milebench.pictures import open_pictures
from madakv.evaluation.milebench.prompts import Prompt, write
from madakv.evaluation.milebench.scores import score
from madakv.prompts import interleave

FOLDER = "MILEBENCH"
"""The environment variable that names the folder of the datasets' folders."""


def questions(placeholder: Table) -> Table:
    """All questions of a task's dataset.

    Args:
        placeholder: what lmms-eval loaded; the name of its configuration is that of the dataset.

    Raises:
        InputError: the environment names no folder, or its data cannot be read.
    """
    folder = os.environ.get(FOLDER)
    if not folder:
        raise InputError(f"set the environment variable {FOLDER} to the folder of MileBench's datasets")
    found = read(Path(folder), DATASETS[placeholder.config_name])
    return Table.from_list([_document(question) for question in found])


def _document(question: Question) -> dict[str, Any]:
    prompt = write(question)
    return {
        "id": question.id,
        "dataset": question.dataset.name,
        "level": question.level,
        "text": prompt.text,
        "images": [str(path) for path in prompt.images],
        "choices": list(question.choices),
        "gold": question.gold,
    }


def messages(document: dict[str, Any]) -> list[dict[str, Any]]:
    """One message of the user, text and pictures in reading order."""
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "url": part}
        for part in interleave(document["text"], pictures(document))
    ]
    return [{"role": "user", "content": content}]


def pictures(document: dict[str, Any]) -> list[Image.Image]:
    """In the order of the text's marks."""
    return open_pictures(Prompt(document["text"], tuple(Path(path) for path in document["images"])))


def text(document: dict[str, Any]) -> str:
    """The prompt with `<image>` marks, for models that take text and pictures apart."""
    return str(document["text"])


def target(document: dict[str, Any]) -> str:
    """The right answer."""
    return str(document["gold"])


def scores(document: dict[str, Any], results: list[str]) -> dict[str, float]:
    """What the answer is worth, by metric."""
    metric = DATASETS[document["dataset"]].metric
    found = score(metric, results[0], document["gold"], document["choices"])
    return {"official": found.official, "strict": found.strict}
