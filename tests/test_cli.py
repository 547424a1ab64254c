"""The command line as a user meets it: real processes' worth of parsing, on the bundled model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import madakv
from madakv import bundled
from madakv.cli.app import app
from madakv.cli.evaluate import expand
from madakv.cli.generate import parse_budget
from madakv.evaluation.milebench import make_sample
from madakv.pictures import as_rgb, open_images
from madakv.prompts import interleave, model_inputs
from tests import tiny


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def as_json(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    parsed: dict[str, Any] = json.loads(result.stdout)
    return parsed


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    paths = []
    for number, image in enumerate(bundled.sample().images[:3]):
        paths.append(str(tmp_path / f"{number}.png"))
        image.save(paths[-1])
    return paths


def images(paths: list[str]) -> list[str]:
    return [word for path in paths for word in ("--image", path)]


def test_json_has_every_field_and_adds_up() -> None:
    got = as_json("generate", "--budget", "0.2", "--compare")
    assert list(got) == [
        "answer",
        "answer_full",
        "prompt_tokens",
        "kept",
        "kept_share",
        "kv_bytes",
        "kv_bytes_full",
        "prefill_s",
        "decode_ms",
        "prefill_s_full",
        "decode_ms_full",
        "method",
    ]
    expected = bundled.sample().demo.answer
    assert got["answer"] == got["answer_full"] == expected
    tokens = sum(got["prompt_tokens"].values())
    assert got["prompt_tokens"]["image"] == 12 * 16
    assert tokens >= 300
    assert got["kept_share"] == pytest.approx(int(0.2 * tokens) / tokens)
    assert sum(got["kept"].values()) == pytest.approx(int(0.2 * tokens), abs=0.02)
    assert got["kv_bytes"] <= 0.21 * got["kv_bytes_full"]
    assert min(got[name] for name in ("prefill_s", "decode_ms", "prefill_s_full", "decode_ms_full")) > 0
    assert eval(got["method"], {"MadaKV": madakv.MadaKV}).budget == 0.2


def test_without_compare_the_full_fields_are_null() -> None:
    got = as_json("generate", "--method", "full")
    assert got["answer"] == bundled.sample().demo.answer
    assert got["answer_full"] is got["prefill_s_full"] is got["decode_ms_full"] is None
    assert got["kept_share"] == 1.0


def test_the_view_for_people() -> None:
    result = run("generate", "--compare")
    assert result.exit_code == 0
    for word in ("full cache", "evicted", "answer", "KV cache", "prefill", "decode per token", "same"):
        assert word in result.stdout


def test_the_sample_is_answered_right_at_a_fifth_and_with_everything() -> None:
    for budget in ("1.0", "0.2"):
        assert as_json("generate", "--budget", budget)["answer"] == bundled.sample().demo.answer


def test_images_and_marks(pictures: list[str]) -> None:
    marked = as_json(
        "generate", *images(pictures), "--prompt", "image i1 <image> image i2 <image> image i3 <image> ? show i2"
    )
    assert marked["prompt_tokens"]["image"] == 48
    first = as_json("generate", *images(pictures), "--prompt", "and <image> ? list")
    assert first["prompt_tokens"]["image"] == 48


def test_words_that_the_model_lacks_are_told() -> None:
    asked = ("generate", "--max-new-tokens", "2", "--prompt")
    told = run(*asked, "image xylophone zither ?").stderr
    assert "no words for 2 of 4 tokens of this prompt, and reads <unk> there" in told
    assert "no words" not in run(*asked, "image ?").stderr


def test_marks_decide_the_order() -> None:
    a, b, c = (Image.new("RGB", (1, 1)) for _ in range(3))
    assert interleave("x <image> y <image>z", [a, b, c]) == [a, "x ", b, " y ", c, "z"]
    assert interleave("<image>", [a]) == [a]
    assert interleave("no marks", [a, b]) == [a, b, "no marks"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "missing.png", "--prompt", "x"], "no such image file: missing.png"),
        (["--prompt", "a <image> and <image>"], "2 <image> marks but 0 images"),
        (["--budget", "0"], "budget must be"),
        (["--budget", "1.5"], "budget must be"),
        (["--budget", "abc"], "--budget must be"),
        (["--budget", "nan"], "budget must be"),
        (["--method", "madakw"], "did you mean 'madakv'"),
        (["--method", "full", "--budget", "0.5"], "keeps everything"),
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "   "], "the prompt is empty"),
        (["--model", "/no/such/folder"], "cannot load the model '/no/such/folder'"),
        (["--dtype", "int3"], "dtype must be one of"),
        (["--device", "nonsense"], "unknown device 'nonsense'"),
        (["--device", "meta"], "holds no data"),
        (["--image", ".", "--prompt", "x"], "but a folder: ."),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(arguments: list[str], message: str) -> None:
    result = run("generate", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.output


def test_broken_pictures(tmp_path: Path) -> None:
    text, cut = tmp_path / "text.png", tmp_path / "cut.png"
    text.write_text("no picture")
    Image.effect_noise((64, 64), 50).save(cut)
    cut.write_bytes(cut.read_bytes()[:300])
    for path, message in ((text, "not an image"), (cut, "broken")):
        result = run("generate", "--image", str(path), "--prompt", "x")
        assert result.exit_code == 2
        assert message in result.stderr
        assert result.stderr.count("\n") == 1


def test_images_without_a_prompt(pictures: list[str]) -> None:
    result = run("generate", *images(pictures))
    assert result.exit_code == 2
    assert "without --prompt" in result.stderr


@pytest.mark.parametrize("budget", ["0.2", "1.0", "3"])
def test_extreme_prompts_work(tmp_path: Path, budget: str) -> None:
    paths = []
    for number in range(40):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.effect_noise((5 + 7 * number, 90 - 2 * number), 60).save(paths[-1])
    limit = ["--max-new-tokens", "3", "--budget", budget]
    assert as_json("generate", *images(paths), "--prompt", "? list", *limit)["prompt_tokens"]["image"] == 640
    assert as_json("generate", *images(paths[:2]), "--prompt", "", *limit)["prompt_tokens"]["image"] == 32
    assert as_json("generate", "--prompt", "red", *limit)["prompt_tokens"] == {"text": 1}


def test_an_unsupported_model_is_one_line(tmp_path: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=200, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    result = run("generate", "--model", str(tmp_path), "--prompt", "x")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1


def test_a_text_only_model(tmp_path: Path, pictures: list[str]) -> None:
    tiny.llama().save_pretrained(tmp_path)
    bundled.load()[1].tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    got = as_json("generate", "--model", str(tmp_path), "--prompt", "red blue", "--max-new-tokens", "2")
    assert set(got["prompt_tokens"]) == {"text"}
    result = run("generate", "--model", str(tmp_path), "--prompt", "x", *images(pictures))
    assert result.exit_code == 2
    assert "reads text only" in result.stderr


@pytest.mark.parametrize(
    ("text", "value"), [("0.2", 0.2), ("1", 1.0), ("1.0", 1.0), ("512", 512), (" 7 ", 7), ("1e-1", 0.1)]
)
def test_budgets_as_typed(text: str, value: float | int) -> None:
    got = parse_budget(text)
    assert got == value
    assert type(got) is type(value)


def test_methods_with_options() -> None:
    (method,) = expand("madakv:safeguard=0.8:shape=layers-even:proxies=4", "0.2")
    assert method == madakv.MadaKV(budget=0.2, safeguard=0.8, shape="layers-even", proxies=4)
    result = run("generate", "--method", "madakv:safeguard")
    assert result.exit_code == 2
    assert "name:option=value" in result.stderr
    result = run("generate", "--method", "madakv:safeguard=high")
    assert result.exit_code == 2
    assert "safeguard must be" in result.stderr


def test_methods_and_budgets_multiply() -> None:
    assert [repr(method).split(",")[0] for method in expand("full,madakv", "0.2,16")] == [
        "Full(budget=1.0",
        "MadaKV(budget=0.2",
        "MadaKV(budget=16",
    ]


def test_list_of_methods() -> None:
    result = run("methods")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == madakv.list_methods()


def test_bf16(pictures: list[str]) -> None:
    got = as_json("generate", "--dtype", "bfloat16", "--budget", "0.5", "--max-new-tokens", "2")
    assert (
        got["kv_bytes_full"] * 2 == as_json("generate", "--method", "full", "--max-new-tokens", "2")["kv_bytes_full"]
    )
    assert torch.bfloat16.itemsize == 2


def test_a_missing_gpu_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = run("generate", "--device", "cuda")
    assert result.exit_code == 2
    assert "no CUDA device" in result.stderr


def test_results_that_cannot_be_written_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    for out, says in (("file", "cannot use"), ("broken", "run.json")):
        result = run("eval", "--samples", "1", "--out", str(tmp_path / out))
        assert result.exit_code == 2
        assert says in result.stderr
        assert result.stderr.strip().count("\n") == 0


def test_methods_named_twice_run_once() -> None:
    assert len(expand("full,full,madakv", "0.2,0.2")) == 2


def test_version() -> None:
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout == f"madakv {madakv.__version__}\n"
    command = [sys.executable, "-m", "madakv", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == result.stdout


def test_pictures_look_as_they_did(tmp_path: Path) -> None:
    grey = Image.new("I;16", (256, 1))
    for x in range(256):
        grey.putpixel((x, 0), x * 257)
    assert [as_rgb(grey).getpixel((x, 0)) for x in (0, 100, 255)] == [(0, 0, 0), (100, 100, 100), (255, 255, 255)]
    assert as_rgb(Image.new("RGBA", (1, 1), (0, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)
    assert as_rgb(Image.new("RGB", (1, 1), (9, 8, 7))).getpixel((0, 0)) == (9, 8, 7)
    turned = Image.new("RGB", (20, 10))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert open_images([tmp_path / "turned.jpg"])[0].size == (10, 20)


IMAGES_FIRST = (
    "{% for m in messages %}USER: "
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image> {% endif %}{% endfor %}"
    "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("prompt", "moved"),
    [("red <image> blue <image> green", True), ("red <image>", True), ("<image> <image> red", False), ("red", False)],
)
def test_images_stay_at_their_marks_whatever_the_template_does(prompt: str, moved: bool) -> None:
    processor = bundled.load()[1]
    count = prompt.count("<image>")
    pictures = list(bundled.sample().images[:count])
    want = model_inputs(processor, prompt, pictures)["input_ids"][0].tolist()
    processor.chat_template = IMAGES_FIRST
    got = model_inputs(processor, prompt, pictures)
    user = processor.tokenizer.convert_tokens_to_ids("USER:")
    assert [token for token in got["input_ids"][0].tolist() if token != user] == want
    if count:
        assert got["pixel_values"].shape[0] == count
    content = [{"type": "image"} if part == "<image>" else {"type": "text", "text": part} for part in prompt.split()]
    rendered = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    assert (rendered.split()[1:] != prompt.split()) == moved, "the case must be what it claims to be"


def test_distances_from_the_command_line(tmp_path: Path) -> None:
    result = run("distance", "--samples", "1", "--methods", "full,madakv", "--budgets", "0.2", "--out", str(tmp_path))
    assert result.exit_code == 0, result.stderr
    head, _, full, ours = (tmp_path / "table.md").read_text().splitlines()
    assert head.startswith("| method | budget | layer 0 |")
    assert full.startswith("| `full` | 100% | 0.000 |")
    assert "| `madakv` | 20% |" in ours
    assert result.stdout == (tmp_path / "table.md").read_text()


def test_a_look_at_the_benchmarks_data(tmp_path: Path) -> None:
    make_sample(tmp_path / "data", per_dataset=1)
    (tmp_path / "data" / "TQA" / "TQA.json").unlink()
    result = run("milebench", "check", "--data", str(tmp_path / "data"))
    assert result.exit_code == 1
    assert "| IEdit | S-3 | rouge_l | 1 of 200 |" in result.stdout
    assert "TQA: no such file" in result.stdout


def test_a_report_of_two_folders(tmp_path: Path) -> None:
    for shard in ("1/2", "2/2"):
        out = str(tmp_path / shard[0])
        result = run(
            "eval", "--methods", "full", "--samples", "1", "--max-new-tokens", "2", "--shard", shard, "--out", out
        )
        assert result.exit_code == 0, result.output
    result = run("report", str(tmp_path / "1"), str(tmp_path / "2"), "--out", str(tmp_path), "--title", "Both halves")
    assert result.exit_code == 0
    assert result.stdout.rstrip().endswith("| 5 |")
    assert (tmp_path / "report.md").read_text().startswith("# Both halves\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["milebench", "--data", "."], "--out is missing"),
        (["milebench", "--out", "."], "--data is missing"),
        (["milebench", "--data", ".", "--out", ".", "--datasets", "TN,Nope"], "unknown MileBench dataset: Nope"),
        (["milebench", "check"], "--data is missing"),
        (["milebench", "check", "--data", "/does/not/exist"], "no such folder: /does/not/exist"),
        (["report", "/does/not/exist", "--out", "."], "no results in /does/not/exist"),
        (["eval", "--out", ".", "--shard", "5/4"], "--shard takes i/n"),
    ],
)
def test_wrong_evaluations_are_one_line_and_exit_code_two(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
