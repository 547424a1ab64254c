"""What the command prints: answers as they are, on any terminal, and one line where something is wrong."""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from madakv import bundled
from madakv.cli.app import app
from madakv.cli.output import json_line, visible
from madakv.evaluation.records import Row, read_all

ANSWER = "purple 7"


def speaking(word: str, folder: Path) -> Path:
    """The built-in model, but it says `word` where it meant purple."""
    assert bundled.sample().demo.answer == ANSWER
    shutil.copytree(bundled.model_path(), folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary[word] = vocabulary.pop("purple")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def process(*arguments: str, paths: tuple[Path, ...] = (), **options: Any) -> subprocess.CompletedProcess[str]:
    source = Path(__file__).parents[1] / "src"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (source, *paths)))} | options.pop("env", {})
    streams = {"stdout": subprocess.PIPE} | options
    command = [sys.executable, "-m", "madakv", *arguments]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, env=environment, **streams)


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("[x]", "[x]"),
        ("[/INST]", "[/INST]"),
        ("[bold]", "[bold]"),
        (":cat:", ":cat:"),
        ("\\[a]", "\\[a]"),
        ("été", "été"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\x9b2J", "\\x9b2J"),
        ("a\rb", "a\\rb"),
        ("long" * 30, "long" * 30),
    ],
)
def test_answers_are_printed_as_they_are(word: str, shown: str, tmp_path: Path) -> None:
    folder = speaking(word, tmp_path / "model")
    plain = run("generate", "--model", str(folder))
    assert plain.exit_code == 0, plain.exception
    assert f"{shown} 7" in plain.stdout
    both = run("generate", "--model", str(folder), "--compare")
    assert both.stdout.count(f"{shown} 7") == 2
    parsed = run("generate", "--model", str(folder), "--json").stdout
    assert json.loads(parsed)["answer"] == f"{word} 7"
    assert not any(letter in parsed + both.stdout for letter in "\x1b\x9b\r")


def test_answers_of_many_lines_stand_below_the_table(tmp_path: Path) -> None:
    folder = speaking("first\n  second [x]\tthird", tmp_path / "model")
    found = run("generate", "--model", str(folder), "--compare").stdout
    assert "\nanswer, full cache:\nfirst\n  second [x]" in found
    assert "\nanswer, evicted:\nfirst\n  second [x]" in found


@pytest.mark.parametrize("name", ["[x]", "[/x]", ":cat:"])
def test_names_are_printed_as_they_are(name: str, tmp_path: Path) -> None:
    missing = run("generate", "--image", f"{tmp_path}/{name}.png", "--prompt", "x")
    assert f"no such image file: {tmp_path}/{name}.png\n" in missing.stderr
    folder = shutil.copytree(bundled.model_path(), tmp_path / name)
    limits = ["--context", "340", "--tokens", "1", "--repeats", "1", "--budgets", "0.5", "--no-rivals"]
    result = run("bench", "decode", "--model", str(folder), "--dtype", "fp32", *limits)
    assert result.exit_code == 0, result.exception
    assert str(folder) in " ".join(result.stdout.split())


def test_visible() -> None:
    assert visible("a\tb\nc é 猫 🐈") == "a\tb\nc é 猫 🐈"
    assert visible("\x00\x07\x7f\x85\ud800\u202a") == "\\x00\\x07\\x7f\\x85\\ud800\u202a"


def test_json_that_no_encoding_has() -> None:
    for text in ("\ud800", "\x9b", "é"):
        assert json.loads(json_line({"a": text})) == {"a": text}
    assert json_line("é") == '"é"'


def test_a_terminal_that_cannot_print_the_answer(tmp_path: Path) -> None:
    folder = speaking("猫é", tmp_path / "model")
    ascii_only = {"PYTHONIOENCODING": "ascii"}
    plain = process("generate", "--model", str(folder), env=ascii_only)
    assert (plain.returncode, plain.stderr) == (0, "")
    assert "\\u732b\\xe9 7" in plain.stdout
    parsed = process("generate", "--model", str(folder), "--json", env=ascii_only)
    assert json.loads(parsed.stdout)["answer"] == "猫é 7"


def fake(package: str, code: str, folder: Path) -> Path:
    (folder / package).mkdir()
    (folder / package / "__init__.py").write_text(code)
    about = folder / f"{package}-0.20.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.20.0\n")
    return folder


def test_a_torchvision_of_another_torch_is_named(tmp_path: Path) -> None:
    """What transformers says ends in a class of its own."""
    path = fake("torchvision", "raise RuntimeError('operator torchvision::nms does not exist')", tmp_path)
    found = process("generate", paths=(path,))
    assert found.returncode == 2
    assert found.stderr.count("\n") == 1
    assert "torchvision 0.20.0 does not fit torch 2." in found.stderr
    assert "pip install --force-reinstall --no-deps 'torchvision==0." in found.stderr


@pytest.mark.parametrize("package", ["typer", "transformers"])
def test_ctrl_c_while_it_is_imported(package: str, tmp_path: Path) -> None:
    path = tmp_path / "path"
    path.mkdir()
    (path / package).mkdir()
    (path / package / "__init__.py").write_text("raise KeyboardInterrupt")
    found = process("generate", paths=(path,))
    assert (found.returncode, found.stderr) == (130, "")


def test_help_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, madakv.cli.app; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_full_disk_is_one_line_and_what_was_written_is_safe(tmp_path: Path) -> None:
    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))

    limits = ["--methods", "full", "--samples", "10", "--max-new-tokens", "2"]
    found = process("eval", *limits, "--out", str(tmp_path / "out"), preexec_fn=full)
    assert found.returncode == 2
    (line,) = [line for line in found.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: cannot write {tmp_path / 'out' / 'rows.jsonl'}: [Errno 27] File too large")
    assert "is safe" in line
    assert "Traceback" not in found.stderr
    assert len(read_all(tmp_path / "out", Row)) > 5


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output() -> None:
    with open("/dev/full", "w") as full:
        found = process("methods", stdout=full)
    assert found.returncode == 2
    assert found.stderr.startswith("error: the disk is full (No space left on device)")
    assert found.stderr.count("\n") == 1


def commands(group: Any, *names: str) -> list[tuple[str, Any]]:
    found = [(" ".join(names), group)]
    for name, command in getattr(group, "commands", {}).items():
        found += commands(command, *names, name)
    return found


@pytest.mark.parametrize(("name", "command"), commands(typer.main.get_command(app)))
def test_every_help_ends_with_an_example_that_is_understood(name: str, command: Any) -> None:
    for asked in ("-h", "--help"):
        result = run(*name.split(), asked)
        assert result.exit_code == 0
        assert "Example: madakv " in result.stdout
    words = shlex.split(command.epilog.removeprefix("Example: madakv ").partition("   ")[0])
    inner = typer.main.get_command(app)
    while words and words[0] in getattr(inner, "commands", {}):
        inner = inner.commands[words.pop(0)]
    inner.make_context("example", words).close()
