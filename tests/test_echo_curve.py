"""What scripts/echo_curve.py counts; answers are `madakv eval`'s."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.scripts import load_script

CONFIG = SimpleNamespace(
    hidden_size=64,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=128,
    num_hidden_layers=3,
)


def flops(tokens: int, echoed: int) -> float:
    """One token and one layer at a time."""
    weights = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128
    told = 0.0
    for place in range(tokens + echoed):
        # Half a token of itself: the sum is an integral.
        attended = 2 * 64 * (place + 0.5)
        scored = 64 * (place + 0.5) if place >= tokens else 0.0
        told += 2 * (weights + attended + scored)
    return 3 * told


def test_a_price_is_counted_token_by_token() -> None:
    curve = load_script("echo_curve")
    read = [(120, 50), (60, 8)]
    assert curve.price(CONFIG, "madakv:echo=0", read) == 1.0
    # A sixth of the tokens, or what text there is; the mean of both prompts.
    want = (flops(120, 20) / flops(120, 0) + flops(60, 8) / flops(60, 0)) / 2
    assert curve.price(CONFIG, "madakv", read) == pytest.approx(want)
    want = (flops(120, 50) / flops(120, 0) + flops(60, 8) / flops(60, 0)) / 2
    assert curve.price(CONFIG, "madakv:echo=all", read) == pytest.approx(want)


def test_the_table_has_a_line_per_length() -> None:
    def row(method: str, budget: float, of_full: float) -> dict[str, object]:
        shares = {"of_full": of_full, "interval": [0.5, 1.0], "text_share": 0.25, "answers": 9}
        return {"model": "m", "method": method, "budget": budget, "price": 1.2} | shares

    rows = [row("madakv", 0.2, 0.9), row("madakv", 0.1, 0.8), row("madakv:echo=0", 0.2, 0.7)]
    told = load_script("echo_curve").table([*rows, row("madakv:echo=0", 0.1, 0.6)])
    assert "| `m` | 25% | `madakv` | 1.20 | 90.0% (50 to 100) | 80.0% (50 to 100) |" in told
    assert "| `m` | 25% | `madakv:echo=0` | 1.20 | 70.0% (50 to 100) | 60.0% (50 to 100) |" in told
