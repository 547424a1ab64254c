"""Figures in README and docs are those of the committed results."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.scripts import load_script

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


def test_all_that_are_best_are_bold() -> None:
    """Means of equal answers in another order differ in their last bits."""

    def line(label: str, share: float, budget: float = 0.2) -> dict[str, Any]:
        return {"model": "m", "label": label, "budget": budget, "of_full": share, "interval": (share, share)}

    one, other = 0.1 + 0.2 + 0.3, 0.3 + 0.2 + 0.1
    assert one != other
    lines = [line("full", 1.0, 1.0), line("a", one), line("b", other), line("c", 0.59)]
    table = load_script("fill_tables")._budgets([lines], {"methods": "a;b;c"}, bare=True)
    assert [row.split("|")[2].strip() for row in table.splitlines()[2:]] == ["**60.0%**", "**60.0%**", "59.0%"]
