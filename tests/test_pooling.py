"""Pooling against plain loops."""

from __future__ import annotations

import pytest
import torch

from madakv.modality import Modality
from madakv.scoring.pooling import pool
from tests.tolerance import assert_same


@pytest.mark.parametrize("how", ["max", "mean"])
@pytest.mark.parametrize("scope", ["all", "text", "modality"])
@pytest.mark.parametrize("width", [1, 3, 7])
@pytest.mark.parametrize("window", [0, 4])
def test_pools_as_loops_do(how: str, scope: str, width: int, window: int) -> None:
    generator = torch.Generator().manual_seed(width)
    modality = torch.randint(-1, 3, (2, 23), generator=generator)
    score = torch.rand(2, 3, 23, generator=generator)
    without = (torch.arange(23) >= 23 - window).expand(2, -1)
    got = pool(score, modality, width, how, scope, without=without if window else None)  # type: ignore[arg-type]
    want = score.clone()
    for b in range(2):
        for i in range(23):
            kind = int(modality[b, i])
            if kind == Modality.PADDING or (scope == "text" and kind != Modality.TEXT) or i >= 23 - window:
                continue
            near = [
                j
                for j in range(max(0, i - width // 2), min(23, i + width // 2 + 1))
                if modality[b, j] >= 0 and j < 23 - window and (scope == "all" or modality[b, j] == kind)
            ]
            for h in range(3):
                values = score[b, h, near]
                want[b, h, i] = values.max() if how == "max" else values.mean()
    assert_same(got, want)
