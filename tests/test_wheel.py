"""The wheel, in an empty environment, answers: nothing that it needs is left behind in the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_answers_in_an_empty_environment(tmp_path: Path) -> None:
    def run(*command: str | Path) -> str:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        done = subprocess.run(
            [str(word) for word in command], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
        )
        return done.stdout

    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", tmp_path / "dist", ROOT)
    (wheel,) = (tmp_path / "dist").glob("madakv-*.whl")
    # One model of 10 MB, before compression, is most of it.
    assert wheel.stat().st_size < 12e6
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    # The build of torch that runs these tests, so that no other one is downloaded.
    run(python, "-m", "pip", "install", f"torch=={version('torch').split('+')[0]}")
    run(python, "-m", "pip", "install", wheel)
    got = json.loads(run(tmp_path / "venv" / "bin" / "madakv", "generate", "--json", "--compare"))
    assert got["answer"] == got["answer_full"] != ""
    missing = subprocess.run(
        [tmp_path / "venv" / "bin" / "madakv", "eval", "--out", tmp_path / "results", "--samples", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert missing.returncode == 2
    assert "madakv[eval]" in missing.stderr
    elsewhere = subprocess.run(
        [tmp_path / "venv" / "bin" / "madakv", "generate", "--model", "small-llava"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert elsewhere.returncode == 2
    assert "models/small-llava of madakv's repository" in elsewhere.stderr
    assert elsewhere.stderr.count("\n") == 1
