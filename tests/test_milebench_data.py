"""MileBench's data: the sample that is made here, and data that is broken by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from madakv.errors import ConfigurationError, InputError
from madakv.evaluation.milebench import (
    CATEGORIES,
    DATASETS,
    Prompt,
    Question,
    check,
    check_dataset,
    chosen,
    cut_left,
    make_sample,
    open_pictures,
    prompt,
    read,
    write,
)
from madakv.evaluation.milebench.check import markdown
from madakv.evaluation.milebench.combine import SIDE, combine
from madakv.evaluation.milebench.data import level
from madakv.evaluation.milebench.placeholders import found_in
from madakv.evaluation.milebench.prompts import letter
from madakv.prompts import interleave
from tests.scripts import load_script

PER_DATASET = 4
NOT_AS_BUILT = {"count"}
"""What the check says of every sample: it is smaller than the benchmark."""


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("milebench") / "data"
    make_sample(root, per_dataset=PER_DATASET)
    return root


@pytest.fixture
def broken(sample: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copies one dataset, passes its JSON content to a change, and gives the root of the copy."""

    def make(name: str, change: Callable[[dict[str, Any]], object]) -> Path:
        shutil.copytree(sample / name, tmp_path / name)
        path = tmp_path / name / f"{name}.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        return tmp_path

    return make


def asked(context: str, pictures: int = 2, *, choices: tuple[str, ...] = (), **others: Any) -> Question:
    return Question(
        dataset=others.pop("dataset", DATASETS["ALFRED"]),
        id="0",
        instruction=others.pop("instruction", "do it"),
        context=context,
        images=tuple(Path(f"{number}.png") for number in range(1, pictures + 1)),
        choices=choices,
        gold="",
        level=level(pictures),
        **others,
    )


def shown(written: Prompt) -> list[int]:
    return [int(path.stem) for path in written.images]


class Words:
    """A tokenizer of words: ids are places in a list of all that were seen."""

    def __init__(self) -> None:
        self.known: list[str] = []

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        ids = []
        for word in text.split():
            if word not in self.known:
                self.known.append(word)
            ids.append(self.known.index(word))
        return {"input_ids": ids}

    def decode(self, ids: list[int]) -> str:
        return " ".join(self.known[i] for i in ids)


def test_catalogue_is_the_benchmark() -> None:
    assert len(DATASETS) == 29
    assert sum(dataset.samples for dataset in DATASETS.values()) == 6440
    assert len({dataset.label.lower() for dataset in DATASETS.values()}) == 29
    assert {dataset.group[0] for dataset in DATASETS.values()} == set(CATEGORIES)
    by_metric = {
        metric: [d.label for d in DATASETS.values() if d.metric == metric] for metric in ("rouge_l", "needle")
    }
    assert by_metric == {"rouge_l": ["STD", "CL-CH", "IEdit", "ALFRED"], "needle": ["TN", "IN"]}


def test_datasets_are_chosen_by_label_or_folder_in_any_case() -> None:
    names = [dataset.name for dataset in chosen("cl-ch, textneedleinahaystack,TN,IEdit")]
    assert names == ["CLEVR-Change", "TextNeedleInAHaystack", "IEdit"]
    assert chosen(" All ") == list(DATASETS.values())


@pytest.mark.parametrize("names", ["TN,Nope", "", " , "])
def test_unknown_names_are_refused_with_the_known_ones(names: str) -> None:
    with pytest.raises(ConfigurationError, match=r"CL-CH \(CLEVR-Change\)"):
        chosen(names)


def test_sample_is_the_same_in_every_run(sample: Path, tmp_path: Path) -> None:
    make_sample(tmp_path / "again", per_dataset=PER_DATASET)
    files = sorted(path.relative_to(sample) for path in sample.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path / "again") for path in tmp_path.rglob("*") if path.is_file())
    for path in files:
        assert (sample / path).read_bytes() == (tmp_path / "again" / path).read_bytes(), path


def test_sample_has_all_that_the_benchmark_has(sample: Path) -> None:
    questions = [question for dataset in DATASETS.values() for question in read(sample, dataset)]
    assert len(questions) == 29 * PER_DATASET
    assert {question.level for question in questions} == {"few", "medium", "many"}
    assert {bool(question.choices) for question in questions} == {True, False}
    assert all(bool(question.choices) == (question.dataset.metric == "accuracy") for question in questions)
    assert all(question.gold in question.choices for question in questions if question.choices)
    sizes = {image.size for question in questions[:20] for image in open_pictures(question)}
    assert len(sizes) > 5
    assert {side for size in sizes for side in size} <= set(range(64, 129))


