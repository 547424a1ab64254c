"""Figures in README and docs are those of the committed results."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_tables_are_what_their_rows_say() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "fill_tables.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_changed_figure_is_noticed(tmp_path: Path) -> None:
    script = (ROOT / "scripts" / "fill_tables.py").read_text()
    copy = tmp_path / "scripts" / "fill_tables.py"
    (tmp_path / "docs").mkdir()
    (tmp_path / "training" / "small").mkdir(parents=True)
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "training" / "small" / "README.md"):
        (tmp_path / page.relative_to(ROOT)).write_text(page.read_text())
    (tmp_path / "results").symlink_to(ROOT / "results")
    copy.parent.mkdir()
    copy.write_text(script)
    text = (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text(text.replace("%**", "1%**", 1))
    done = subprocess.run([sys.executable, str(copy), "--check"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "README.md differ" in done.stderr
