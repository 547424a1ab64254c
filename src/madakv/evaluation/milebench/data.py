"""MileBench as it lies on disk: `<root>/<dataset>/<dataset>.json` and the pictures beside it, read into questions.

Pictures are named here and opened later (`pictures.open_pictures`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from madakv.errors import InputError
from madakv.evaluation.milebench.catalogue import Dataset

Level = Literal["few", "medium", "many"]

_COMBINED = "combined_1_images"


@dataclass(frozen=True)
class Question:
    """One sample of the benchmark.

    Attributes:
        dataset: where it comes from.
        id: unique within its dataset.
        instruction: what the task is; one of several that a dataset words.
        context: text with places such as `{image#1}`, the question at its end.
        images: picture files in the data's order; the first one is `{image#1}`.
        choices: options of a multiple choice, without letters; empty if the answer is free.
        gold: the right answer; of a multiple choice, the option's text.
        level: by the number of `images`, also where they are shown as one picture.
        combined: whether all pictures are shown as a single one.
        combined_file: that single picture, where the data has it; otherwise it is made of `images`.
    """

    dataset: Dataset
    id: str
    instruction: str
    context: str
    images: tuple[Path, ...]
    choices: tuple[str, ...]
    gold: str
    level: Level
    combined: bool = False
    combined_file: Path | None = None


@dataclass(frozen=True)
class BrokenSample:
    """A sample that cannot be used.

    Attributes:
        id: its own, where it has one that no other sample has; else `at place` and where it stands.
        reason: what is wrong, dataset and sample named.
    """

    id: str
    reason: str


@dataclass(frozen=True)
class Annotations:
    """A dataset's JSON file, its samples not yet looked at.

    Attributes:
        dataset: what it should hold.
        folder: of the file.
        instructions: the wordings of the task.
        question_type: `multi-choice` or `open-ended`; the data's own word, which nothing depends on.
        samples: as they stand in the file.
    """

    dataset: Dataset
    folder: Path
    instructions: tuple[str, ...]
    question_type: str
    samples: tuple[Any, ...]

    def questions(self, *, combined: bool) -> Iterator[Question | BrokenSample]:
        """Every sample in order, whether it can be used or not."""
        seen: set[str] = set()
        for number, sample in enumerate(self.samples):
            id_ = f"at place {number}"
            try:
                own = str(_field(sample, "sample_id", (int, str), f"{self.dataset.name}: sample {id_}"))
                if own in seen:
                    raise InputError(f"{self.dataset.name}: sample id {own} occurs twice; ids must differ")
                id_ = own
                seen.add(own)
                yield _question(self, id_, sample, combined)
            except InputError as error:
                yield BrokenSample(id_, str(error))


def read(root: Path, dataset: Dataset, *, combined: bool = False) -> list[Question]:
    """All questions of a dataset.

    Args:
        root: the folder that holds the datasets' folders.
        dataset: which one.
        combined: show every question's pictures as a single one: the file under `combined_1_images` where that folder
            is there and the sample names one, otherwise one made of the pictures when it is opened.

    Raises:
        InputError: no such folder or file, broken JSON, a sample that lacks what it needs, or two of one id.
    """
    questions = []
    for question in read_annotations(root, dataset, combined=combined).questions(combined=combined):
        if isinstance(question, BrokenSample):
            raise InputError(question.reason)
        questions.append(question)
    return questions


def read_annotations(root: Path, dataset: Dataset, *, combined: bool = False) -> Annotations:
    """Read a dataset's JSON file; with `combined`, `<dataset>_combined_1.json` if it is there.

    Raises:
        InputError: no such folder or file, or one that does not hold what it should.
    """
    folder = root / dataset.name
    if not folder.is_dir():
        raise InputError(f"{dataset.name}: no such folder: {folder}; unpack MileBench's archives into {root}")
    path = folder / f"{dataset.name}.json"
    if combined and (folder / f"{dataset.name}_combined_1.json").is_file():
        path = folder / f"{dataset.name}_combined_1.json"
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{dataset.name}: no such file: {path}; unpack MileBench's archives into {root}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{dataset.name}: not readable as JSON: {path} ({error}); download it again") from error
    meta = _field(content, "meta_data", dict, f"{dataset.name}: {path.name}")
    instructions = _field(meta, "task_instruction", list, f"{dataset.name}: meta_data")
    if not all(isinstance(text, str) for text in instructions):
        raise InputError(f"{dataset.name}: meta_data: task_instruction must be a list of text")
    return Annotations(
        dataset=dataset,
        folder=folder,
        instructions=tuple(instructions),
        question_type=str(meta.get("question_type", "")),
        samples=tuple(_field(content, "data", list, f"{dataset.name}: {path.name}")),
    )


def level(images: int) -> Level:
    """The benchmark's level of a sample with so many pictures: under 6, 6 to 31, over 31."""
    if images < 6:
        return "few"
    return "medium" if images <= 31 else "many"


def _question(source: Annotations, id_: str, sample: Any, combined: bool) -> Question:
    where = f"{source.dataset.name}: sample {id_}"
    instance = _field(sample, "task_instance", dict, where)
    instruction = _field(sample, "task_instruction_id", int, where)
    if not 0 <= instruction < len(source.instructions):
        raise InputError(
            f"{where}: task_instruction_id is {instruction}, but there are {len(source.instructions)} instructions"
        )
    names = _field(instance, "images_path", list, where)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise InputError(f"{where}: images_path must be a list of at least one file name, not {names!r:.80}")
    choices = _field(instance, "choice_list", list, where) if "choice_list" in instance else []
    if source.dataset.metric == "accuracy" and not choices:
        raise InputError(f"{where}: no choice_list, but {source.dataset.name} is multiple choice")
    return Question(
        dataset=source.dataset,
        id=id_,
        instruction=source.instructions[instruction],
        context=_field(instance, "context", str, where),
        images=tuple(source.folder / "images" / name for name in names),
        choices=tuple(str(choice) for choice in choices),
        gold=str(_field(sample, "response", (str, int, float), where)),
        level=level(len(names)),
        combined=combined,
        combined_file=_combined_file(source.folder, instance, where) if combined else None,
    )


def _combined_file(folder: Path, instance: dict[str, Any], where: str) -> Path | None:
    if _COMBINED not in instance or not (folder / _COMBINED).is_dir():
        return None
    names = _field(instance, _COMBINED, list, where)
    if len(names) != 1 or not isinstance(names[0], str) or not names[0]:
        raise InputError(f"{where}: {_COMBINED} must name one picture, not {names!r:.80}")
    return folder / _COMBINED / names[0]


def _field(holder: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """What stands under a key.

    Raises:
        InputError: `holder` is no JSON object, the key is missing, or its value is of another kind.
    """
    if not isinstance(holder, dict):
        raise InputError(f"{where}: a JSON object was expected, not {holder!r:.80}")
    if key not in holder:
        raise InputError(f"{where}: no {key}")
    value = holder[key]
    # JSON's true and false are ints in Python, but not in the data.
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        expected = " or ".join(one.__name__ for one in kinds)
        raise InputError(f"{where}: {key} must be {expected}, not {value!r:.80}")
    if isinstance(value, float) and not math.isfinite(value):
        # JSON has no such numbers, but Python writes and reads them.
        raise InputError(f"{where}: {key} must be text or a finite number, not {value!r}")
    return value
