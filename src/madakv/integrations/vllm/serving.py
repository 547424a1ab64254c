"""`vllm serve` with eviction: what is typed, and what is said before it starts."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from madakv.integrations.vllm.settings import KEY, Settings, first_kept_block

_USUAL = 128
"""Entries of a block, as vLLM has them on a CPU if nobody says otherwise."""


def command(model: str, settings: Settings, rest: Sequence[str]) -> list[str]:
    """The server's command line.

    Args:
        model: a folder or a Hub id.
        settings: of the server.
        rest: whatever else `vllm serve` takes.
    """
    asked = json.dumps({KEY: asdict(settings)})
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model, "--additional-config", asked, *rest]


def promise(settings: Settings, tokens: int = 4096) -> str:
    """One line: what is evicted, and what that is worth for prompts of so many tokens."""
    blocks = tokens // _USUAL
    # Beside the pages lies what is said, a block at first.
    left = blocks - first_kept_block(settings.budget, tokens, _USUAL)
    return (
        f"keeps {settings.budget:.0%} of each prompt by {settings.resolved().label}: where one prompt of {tokens:,} "
        f"tokens fitted, {(blocks + 1) / (left + 1):.1f} fit once they were read"
    )
