"""The 29 datasets of MileBench (arXiv 2404.18532): their folders, groups, metrics and sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from madakv.errors import ConfigurationError

Metric = Literal["accuracy", "rouge_l", "needle", "contains"]
"""Multiple choice, ROUGE-L F, the gold as one word of the answer, or the gold anywhere in the answer."""

CATEGORIES: Mapping[str, str] = MappingProxyType(
    {"T": "temporal", "S": "semantic", "N": "needle in a haystack", "I": "image retrieval"}
)
"""What the letter of a dataset's group stands for."""


@dataclass(frozen=True)
class Dataset:
    """One dataset of the benchmark.

    Attributes:
        name: of its folder, and of the JSON file in it.
        group: task group, `T-1` to `I-1`; its letter is a key of `CATEGORIES`.
        metric: how answers are scored.
        samples: how many the benchmark has.
        label: the short name in tables.
    """

    name: str
    group: str
    metric: Metric
    samples: int
    label: str


_ALL = (
    Dataset("ActionLocalization", "T-1", "accuracy", 200, "AL"),
    Dataset("ActionPrediction", "T-1", "accuracy", 200, "AP"),
    Dataset("ActionSequence", "T-1", "accuracy", 200, "AS"),
    Dataset("MovingAttribute", "T-2", "accuracy", 200, "MA"),
    Dataset("ObjectExistence", "T-2", "accuracy", 200, "OE"),
    Dataset("ObjectInteraction", "T-2", "accuracy", 200, "OI"),
    Dataset("ObjectShuffle", "T-2", "accuracy", 200, "OS"),
    Dataset("EgocentricNavigation", "T-3", "accuracy", 200, "EN"),
    Dataset("MovingDirection", "T-3", "accuracy", 200, "MD"),
    Dataset("CharacterOrder", "T-4", "accuracy", 200, "CO"),
    Dataset("CounterfactualInference", "T-4", "accuracy", 200, "CI"),
    Dataset("SceneTransition", "T-4", "accuracy", 200, "ST"),
    Dataset("StateChange", "T-4", "accuracy", 200, "SC"),
    Dataset("WebQA", "S-1", "accuracy", 200, "WebQA"),
    Dataset("MultiModalQA", "S-1", "accuracy", 200, "MMQA"),
    Dataset("TQA", "S-1", "accuracy", 200, "TQA"),
    Dataset("WikiVQA", "S-1", "accuracy", 200, "WikiVQA"),
    Dataset("DocVQA", "S-2", "accuracy", 200, "DocVQA"),
    Dataset("OCR-VQA", "S-2", "accuracy", 200, "OCR-VQA"),
    Dataset("SlideVQA", "S-2", "accuracy", 200, "SlideVQA"),
    Dataset("Spot-the-Diff", "S-3", "rouge_l", 200, "STD"),
    Dataset("CLEVR-Change", "S-3", "rouge_l", 200, "CL-CH"),
    Dataset("IEdit", "S-3", "rouge_l", 200, "IEdit"),
    Dataset("ALFRED", "S-4", "rouge_l", 200, "ALFRED"),
    Dataset("MMCoQA", "S-4", "contains", 200, "MMCoQA"),
    Dataset("nuscenes", "S-5", "accuracy", 200, "nuScenes"),
    Dataset("TextNeedleInAHaystack", "N-1", "needle", 320, "TN"),
    Dataset("ImageNeedleInAHaystack", "N-2", "needle", 320, "IN"),
    Dataset("GPR1200", "I-1", "accuracy", 600, "GPR"),
)

DATASETS: Mapping[str, Dataset] = MappingProxyType({dataset.name: dataset for dataset in _ALL})
"""All datasets by folder name, in the benchmark's order."""


def chosen(names: str) -> list[Dataset]:
    """The datasets that a list names.

    Args:
        names: labels or folder names separated by commas, upper or lower case; or `all`.

    Returns:
        Each dataset once, in the order of the list; all of them in the benchmark's order.

    Raises:
        ConfigurationError: a name that is none, or no name at all.
    """
    if names.strip().lower() == "all":
        return list(_ALL)
    by_name = {name.lower(): dataset for dataset in _ALL for name in (dataset.name, dataset.label)}
    asked = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in asked if name.lower() not in by_name]
    if unknown or not asked:
        known = ", ".join(_both_names(dataset) for dataset in _ALL)
        wrong = f"unknown MileBench dataset: {', '.join(unknown)}" if unknown else "no MileBench dataset was named"
        raise ConfigurationError(f"{wrong}; give all, or some of {known}")
    return list(dict.fromkeys(by_name[name.lower()] for name in asked))


def _both_names(dataset: Dataset) -> str:
    same = dataset.label.lower() == dataset.name.lower()
    return dataset.name if same else f"{dataset.label} ({dataset.name})"
