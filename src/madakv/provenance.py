"""Where results come from, and files that are either old or new."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

import madakv


def provenance(**settings: Any) -> dict[str, Any]:
    """Where results come from: settings, code, versions and machine."""
    return {
        **settings,
        "madakv": madakv.__version__,
        "git": _git_hash(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {_device_name()}",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_whole(path: Path, content: dict[str, Any]) -> None:
    """Replace a file at once, so that a kill leaves the old one or the new one."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def _git_hash() -> str | None:
    """The commit of the code that runs, marked if files differ from it; None outside a checkout."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        status = subprocess.run(
            ["git", "status", "--porcelain", "."], cwd=here.parent, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+changes" if status.stdout.strip() else "")


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU only"
