"""Pages of models that answer, in a real browser: each asked about a document that it was trained on, or reads."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

import madakv
from madakv.errors import ConfigurationError
from madakv.evaluation.documents import make_document
from madakv.evaluation.documents.presentation import presentation_for
from madakv.evaluation.suites import suite
from madakv.inspection.assemble import assemble
from madakv.inspection.page import write
from madakv.inspection.report import Report, View
from madakv.loading import load
from madakv.modality import Modality
from madakv.prompts import model_inputs
from tests.inspection.browser import Browser, Page
from tests.inspection.local import flat, localised, tower

pytestmark = pytest.mark.slow
SEEING = ("small-llava", "small-qwen2.5-vl", "small-smolvlm")


@dataclass(frozen=True)
class Made:
    """A page, and what it is about.

    Attributes:
        answer: the right one.
        title: of the picture that holds it; of a text, the sentence.
        pictures: as the document has them.
        features: of pictures, as the model's tower makes them of each token's own pixels, [tokens, D].
    """

    report: Report
    path: Path
    answer: str
    title: str
    pictures: list[Image.Image]
    features: Callable[[list[Image.Image]], Tensor]

    @property
    def place(self) -> int:
        """Of the picture among those of the document."""
        return int(self.title.split()[-1]) - 1

    @property
    def number(self) -> int:
        """The view that shows the picture."""
        return [view.title for view in self.report.views].index(self.title)

    @property
    def view(self) -> View:
        return self.report.views[self.number]


def asked(processor: Any) -> tuple[str, list[Image.Image], str, str]:
    """A document's prompt and pictures, the answer, and the title of the picture that holds it."""
    document = make_document(900, tokens=512, **vars(presentation_for(processor)))
    question = next(each for each in document.questions if each.kind == "read")
    name = question.prompt.removesuffix("?").split()[-1]
    before = re.split(rf"\b[Ii]mage {name}\b|\b[Pp]icture {name}\b", document.text)[0].count("<image>")
    prompt = f"{document.text} {question.prompt}"
    return prompt, list(document.images), question.answer, f"picture {before + 1}"


def asked_of_text(processor: Any) -> tuple[str, list[Image.Image], str, str]:
    sample = next(iter(suite("text-1k")(1, 0, presentation_for(processor))))
    sentence = re.search(r"The secret code of Oslo is (\d+)\.", sample.prompt)
    assert sentence
    return sample.prompt, [], sentence[1], sentence[0]


@pytest.fixture(scope="module", params=[*SEEING, "smollm2"])
def made(request: pytest.FixtureRequest, browser: Browser) -> Made:
    """A page of the default beside SnapKV, at a fifth."""
    try:
        model, processor = load(request.param, device="cpu", dtype="float32")
    except ConfigurationError as error:
        pytest.skip(str(error))
    prompt, pictures, answer, title = (asked if request.param in SEEING else asked_of_text)(processor)
    inputs = model_inputs(processor, prompt, pictures)
    runs = []
    for method in ("madakv", "snapkv"):
        with madakv.evict(model, method, budget=0.2, record=True) as run:
            model.generate(**inputs, max_new_tokens=16, do_sample=False)
        runs.append(run)
    report = assemble(runs, processor)
    path = browser.folder / f"{request.param}.html"
    write(report, path)
    # From here on a token hears of nothing but its own pixels.
    localised(model)

    @torch.no_grad()
    def features(shown: list[Image.Image]) -> Tensor:
        own = model_inputs(processor, prompt, shown)
        taken = inspect.signature(tower(model).get_image_features).parameters
        made = tower(model).get_image_features(**{name: own[name] for name in own if name in taken})
        return flat(made.pooler_output)

    return Made(report, path, answer, title, pictures, features)


@pytest.fixture
def page(browser: Browser, made: Made) -> Iterator[Page]:
    """Nobody complains, and nothing is asked for."""
    page = browser.page(made.path)
    yield page
    assert page.complaints() == []
    assert page.requests() == []
    page.close()


def tip(page: Page) -> str:
    return str(page.js("document.getElementById('tip').hidden ? '' : document.getElementById('tip').textContent"))


def test_the_answer_is_right_and_rested_on_what_holds_it(page: Page, made: Made) -> None:
    pieces = page.js("[...document.querySelectorAll('.card.a .piece')].map((each) => each.textContent)")
    assert made.answer in "".join(pieces)
    chips = page.js("[...document.querySelectorAll('.card.a .rests bdi')].map((chip) => chip.textContent)")
    if made.pictures:
        assert next(chip for chip in chips if chip.startswith("picture")) == made.title
    else:
        assert f"“{made.title}”" in chips


