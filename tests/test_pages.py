"""README and docs as a newcomer reads them: short, with links that lead somewhere and commands that exist."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer

from madakv.cli.app import app
from madakv.methods import from_text

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "AGENTS.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))


def test_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 120 and not line.startswith("|") and "<!-- " not in line] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def commands(text: str) -> list[list[str]]:
    joined = text.replace("\\\n", " ")
    lines = [line.strip().split("  #")[0] for line in joined.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("madakv ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_understood(page: Path) -> None:
    for words in commands(page.read_text()):
        command: Any = typer.main.get_command(app)
        rest = words[1:]
        while rest and rest[0] in getattr(command, "commands", {}):
            command, rest = command.commands[rest[0]], rest[1:]
        context = command.make_context(words[0], rest)
        for text in (context.params.get("methods") or "").split(","):
            if text:
                from_text(text, budget=None if text.startswith("full") else 0.2)


def test_make_help_names_every_target() -> None:
    done = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True)
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert targets is not None
    for target in set(targets[1].split()) - {"help"}:
        assert re.search(rf"^  make {target}\b", done.stdout, re.MULTILINE), target
