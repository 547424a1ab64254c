"""`vllm serve` with eviction: what is typed, and what is said once it runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from madakv.integrations.vllm.settings import KEY, Settings, first_kept_block


def command(model: str, settings: Settings, rest: Sequence[str]) -> list[str]:
    """The server's command line.

    Args:
        model: a folder or a Hub id.
        settings: of the server.
        rest: whatever else `vllm serve` takes.
    """
    asked = json.dumps({KEY: asdict(settings)})
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model, "--additional-config", asked, *rest]


def promise(settings: Settings, tokens: int, block_size: int, blocks: int) -> str:
    """One line: what is evicted, and what that is worth.

    Args:
        settings: of the server.
        tokens: of the longest prompt that it takes.
        block_size: tokens of a block.
        blocks: of the pool, among them one that stands for all that are freed.
    """
    # Beside a prompt lies what is said, a block at first. Whoever comes last must be read whole.
    whole = -(-tokens // block_size) + 1
    held = whole - first_kept_block(settings.budget, tokens, block_size)
    free = blocks - 1
    fit, would = 1 + max(0, free - whole) // held, max(1, free // whole)
    return (
        f"keeps {settings.budget:.0%} of each prompt by {settings.resolved().label}: of prompts of {tokens:,} "
        f"tokens, {fit} fit at once, where {would} would"
    )