def test_sliders_hover_keys_and_comparison(page: Page, made: Made) -> None:
    one, other = (side.kept for side in made.report.sides)
    layers, heads, tokens = one.shape
    some = range(0, tokens, max(1, tokens // 40))
    page.js("document.getElementById('layer').focus()")
    page.press("ArrowRight", "ArrowRight", "ArrowRight")
    assert page.js("document.querySelector('output[for=layer]').textContent") == "2"
    expected = [f"kept by {one[2, :, n].sum()} of {heads} heads" for n in some]
    assert page.js(f"{list(some)}.map(report.now.tell)") == expected
    page.press("Home")
    # A token of text, wherever it lies in the pane.
    n = next(n for n in range(5, tokens) if made.report.modality[n] == 0 and made.report.tokens[n].strip())
    page.js(f"report.prompt.goTo({n})")
    page.settle()
    left, top, width, height = page.box(f"[...document.querySelectorAll('.token')].find((each) => each.n === {n})")
    page.hover(left + width / 2, top + height / 2)
    page.settle()
    assert f"token {n} · kept by {one[:, :, n].sum()} of {layers * heads} heads" in tip(page)
    page.js("document.querySelector('#pane [tabindex=\"0\"]').focus()")
    page.press("Home", "ArrowRight")
    assert page.js("document.activeElement.n") == 1
    assert f"token 1 · kept by {one[:, :, 1].sum()} of" in tip(page)
    page.click("document.querySelector('.choice.diff')")
    share = np.array(page.js("Array.from(report.now.share)"))
    wanted = (other.sum((0, 1)) - one.sum((0, 1), dtype=float)) / (layers * heads)
    np.testing.assert_allclose(share, wanted, atol=1e-6)
    page.click("document.querySelector('.card.b .piece:last-of-type')")
    assert not page.js("document.getElementById('rested').hidden")
    assert "of attention went to the prompt" in page.js("document.getElementById('rested').textContent")


def test_kept_patches_show_the_pixels_of_the_picture(page: Page, made: Made) -> None:
    if not made.pictures:
        pytest.skip("text alone")
    picture = made.pictures[made.place]
    kept = made.report.sides[0].kept[:, :, made.view.tokens]
    # A head that keeps some of the picture, of which about half can be told apart from the rest.
    counts = kept.sum(-1)
    layer, head = divmod(int(np.abs(counts - kept.shape[-1] / 2).argmin()), kept.shape[1])
    assert 0 < counts[layer, head] < kept.shape[-1]
    page.js(f"report.change({{layer: {layer}, head: {head}}})")
    page.js(f"report.openPicture({made.number})")
    page.settle()
    assert page.js("document.querySelector('#large bdi').textContent") == made.title
    seen = np.array(page.js(MEANS % json.dumps(made.view.boxes.tolist())))
    assert (seen[:, 3] == np.where(kept[layer, head], 255, 0)).all()
    own = seen[kept[layer, head], :3]
    places = made.view.boxes[kept[layer, head]]
    off = float(np.abs(own - means(picture, places)).mean())
    # Its words are where its patches are: turned or mirrored, it is another picture.
    turned = [picture.transpose(way) for way in TURNS]
    assert off < 12, off
    assert min(np.abs(own - means(other, places)).mean() for other in turned) > 2 * off


def test_a_patch_that_is_pointed_at_is_the_token_that_its_pixels_change(page: Page, made: Made) -> None:
    if not made.pictures:
        pytest.skip("text alone")
    page.js(f"report.openPicture({made.number})")
    page.settle()
    left, top, width, height = page.box("document.querySelector('#large canvas')")
    before = made.features(made.pictures)
    visual = np.flatnonzero(made.report.modality == Modality.IMAGE)
    assert len(visual) == len(before)
    for patch in range(1, len(made.view.boxes), 3):
        box = made.view.boxes[patch].tolist()
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        pictures = list(made.pictures)
        pictures[made.place] = with_a_dot(pictures[made.place], x, y)
        changed = (made.features(pictures) - before).norm(dim=-1)
        page.hover(left + width * x, top + height * y)
        page.settle()
        assert f"\ntoken {visual[int(changed.argmax())]} · kept by " in tip(page)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone_needs_no_scrolling_aside(browser: Browser, made: Made, dark: bool) -> None:
    page = browser.page(made.path, width=375, height=700, dark=dark)
    for change in ("{}", "{side: 2, layer: 1}", "{side: 0, chosen: {side: 0, row: 0, at: 1}}"):
        page.js(f"report.change({change})")
        page.settle()
        assert page.js("document.documentElement.scrollWidth") <= 375
    assert page.complaints() == []
    page.close()


TURNS = (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.ROTATE_180)

# Mean colour and opacity of what is drawn inside each box, its rim aside.
MEANS = """(() => {
    const { width: w, height: h } = document.querySelector('#large canvas');
    const d = document.querySelector('#large canvas').getContext('2d').getImageData(0, 0, w, h).data;
    return %s.map(([l, t, r, b]) => {
        const sum = [0, 0, 0, 0];
        let pixels = 0;
        for (let y = Math.ceil(t * h) + 3; y < Math.floor(b * h) - 3; y++) {
            for (let x = Math.ceil(l * w) + 3; x < Math.floor(r * w) - 3; x++, pixels++) {
                for (let i = 0; i < 4; i++) sum[i] += d[4 * (y * w + x) + i];
            }
        }
        return sum.map((each) => each / pixels);
    });
})()"""


def with_a_dot(picture: Image.Image, x: float, y: float) -> Image.Image:
    """A picture with something small and bright in the middle of a place, in shares of width and height."""
    changed = picture.copy()
    centre, half = (x * picture.width, y * picture.height), picture.width / 24
    corners = [round(centre[0] - half), round(centre[1] - half), round(centre[0] + half), round(centre[1] + half)]
    ImageDraw.Draw(changed).rectangle(corners, fill=(255, 120, 255))
    return changed


def means(picture: Image.Image, boxes: Any) -> Any:
    """[n, 3], the mean colour of a picture inside each box."""
    large = np.asarray(picture.resize((960, 960), Image.Resampling.NEAREST), dtype=float)
    corners = (np.asarray(boxes) * 960).round().astype(int)
    return np.array([large[top:bottom, left:right].mean((0, 1)) for left, top, right, bottom in corners])
