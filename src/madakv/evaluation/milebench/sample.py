"""A small, complete data set in MileBench's format, drawn and worded here: for tests, and to try the evaluation out.

Its scores say nothing about a model. Some samples have places and pictures that differ, as may happen in real data.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from madakv.errors import ConfigurationError
from madakv.evaluation.milebench.catalogue import DATASETS, Dataset
from madakv.evaluation.milebench.combine import combine
from madakv.evaluation.milebench.data import level
from madakv.evaluation.milebench.recipes import recipe

WITH_COMBINED = "IEdit"
"""The dataset that comes with combined pictures."""


def make_sample(out: Path, *, per_dataset: int = 4, seed: int = 0) -> None:
    """Write all 29 datasets; the same arguments give the same bytes, with one version of Pillow.

    Args:
        out: an empty folder, or one to be made.
        per_dataset: samples of each dataset; the first ones do not depend on it.
        seed: of all that is left to chance.

    Raises:
        ConfigurationError: `out` holds something already, or no samples are asked for.
    """
    if per_dataset < 1:
        raise ConfigurationError(f"per_dataset is {per_dataset}; a dataset has at least one sample")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigurationError(f"{out} holds something already; name an empty folder or a new one")
    for dataset in DATASETS.values():
        _write(out / dataset.name, dataset, per_dataset, seed)


def _write(folder: Path, dataset: Dataset, per_dataset: int, seed: int) -> None:
    (folder / "images").mkdir(parents=True)
    make, instructions = recipe(dataset)
    samples: list[dict[str, Any]] = []
    for number in range(per_dataset):
        draft = make(Random(f"{seed} {dataset.name} {number}"), number)
        instance: dict[str, Any] = {
            "context": draft.context,
            "images_path": _save(folder / "images", number, draft.pictures, "png"),
        }
        if draft.choices:
            instance["choice_list"] = list(draft.choices)
        if dataset.name == WITH_COMBINED:
            instance["combined_1_images"] = _save(
                folder / "combined_1_images", number, (combine(draft.pictures),), "jpg"
            )
        samples.append(
            {
                "sample_id": number,
                "task_instruction_id": number % len(instructions),
                "image_quantity_level": level(len(draft.pictures)).capitalize(),
                "task_instance": instance,
                "response": draft.gold,
            }
        )
    content = {
        "meta_data": {
            "dataset": dataset.name,
            "num_sample": per_dataset,
            "question_type": "multi-choice" if dataset.metric == "accuracy" else "open-ended",
            "task_instruction": list(instructions),
        },
        "data": samples,
    }
    (folder / f"{dataset.name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _save(folder: Path, number: int, pictures: tuple[Image.Image, ...], suffix: str) -> list[str]:
    folder.mkdir(exist_ok=True)
    names = [f"{number}-{index}.{suffix}" for index in range(len(pictures))]
    for name, picture in zip(names, pictures, strict=True):
        picture.save(folder / name)
    return names
