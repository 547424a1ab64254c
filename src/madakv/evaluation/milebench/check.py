"""What is there of MileBench, and what is wrong with it, before a model is run on it for days."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from madakv.errors import InputError
from madakv.evaluation.milebench import placeholders, places
from madakv.evaluation.milebench.catalogue import DATASETS, Dataset
from madakv.evaluation.milebench.data import Annotations, BrokenSample, Question, read_annotations
from madakv.markdown import markdown_table
from madakv.pictures import open_images

_EXAMPLES = 3
COUNT = "count"
"""The kind of problem that leaves a dataset usable."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        kind: what problems are counted by.
        what: the whole of it: which sample or file, and the values seen.
    """

    kind: str
    what: str


@dataclass(frozen=True)
class DatasetReport:
    """What was found in one folder.

    Attributes:
        name: of the folder.
        dataset: None for a folder that is none of the benchmark's.
        samples: how many can be used.
        pictures: different picture files that they name.
        combined: samples whose single, combined picture comes with the data.
        problems: in the order found; empty if all is well.
    """

    name: str
    dataset: Dataset | None
    samples: int = 0
    pictures: int = 0
    combined: int = 0
    problems: tuple[Problem, ...] = ()


def check(root: Path) -> list[DatasetReport]:
    """Look at all datasets, and open every picture: minutes for the whole benchmark.

    Returns:
        A report for each dataset in the benchmark's order, then one for each folder that is none of its.

    Raises:
        InputError: `root` is no folder.
    """
    if not root.is_dir():
        raise InputError(f"no such folder: {root}; name the one that holds the datasets' folders")
    strangers = sorted(entry.name for entry in root.iterdir() if _is_stranger(entry))
    return [
        *(check_dataset(root, dataset) for dataset in DATASETS.values()),
        *(DatasetReport(name, None, problems=(Problem("unknown folder", name),)) for name in strangers),
    ]


def _is_stranger(entry: Path) -> bool:
    # Downloads leave hidden folders.
    return entry.is_dir() and entry.name not in DATASETS and not entry.name.startswith(".")


def check_dataset(root: Path, dataset: Dataset) -> DatasetReport:
    """Look at one dataset, and open its pictures as the evaluation opens them."""
    try:
        found = read_annotations(root, dataset)
        combined = read_annotations(root, dataset, combined=True)
    except InputError as error:
        there = (root / dataset.name).is_dir()
        return DatasetReport(
            dataset.name, dataset, problems=(Problem("unusable" if there else "missing", str(error)),)
        )
    questions: list[Question] = []
    problems: list[Problem] = []
    for question in found.questions(combined=False):
        if isinstance(question, BrokenSample):
            problems.append(Problem("sample", question.reason))
        else:
            questions.append(question)
            problems += _of_question(question)
    ready, combined_problems = _combined(combined)
    files = dict.fromkeys(path for question in questions for path in question.images)
    return DatasetReport(
        name=dataset.name,
        dataset=dataset,
        samples=len(questions),
        pictures=len(files),
        combined=len(ready),
        problems=(*_of_file(found), *problems, *combined_problems, *_of_pictures([*files, *ready])),
    )


def _combined(found: Annotations) -> tuple[list[Path], list[Problem]]:
    """Combined pictures that the data names, and what is wrong in combined mode only."""
    ready, problems = [], []
    known = {broken.reason for broken in found.questions(combined=False) if isinstance(broken, BrokenSample)}
    for question in found.questions(combined=True):
        if isinstance(question, Question):
            ready += [question.combined_file] if question.combined_file else []
        elif question.reason not in known:
            problems.append(Problem("combined", question.reason))
    return ready, problems


def _of_file(found: Annotations) -> Iterator[Problem]:
    expected, there = found.dataset.samples, len(found.samples)
    if there != expected:
        yield Problem(COUNT, f"{found.dataset.name}: {there} samples, but the benchmark has {expected}")
    kind = "multi-choice" if found.dataset.metric == "accuracy" else "open-ended"
    if found.question_type != kind:
        yield Problem(
            "question type", f"{found.dataset.name}: question_type is {found.question_type!r}, not {kind!r}"
        )


def _of_question(question: Question) -> Iterator[Problem]:
    where = f"{question.dataset.name}: sample {question.id}"
    pictures = len(question.images)
    # The choices too may have places; what stands where is settled on both, see `prompts`.
    text = "\n".join([question.context, *question.choices])
    named = [piece for piece in places.split(text, pictures) if isinstance(piece, int)]
    first_named = list(dict.fromkeys(named))
    unnamed = sorted(set(range(1, pictures + 1)) - set(named))
    if unnamed:
        yield Problem("picture without a place", f"{where}: number {_numbers(unnamed)} of {pictures}")
    if len(named) > len(first_named):
        again = sorted(number for number in first_named if named.count(number) > 1)
        yield Problem("picture with several places", f"{where}: number {_numbers(again)} of {pictures}")
    if first_named != sorted(first_named):
        yield Problem("places out of order", f"{where}: {_numbers(first_named)}")
    if beyond := places.beyond(text, pictures):
        yield Problem("place without a picture", f"{where}: {', '.join(beyond)}, but there are {pictures} pictures")
    if tokens := placeholders.found_in(f"{question.instruction}\n{text}"):
        yield Problem(
            "placeholder in the text", f"{where}: {', '.join(tokens)}, which some models take for a picture"
        )
    if not question.gold.strip():
        yield Problem("empty answer", f"{where}: the response is {question.gold!r}")
    elif question.dataset.metric == "accuracy" and _plain(question.gold) not in map(_plain, question.choices):
        yield Problem("answer not among choices", f"{where}: {question.gold!r} is none of {list(question.choices)!r}")


def _of_pictures(files: Sequence[Path]) -> Iterator[Problem]:
    for path in files:
        try:
            open_images([path])
        except InputError as error:
            yield Problem("broken picture" if path.is_file() else "missing picture", str(error))


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _numbers(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def markdown(reports: Sequence[DatasetReport]) -> str:
    """The reports as a Markdown table, and below it every kind of problem with its first examples."""
    head = ["dataset", "group", "metric", "samples", "pictures", "combined", "problems"]
    table = markdown_table(head, [_row(report) for report in reports], words=(0, 1, 2, 6))
    details = [line for report in reports for line in _details(report)]
    return table + ("\n" + "\n".join(details) + "\n" if details else "")


def _row(report: DatasetReport) -> list[str]:
    dataset = report.dataset
    counts = ", ".join(f"{len(found)} x {kind}" for kind, found in _by_kind(report).items())
    return [
        report.name,
        dataset.group if dataset else "",
        dataset.metric if dataset else "",
        f"{report.samples} of {dataset.samples}" if dataset else "",
        f"{report.pictures:,}" if dataset else "",
        f"{report.combined}" if dataset else "",
        counts or "none",
    ]


def _details(report: DatasetReport) -> Iterator[str]:
    for kind, found in _by_kind(report).items():
        if kind == COUNT:
            # The table says so already.
            continue
        for what in found[:_EXAMPLES]:
            yield f"- {kind}: {what}"
        if len(found) > _EXAMPLES:
            yield f"- {kind}: {report.name}: and {len(found) - _EXAMPLES} more"


def _by_kind(report: DatasetReport) -> dict[str, list[str]]:
    kinds: dict[str, list[str]] = {}
    for problem in report.problems:
        kinds.setdefault(problem.kind, []).append(problem.what)
    return kinds
