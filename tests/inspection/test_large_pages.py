"""Prompts as large as anybody reads, through the command and into a real browser."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from madakv.cli.app import app
from tests.inspection.browser import Browser
from tests.inspection.words import tokenizer

hf: Any = transformers
pytestmark = pytest.mark.slow
WORDS = [f"w{number}" for number in range(60)]


def command(*arguments: str) -> None:
    result = CliRunner().invoke(app, ["inspect", "--budget", "0.2", "--max-new-tokens", "4", *arguments])
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model of one layer, which reads 100,000 tokens in less than a minute."""
    folder = tmp_path_factory.mktemp("tiny")
    words = tokenizer(*WORDS)
    words.save_pretrained(folder)
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=200,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=131072,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=1,
    )
    hf.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_100_000_tokens(browser: Browser, tiny: Path, tmp_path: Path) -> None:
    drawn = random.Random(0)
    out = tmp_path / "page.html"
    text = " ".join(drawn.choice(WORDS) for _ in range(100_000))
    command("--model", str(tiny), "--prompt", text, "--methods", "snapkv", "--out", str(out))
    assert out.stat().st_size < 5e6
    page = browser.page(out)
    assert "100,000 prompt tokens" in page.js("document.getElementById('about').textContent")
    assert page.js("document.querySelectorAll('*').length") < 5000
    kept = page.js("report.data.sides[0].kept.totals()[0]")
    assert kept == 20_000
    page.js("document.getElementById('layer').focus()")
    page.press("ArrowRight")
    assert page.js("report.now.share.reduce((sum, each) => sum + each, 0)") == kept
    page.js("document.getElementById('pane').scrollTop = 1e7")
    page.until("[...document.querySelectorAll('.token')].some((each) => each.n === 99999)")
    assert page.complaints() == []
    page.close()


def test_200_wide_pictures(browser: Browser, tmp_path: Path) -> None:
    drawn = random.Random(0)
    paths = []
    for number in range(200):
        image = Image.new("RGB", (96, 32))
        left = drawn.randrange(80)
        ImageDraw.Draw(image).rectangle([left, 8, left + 12, 24], fill="orange")
        paths += ["--image", str(tmp_path / f"{number}.png")]
        image.save(paths[-1])
    out = tmp_path / "page.html"
    command(
        "--model",
        "small-qwen2.5-vl",
        "--prompt",
        "? read n91",
        "--methods",
        "madakv,snapkv",
        *paths,
        "--out",
        str(out),
    )
    assert out.stat().st_size < 5e6
    page = browser.page(out)
    assert page.js("document.querySelectorAll('#pane figure').length") == 200
    page.js("report.openPicture(199)")
    page.settle()
    _, _, width, height = page.box("document.querySelector('#large canvas')")
    assert width / height == pytest.approx(3, rel=0.02)
    page.press("Escape")
    page.js("report.change({side: 2, layer: 3})")
    page.settle()
    assert page.js("document.documentElement.scrollWidth") <= 1200
    assert page.complaints() == []
    page.close()
