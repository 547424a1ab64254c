"""What the lmms-eval model makes of messages and settings; lmms-eval itself is not needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from madakv import bundled
from madakv.errors import InputError
from madakv.evaluation.milebench.catalogue import DATASETS
from madakv.integrations.lmms_eval import tasks_folder
from madakv.integrations.lmms_eval.generation import cut, options_of
from madakv.integrations.lmms_eval.messages import inputs_of
from madakv.prompts import model_inputs


@pytest.fixture(scope="module")
def processor() -> Any:
    return bundled.load()[1]


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def image(given: Any) -> dict[str, Any]:
    return {"type": "image", "url": given}


def user(*content: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(content)}]


def same(ours: Any, theirs: Any) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def pictures() -> list[Image.Image]:
    return list(bundled.sample().images[:2])


def test_pictures_stay_where_they_stand(processor: Any) -> None:
    first, second = pictures()
    got = inputs_of(processor, user(text("code n1"), image(first), text("owner"), image(second), text("? code")))
    assert same(got, model_inputs(processor, "code n1<image>owner<image>? code", [first, second]))
    turned = inputs_of(processor, user(text("code n1"), image(second), text("owner"), image(first), text("? code")))
    assert not same(got, turned)


def test_marks_of_a_text_behind_all_pictures_are_their_places(processor: Any) -> None:
    first, second = pictures()
    got = inputs_of(processor, user(image(first), image(second), text("code <image> owner <image> ?")))
    assert same(got, model_inputs(processor, "code <image> owner <image> ?", [first, second]))


def test_marks_that_no_picture_belongs_to_are_refused(processor: Any) -> None:
    first, second = pictures()
    for content in (
        [text("code <image>")],
        [image(first), image(second), text("code <image>")],
        [text("code <image>"), image(first)],
    ):
        with pytest.raises(InputError, match="marks of its own"):
            inputs_of(processor, user(*content))


def test_a_picture_may_be_a_file(processor: Any, tmp_path: Path) -> None:
    first, _ = pictures()
    first.save(tmp_path / "first.png")
    assert same(
        inputs_of(processor, user(image(str(tmp_path / "first.png")), text("code"))),
        inputs_of(processor, user(image(first), text("code"))),
    )


def test_a_system_message_stands_before_the_user(processor: Any) -> None:
    first, _ = pictures()
    messages = [{"role": "system", "content": "of the house"}, *user(text("code"), image(first), text("?"))]
    got = inputs_of(processor, messages)
    assert same(got, model_inputs(processor, "of the house code <image> ?", [first]))


def test_a_tokenizer_alone_takes_text_and_no_pictures(processor: Any) -> None:
    tokenizer = processor.tokenizer
    got = inputs_of(tokenizer, user(text("code "), text("n1")))
    assert got["input_ids"].tolist() == model_inputs(tokenizer, "code n1", [])["input_ids"].tolist()
    with pytest.raises(InputError, match="text only"):
        inputs_of(tokenizer, user(image(pictures()[0])))


def test_what_is_no_picture_is_refused_by_name(processor: Any) -> None:
    with pytest.raises(InputError, match="holds video"):
        inputs_of(processor, user({"type": "video", "url": "clip.mp4"}))
    with pytest.raises(InputError, match="got dict"):
        inputs_of(processor, user(image({"bytes": b""})))
    with pytest.raises(InputError, match="no such image file"):
        inputs_of(processor, user(image("missing.png")))


@pytest.mark.parametrize(
    ("settings", "sampled"),
    [
        ({}, None),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.9}, None),
        ({"do_sample": True, "temperature": 0}, None),
        ({"temperature": 0.0, "top_p": 1.0}, None),
        ({"do_sample": True}, {}),
        ({"temperature": 0.2, "top_p": 0, "top_k": None}, {"temperature": 0.2}),
        (
            {"do_sample": True, "temperature": 1, "top_p": 0.9, "top_k": 5},
            {"temperature": 1, "top_p": 0.9, "top_k": 5},
        ),
    ],
)
def test_sampling_takes_a_temperature(settings: dict[str, Any], sampled: dict[str, Any] | None) -> None:
    expected = {"max_new_tokens": 1024, "num_beams": 1, "do_sample": sampled is not None, **(sampled or {})}
    assert options_of(settings) == expected


def test_settings_are_handed_on_and_unknown_ones_are_named() -> None:
    with pytest.warns(UserWarning, match="leaves out: image_aspect_ratio"):
        got = options_of(
            {"max_new_tokens": 16, "num_beams": 3, "repetition_penalty": 1.2, "image_aspect_ratio": "pad"}
        )
    assert got == {"max_new_tokens": 16, "num_beams": 3, "do_sample": False, "repetition_penalty": 1.2}


@pytest.mark.parametrize(
    ("until", "left"),
    [(None, "a\n\nb. c"), (["\n\n", ""], "a\n\nb. c"), ("\n", "a"), (["c", "b"], "a\n\n"), (["b", "c"], "a\n\n")],
)
def test_an_answer_ends_at_its_first_stop_but_not_at_an_empty_line(until: Any, left: str) -> None:
    assert cut("a\n\nb. c", until) == left


class _Loader(yaml.SafeLoader):
    """Reads task files without importing what they call."""


_Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def test_every_dataset_of_milebench_has_its_task_file() -> None:
    folder = tasks_folder() / "milebench"
    files = {path.stem: yaml.load(path.read_text(), _Loader) for path in folder.glob("*.yaml")}
    template, group = files.pop("_template"), files.pop("milebench")
    assert {task["dataset_name"]: task["task_alias"] for task in files.values()} == {
        name: dataset.label for name, dataset in DATASETS.items()
    }
    for stem, task in files.items():
        assert task["task"] == f"milebench_{stem}"
        assert stem == task["dataset_name"].lower().replace("-", "_")
        letter = DATASETS[task["dataset_name"]].group[0]
        kinds = {"T": "temporal", "S": "semantic", "N": "needle", "I": "retrieval"}
        assert task["tag"] == f"milebench_{kinds[letter]}"
        assert task["include"] == "_template.yaml"
    assert group["task"] == [f"milebench_{name.lower().replace('-', '_')}" for name in DATASETS]
    assert (folder / template["dataset_kwargs"]["data_files"]["test"]).is_file()