def test_sample_is_not_written_over_something(sample: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds something already"):
        make_sample(sample)
    with pytest.raises(ConfigurationError, match="per_dataset is 0"):
        make_sample(sample / "new", per_dataset=0)


def test_needles_are_where_they_should_be(sample: Path) -> None:
    for question in read(sample, DATASETS["TextNeedleInAHaystack"]):
        assert question.context.count(question.gold) == 1
    for question in read(sample, DATASETS["ImageNeedleInAHaystack"]):
        assert question.gold not in question.context


@pytest.mark.parametrize("combined", [False, True])
@pytest.mark.parametrize("name", DATASETS)
def test_every_prompt_has_as_many_marks_as_pictures(sample: Path, name: str, combined: bool) -> None:
    for question in read(sample, DATASETS[name], combined=combined)[:2]:
        text, images = prompt(question), open_pictures(question)
        assert text.count("<image>") == len(images) == (1 if combined else len(question.images))
        assert sum(not isinstance(part, str) for part in interleave(text, images)) == len(images)


def test_prompt_is_instruction_context_and_choices() -> None:
    written = write(asked("{image#1}See {image#2} now?", choices=("x", "y y"), dataset=DATASETS["TQA"]))
    assert written.text == "do it\n<image>See <image> now?\nChoice list: \nA. x\nB. y y\nYour answer is: "
    assert shown(written) == [1, 2]


def test_gpr_choices_have_no_letters() -> None:
    text = prompt(asked("{image#1}{image#2}", choices=("x", "y"), dataset=DATASETS["GPR1200"]))
    assert text.endswith("\nChoice list: \nx\ny\nYour answer is: ")


def test_letters_go_on_after_z() -> None:
    assert [letter(i) for i in (0, 25, 26, 27, 52)] == ["A", "Z", "AA", "AB", "BA"]


@pytest.mark.parametrize(
    ("context", "pictures", "text", "order"),
    [
        ("{table#1} a {image#2} b", 2, "<image> a <image> b", [1, 2]),
        ("{image#2} a {image#1}", 2, "<image> a <image>", [2, 1]),
        ("{image#2} a", 3, "<image><image><image> a", [1, 3, 2]),
        ("{image#1} a {image#1} b {table#1}", 1, "<image> a <Image 1> b <Image 1>", [1]),
        ("{image#1} a {image#2} {image#0} {image#01}", 1, "<image> a {image#2} {image#0} {image#01}", [1]),
        ("no place", 2, "<image><image>no place", [1, 2]),
        ("{image#12}{image#1}", 1, "{image#12}<image>", [1]),
    ],
)
def test_no_picture_is_lost_or_shown_twice(context: str, pictures: int, text: str, order: list[int]) -> None:
    written = write(asked(context, pictures))
    assert written.text == f"do it\n{text}"
    assert shown(written) == order


def test_places_in_choices_are_places() -> None:
    written = write(asked("{image#1}?", choices=("it is {image#2}", "none"), dataset=DATASETS["TQA"]))
    assert "A. it is <image>\nB. none" in written.text
    assert shown(written) == [1, 2]


def test_marks_in_the_data_are_no_marks() -> None:
    question = asked("a <image> {image#1} <ima{image#1}ge>", 1, choices=("<image>",), instruction="see <image>")
    text = prompt(question)
    assert text.count("<image>") == 1
    assert text.startswith("see <Image>\na <Image> <image> <ima<Image 1>ge>")
    assert "A. <Image>\n" in text


def test_combined_prompt_names_the_captions() -> None:
    question = asked("{image#2} and {table#1} and {image#3}", combined=True)
    written = write(question)
    assert written.text == "<image>\ndo it\n<Image 2>  and <Image 1>  and {image#3}"
    assert written.combine
    assert shown(written) == [1, 2]


def test_combined_pictures_come_with_the_data_or_are_made(sample: Path) -> None:
    ready = read(sample, DATASETS["IEdit"], combined=True)[0]
    assert ready.combined_file == sample / "IEdit" / "combined_1_images" / "0-0.jpg"
    assert not write(ready).combine
    made = read(sample, DATASETS["ALFRED"], combined=True)[0]
    assert made.combined_file is None
    assert made.level == "medium"
    assert [image.size for image in open_pictures(made)] == [(3 * SIDE, 3 * SIDE)]
    assert [image.size for image in open_pictures(ready)] == [(2 * SIDE, SIDE)]


def test_combined_pictures_without_their_folder_are_made(broken: Callable[..., Path]) -> None:
    root = broken("IEdit", lambda content: None)
    shutil.rmtree(root / "IEdit" / "combined_1_images")
    question = read(root, DATASETS["IEdit"], combined=True)[0]
    assert write(question).combine
    assert open_pictures(question)[0].size == (2 * SIDE, SIDE)


def test_combined_annotations_have_a_file_of_their_own(broken: Callable[..., Path]) -> None:
    root = broken("IEdit", lambda content: None)
    path = root / "IEdit" / "IEdit.json"
    path.rename(root / "IEdit" / "IEdit_combined_1.json")
    content = json.loads((root / "IEdit" / "IEdit_combined_1.json").read_text())
    for one in content["data"]:
        one["response"] = "plain"
        del one["task_instance"]["combined_1_images"]
    path.write_text(json.dumps(content))
    combined, plain = (read(root, DATASETS["IEdit"], combined=mode) for mode in (True, False))
    assert all(question.combined_file and question.gold != "plain" for question in combined)
    assert all(question.combined_file is None and question.gold == "plain" for question in plain)


def test_combine_puts_pictures_row_by_row_with_captions() -> None:
    colours = ["red", "green", "blue", "yellow", "white"]
    grid = combine([Image.new("RGB", (30 + i, 20), colour) for i, colour in enumerate(colours)])
    assert grid.size == (3 * SIDE, 2 * SIDE)
    seen = [grid.getpixel(((i % 3) * SIDE + 10, (i // 3) * SIDE + 10)) for i in range(6)]
    assert seen == [(255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 255, 0), (255, 255, 255), (0, 0, 0)]
    for (column, row), colour in {(2, 0): (0, 0, 255), (0, 1): (255, 255, 0)}.items():
        below = (row + 1) * SIDE
        caption = grid.crop((column * SIDE, below - 60, (column + 1) * SIDE, below))
        found = {pixel: count for count, pixel in caption.getcolors(100_000) or []}
        assert found.get((0, 0, 0), 0) > 1000
        assert found.get((255, 255, 255), 0) > 200
        assert found[colour] > 20_000
    with pytest.raises(InputError, match="no picture to combine"):
        combine([])


def test_transparent_pictures_are_white_in_a_grid() -> None:
    assert combine([Image.new("RGBA", (4, 4), (0, 0, 0, 0))]).getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("room", "text", "left"),
    [
        (100, "<image>a b c<image>d e", [1, 2]),
        (27, "<image>a b c<image>d e", [1, 2]),
        (26, "a b c<image>d e", [2]),
        (17, "a b c<image>d e", [2]),
        (16, "<image>d e", [2]),
        (14, "<image>d e", [2]),
        (13, "d e", []),
        (4, "d e", []),
        (3, "e", []),
    ],
)
def test_cut_keeps_the_longest_end_of_whole_pieces(room: int, text: str, left: list[int]) -> None:
    # The instruction has two words, and a picture counts ten.
    cut = cut_left(asked("{image#1}a b c{image#2}d e"), Words(), max_context_len=room, tokens_per_image=10)
    assert cut.text == f"do it\n{text}"
    assert shown(cut) == left


def test_cut_drops_a_text_behind_which_something_stands() -> None:
    cut = cut_left(asked("a b c d{image#1}", 1), Words(), max_context_len=14, tokens_per_image=10)
    assert cut.text == "do it\n<image>"


def test_cut_counts_the_choices_and_keeps_their_end() -> None:
    question = asked("{image#1} which one?", 1, choices=("x", "y"), dataset=DATASETS["TQA"])
    cut = cut_left(question, Words(), max_context_len=7)
    assert cut.text == "do it\nB. y Your answer is:"
    assert cut.images == ()


def test_cut_of_a_combined_question_keeps_its_picture() -> None:
    cut = cut_left(asked("a b c {image#1} d", combined=True), Words(), max_context_len=5)
    assert cut.text == "<image>\ndo it\n<Image 1> d"
    assert cut.combine
    assert shown(cut) == [1, 2]


def test_cut_makes_no_marks() -> None:
    class Lower(Words):
        def decode(self, ids: list[int]) -> str:
            return "\N{REPLACEMENT CHARACTER}" + super().decode(ids).lower()

    cut = cut_left(asked("a b <image> c", 0), Lower(), max_context_len=4)
    assert cut.text == "do it\n<Image> c"


def test_cut_refuses_what_leaves_nothing() -> None:
    with pytest.raises(InputError, match="the instruction has 2 tokens.*max_context_len=2"):
        cut_left(asked("a"), Words(), max_context_len=2)
    with pytest.raises(ConfigurationError, match="tokens_per_image is 0"):
        cut_left(asked("a"), Words(), max_context_len=9, tokens_per_image=0)


@pytest.mark.parametrize(
    ("pictures", "expected"), [(2, "few"), (5, "few"), (6, "medium"), (31, "medium"), (32, "many")]
)
def test_levels(pictures: int, expected: str) -> None:
    assert level(pictures) == expected


def test_missing_folder_and_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ALFRED: no such folder"):
        read(tmp_path, DATASETS["ALFRED"])
    (tmp_path / "ALFRED").mkdir()
    with pytest.raises(InputError, match="ALFRED: no such file: .*ALFRED.json"):
        read(tmp_path, DATASETS["ALFRED"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"meta_data": ', "not readable as JSON"),
        ("[]", "a JSON object was expected"),
        ('{"meta_data": {}, "data": []}', "meta_data: no task_instruction"),
        ('{"meta_data": {"task_instruction": [1]}, "data": []}', "must be a list of text"),
        ('{"meta_data": {"task_instruction": []}}', "ALFRED.json: no data"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "ALFRED").mkdir()
    (tmp_path / "ALFRED" / "ALFRED.json").write_text(text)
    with pytest.raises(InputError, match=f"ALFRED: .*{said}|ALFRED: {said}"):
        read(tmp_path, DATASETS["ALFRED"])


def _without(*keys: str) -> Callable[[dict[str, Any]], object]:
    def change(content: dict[str, Any]) -> None:
        holder = content["data"][1]
        for key in keys[:-1]:
            holder = holder[key]
        del holder[keys[-1]]

    return change


def _with(value: object, *keys: str) -> Callable[[dict[str, Any]], object]:
    def change(content: dict[str, Any]) -> None:
        holder = content["data"][1]
        for key in keys[:-1]:
            holder = holder[key]
        holder[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_without("sample_id"), "sample at place 1: no sample_id"),
        (_with(0, "sample_id"), "sample id 0 occurs twice"),
        (_without("task_instance"), "sample 1: no task_instance"),
        (_without("task_instance", "context"), "sample 1: no context"),
        (_without("task_instance", "images_path"), "sample 1: no images_path"),
        (_with([], "task_instance", "images_path"), "sample 1: images_path must be a list of at least one"),
        (_with([1], "task_instance", "images_path"), "sample 1: images_path must be a list of at least one"),
        (_without("task_instance", "choice_list"), "sample 1: no choice_list, but TQA is multiple choice"),
        (_with([], "task_instance", "choice_list"), "sample 1: no choice_list, but TQA is multiple choice"),
        (_with(9, "task_instruction_id"), "sample 1: task_instruction_id is 9, but there are 2"),
        (_with(-1, "task_instruction_id"), "sample 1: task_instruction_id is -1"),
        (_with(True, "task_instruction_id"), "sample 1: task_instruction_id must be int, not True"),
        (_without("response"), "sample 1: no response"),
        (_with(None, "response"), "sample 1: response must be str or int or float, not None"),
        (_with(float("nan"), "response"), "sample 1: response must be text or a finite number, not nan"),
    ],
)
def test_broken_samples_are_named(
    broken: Callable[..., Path], change: Callable[[dict[str, Any]], object], said: str
) -> None:
    root = broken("TQA", change)
    with pytest.raises(InputError, match=f"TQA: {said}"):
        read(root, DATASETS["TQA"])
    report = check_dataset(root, DATASETS["TQA"])
    assert [problem.kind for problem in report.problems] == ["count", "sample"]
    assert report.samples == PER_DATASET - 1


def test_numbers_become_text(broken: Callable[..., Path]) -> None:
    root = broken("TQA", lambda c: (_with(3, "response")(c), _with([3, 4.5], "task_instance", "choice_list")(c)))
    question = read(root, DATASETS["TQA"])[1]
    assert (question.gold, question.choices) == ("3", ("3", "4.5"))


def test_check_of_the_sample_finds_only_what_is_meant(sample: Path) -> None:
    reports = {report.name: report for report in check(sample)}
    assert list(reports) == list(DATASETS)
    found = {name: {p.kind for p in report.problems} - NOT_AS_BUILT for name, report in reports.items()}
    assert {name: kinds for name, kinds in found.items() if kinds} == {
        "MultiModalQA": {"picture without a place"},
        "MMCoQA": {
            "picture without a place",
            "picture with several places",
            "place without a picture",
            "places out of order",
        },
    }
    assert {report.samples for report in reports.values()} == {PER_DATASET}
    assert (reports["IEdit"].pictures, reports["IEdit"].combined, reports["ALFRED"].combined) == (8, 4, 0)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (_with("Nobody", "response"), "answer not among choices"),
        (_with(" ", "response"), "empty answer"),
        (_with("{image#1}{image#2}{image#3} a <|image_pad|>", "task_instance", "context"), "placeholder in the text"),
        (lambda content: content["meta_data"].update(question_type="open-ended"), "question type"),
        (_with(["1-0.png", "1-1.png", "gone.png"], "task_instance", "images_path"), "missing picture"),
        (_with("{image#1}{image#2}{image#3}{image#4}", "task_instance", "context"), "place without a picture"),
    ],
)
def test_check_finds(broken: Callable[..., Path], change: Callable[[dict[str, Any]], object], kind: str) -> None:
    report = check_dataset(broken("TQA", change), DATASETS["TQA"])
    assert [problem.kind for problem in report.problems if problem.kind not in NOT_AS_BUILT] == [kind]


def test_placeholders_of_many_families_are_known() -> None:
    """As transformers' processors write them."""
    tokens = (
        *("<video>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|image|>", "<|AUDIO|>"),
        *("<IMG_CONTEXT>", "<image_soft_token>", "[IMG]", "<|IMG_PATCH|>", "<|IMAGE_PLACEHOLDER|>", "<imgpad>"),
    )
    for token in tokens:
        assert found_in(f"look at{token}and {token}") == [token]
    assert found_in("an <image>, a <b> c, a < |b| > c, <||>, [1], {image#1}, <Image 1>") == []


def test_check_finds_broken_pictures_missing_datasets_and_strangers(broken: Callable[..., Path]) -> None:
    root = broken("IEdit", lambda content: None)
    picture = root / "IEdit" / "images" / "0-0.png"
    picture.write_bytes(picture.read_bytes()[:-60])
    (root / "IEdit" / "combined_1_images" / "1-0.jpg").unlink()
    (root / "Elsewhere").mkdir()
    reports = {report.name: report for report in check(root)}
    kinds = [problem.kind for problem in reports["IEdit"].problems]
    assert kinds == ["count", "broken picture", "missing picture"]
    assert [problem.kind for problem in reports["TQA"].problems] == ["missing"]
    assert [problem.kind for problem in reports["Elsewhere"].problems] == ["unknown folder"]
    assert reports["Elsewhere"].dataset is None
    table = markdown(list(reports.values()))
    assert (
        "| IEdit | S-3 | rouge_l | 4 of 200 | 8 | 4 | 1 x count, 1 x broken picture, 1 x missing picture |" in table
    )
    assert "0-0.png" in table
    with pytest.raises(InputError, match="no such folder"):
        check(root / "nowhere")


def test_check_says_what_is_wrong_in_combined_mode_only(broken: Callable[..., Path]) -> None:
    root = broken("IEdit", _with(["1-0.jpg", "2-0.jpg"], "task_instance", "combined_1_images"))
    report = check_dataset(root, DATASETS["IEdit"])
    assert [problem.kind for problem in report.problems] == ["count", "combined"]
    with pytest.raises(InputError, match="sample 1: combined_1_images must name one picture"):
        read(root, DATASETS["IEdit"], combined=True)


def test_long_lists_of_problems_are_cut_in_the_table(broken: Callable[..., Path]) -> None:
    def change(content: dict[str, Any]) -> None:
        for one in content["data"]:
            one["response"] = "Nobody"

    table = markdown([check_dataset(broken("TQA", change), DATASETS["TQA"])])
    assert table.count("Nobody") == 3
    assert "- answer not among choices: TQA: and 1 more" in table


def test_missing_picture_is_named_when_opened(broken: Callable[..., Path]) -> None:
    root = broken("TQA", lambda content: None)
    (root / "TQA" / "images" / "0-1.png").unlink()
    with pytest.raises(InputError, match="no such image file: .*0-1.png"):
        open_pictures(read(root, DATASETS["TQA"])[0])


def test_script_writes_a_sample(tmp_path: Path) -> None:
    module = load_script("make_milebench_sample")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["make_milebench_sample.py", "--out", str(tmp_path / "new"), "--per-dataset", "1"])
        assert module.main() == 0
        assert module.main() == 1
    assert len(read(tmp_path / "new", DATASETS["TQA"])) == 1
