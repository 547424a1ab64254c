"""The page that shows a report: what is written, and what a real browser makes of it."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from madakv.errors import ConfigurationError, InputError, MissingExtraError
from madakv.inspection.page import html, write
from madakv.inspection.report import Report, View
from tests.inspection import synthetic
from tests.inspection.browser import Browser, Page

DATA = re.compile(r'<script id="data" type="application/json">(.*?)</script>', re.DOTALL)


def data_of(page: str) -> dict[str, Any]:
    found = DATA.search(page)
    assert found
    return dict(json.loads(found[1]))


class TestHtml:
    def test_nothing_that_was_written_is_markup(self) -> None:
        report = synthetic.hostile()
        page = html(report)
        # The page's own: its data and its script.
        assert len(re.findall(r"<script", page)) == 2
        assert "<img src=x" not in page
        page.encode()
        found = DATA.search(page)
        assert found
        assert not set(found[1]) & set("<>&\u2028\u2029")
        data = data_of(page)
        assert data["tokens"] == report.tokens
        assert data["sides"][0]["answer"] == report.sides[0].answer
        assert data["views"][0]["title"] == report.views[0].title
        assert "{{7*7}}" in "".join(data["tokens"])

    def test_its_policy_lets_only_its_own_script_run(self) -> None:
        page = html(synthetic.report())
        (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
        assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
        assert "unsafe" not in policy
        assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)

    def test_many_large_pictures_fit(self) -> None:
        random = np.random.default_rng(0)
        noise = Image.fromarray(random.integers(0, 256, (300, 400, 3), dtype=np.uint8)).resize((1200, 900))
        base = synthetic.report(pictures=24, grid=4, sides=1)
        views = [dataclasses.replace(view, picture=noise.copy()) for view in base.views]
        page = html(dataclasses.replace(base, views=views))
        assert len(page) < 5e6
        urls = [view["url"] for view in data_of(page)["views"]]
        picture = Image.open(BytesIO(base64.b64decode(urls[0].partition(",")[2])))
        assert picture.width / picture.height == pytest.approx(4 / 3, rel=0.02)
        assert picture.width > 300

    def test_small_pictures_stay_bit_for_bit(self) -> None:
        report = synthetic.bright_square(1, 2)
        (view,) = data_of(html(report))["views"]
        picture = Image.open(BytesIO(base64.b64decode(view["url"].partition(",")[2])))
        expected = report.views[0].picture
        assert expected
        assert np.array_equal(np.asarray(picture), np.asarray(expected))

    def test_200_pictures_fit(self) -> None:
        base = synthetic.report(text=400, pictures=200, grid=4, size=16, sides=1, answer=2)
        noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8))
        views = [dataclasses.replace(view, picture=noise.copy()) for view in base.views]
        assert len(html(dataclasses.replace(base, views=views))) < 5e6

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda r: dataclasses.replace(r, sides=[]), "a report has one or two sides, not 0"),
            (
                lambda r: dataclasses.replace(r, modality=r.modality[:-1]),
                r"modality is of shape \[347\]; expected \[348\]",
            ),
            (
                lambda r: dataclasses.replace(r, sides=[dataclasses.replace(r.sides[0], answer=["a"] * 9)]),
                "'madakv' has an answer of 9 tokens and 5 glances; expected as many, or one fewer",
            ),
            (
                lambda r: dataclasses.replace(
                    r, sides=[r.sides[0], dataclasses.replace(r.sides[1], kept=r.sides[1].kept[:2])]
                ),
                r"kept of 'snapkv:window_size=16' is of shape \[2, 2, 348\]; expected \[4, 2, 348\]",
            ),
            (
                lambda r: dataclasses.replace(
                    r, views=[dataclasses.replace(r.views[0], tokens=r.views[0].tokens + 400), *r.views[1:]]
                ),
                "'picture 1' has tokens outside the prompt's 348",
            ),
        ],
    )
    def test_parts_that_do_not_fit_are_named(self, change: Any, message: str) -> None:
        with pytest.raises(InputError, match=message):
            html(change(synthetic.report()))

    def test_a_file_that_cannot_be_written_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"cannot write .*none/page\.html: No such file"):
            write(synthetic.report(), tmp_path / "none" / "page.html")

    def test_the_extra_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(package: str) -> None:
            raise PackageNotFoundError(package)

        monkeypatch.setattr("madakv.extras.distribution", missing)
        with pytest.raises(MissingExtraError, match=r"a report needs jinja2: pip install 'madakv\[inspect\]'"):
            html(synthetic.report())


def test_bytes_of_a_batch_are_not_told_as_those_of_a_row(browser: Browser) -> None:
    base = synthetic.report(text=40, pictures=1)
    sides = [dataclasses.replace(base.sides[0], rows=3), base.sides[1]]
    page = opened(browser, dataclasses.replace(base, sides=sides))
    told = page.js("[...document.querySelectorAll('.card .figures')].map((each) => each.textContent)")
    assert [", 3 rows together" in line for line in told] == [True, False]
    assert page.js("plainData(report.data).sides.map((side) => side.rows)") == [3, 1]
    page.close()


def test_sides_that_are_called_alike_are_told_apart(browser: Browser) -> None:
    """Budgets that are rounded to the same, or runs that differ in what no label says."""
    base = synthetic.report(text=40, pictures=1)
    sides = [dataclasses.replace(base.sides[0], budget=0.2), dataclasses.replace(base.sides[0], budget=0.20004)]
    page = opened(browser, dataclasses.replace(base, sides=sides))
    assert page.js("report.names") == ["madakv 20 % (first)", "madakv 20 % (second)"]
    page.close()


@pytest.fixture(scope="module")
def two_sides(browser: Browser) -> tuple[Report, Path]:
    report = synthetic.report()
    path = browser.folder / "two.html"
    write(report, path)
    return report, path


def opened(browser: Browser, report: Report, **options: Any) -> Page:
    path = browser.folder / "page.html"
    write(report, path)
    return browser.page(path, **options)


@pytest.fixture
def page(browser: Browser, two_sides: tuple[Report, Path]) -> Iterator[Page]:
    """Two sides; nobody complains, and nothing is asked for."""
    page = browser.page(two_sides[1])
    yield page
    assert page.complaints() == []
    assert page.requests() == []
    page.close()


def tip(page: Page) -> str:
    return str(page.js("document.getElementById('tip').hidden ? '' : document.getElementById('tip').textContent"))


def token(n: int) -> str:
    return f"[...document.querySelectorAll('.token')].find((each) => each.n === {n})"


class TestBrowser:
    def test_text_is_shaded_by_how_many_heads_kept_it(self, page: Page, two_sides: tuple[Report, Path]) -> None:
        counts = two_sides[0].sides[0].kept.sum((0, 1))
        shades = page.js(
            "Object.fromEntries([...document.querySelectorAll('.token')].map((each) => [each.n, "
            "[each.style.backgroundColor, each.classList.contains('gone')]]))"
        )
        assert len(shades) > 100
        light = {int(n): sum(map(int, re.findall(r"\d+", shade))) for n, (shade, _) in shades.items() if shade}
        for n, (shade, gone) in shades.items():
            assert gone == (counts[int(n)] == 0)
            assert bool(shade) == (counts[int(n)] > 0)
        most, least = max(light, key=lambda n: counts[n]), min(light, key=lambda n: counts[n])
        assert light[most] < light[least]

    def test_hover_tells_numbers(self, page: Page, two_sides: tuple[Report, Path]) -> None:
        kept = two_sides[0].sides[0].kept
        left, top, width, height = page.box(token(5))
        page.hover(left + width / 2, top + height / 2)
        page.settle()
        assert f"token 5 · kept by {kept[:, :, 5].sum()} of 8 heads" in tip(page)

    def test_sliders_choose_a_layer_and_a_head(self, page: Page, two_sides: tuple[Report, Path]) -> None:
        kept = two_sides[0].sides[0].kept
        page.js("document.getElementById('layer').focus()")
        page.press("ArrowRight", "ArrowRight", "ArrowRight")
        assert page.js("document.querySelector('output[for=layer]').textContent") == "2"
        expected = kept[2].sum(0)
        for n in (0, 5, 20):
            assert page.js(f"report.now.tell({n})") == f"kept by {expected[n]} of 2 heads"
        page.js("document.getElementById('head').focus()")
        page.press("End")
        gone = page.js(
            "[...document.querySelectorAll('.token')].map((each) => [each.n, each.classList.contains('gone')])"
        )
        assert {n for n, away in gone if not away} == {n for n, _ in gone if kept[2, 1, n]}
        assert "layer 2, head 1" in page.js("document.getElementById('caption').textContent.toLowerCase()")

    def test_keys_go_from_token_to_token_and_into_a_picture(self, page: Page, two_sides: tuple[Report, Path]) -> None:
        report = two_sides[0]
        page.js("document.querySelector('#pane [tabindex=\"0\"]').focus()")
        page.press("ArrowRight", "ArrowRight")
        assert page.js("document.activeElement.n") == 2
        assert "token 2 ·" in tip(page)
        assert page.js("document.querySelectorAll('#pane [tabindex=\"0\"]').length") == 1
        last = int(report.views[0].tokens[0]) - 1
        page.js(f"report.prompt.stand(report.prompt.stop({last}, 1))")
        page.press("ArrowRight")
        assert page.js("document.activeElement.getAttribute('aria-label')").startswith("picture 1, ")
        page.press("Enter")
        assert page.js("document.getElementById('large').open")
        page.press("ArrowRight", "ArrowDown")
        n = int(report.views[0].tokens[7])
        assert (
            f"picture 1, patch 8 of 36\ntoken {n} · kept by {report.sides[0].kept[:, :, n].sum()} of 8 heads"
            == tip(page)
        )
        page.press("PageDown")
        assert page.js("document.querySelector('#large bdi').textContent") == "picture 2"
        page.press("Escape")
        assert not page.js("document.getElementById('large').open")

    def test_the_difference_is_what_one_kept_and_the_other_dropped(
        self, page: Page, two_sides: tuple[Report, Path]
    ) -> None:
        one, other = (side.kept for side in two_sides[0].sides)
        page.click("document.querySelector('.choice.b')")
        assert page.js("report.now.tell(3)") == f"kept by {other[:, :, 3].sum()} of 8 heads"
        page.click("document.querySelector('.choice.diff')")
        for n in (3, 4, 100):
            alone, there = (one & ~other)[:, :, n].sum(), (other & ~one)[:, :, n].sum()
            assert page.js(f"report.now.tell({n})") == (
                f"madakv alone: {alone}, snapkv:window_size=16 alone: {there}, "
                f"both: {(one & other)[:, :, n].sum()} of 8 heads"
            )
        share = np.array(page.js("Array.from(report.now.share)"))
        assert np.allclose(share, (other.sum((0, 1)) - one.sum((0, 1), dtype=float)) / 8)
        assert page.js("document.querySelectorAll('.fork').length") == 2
        assert page.js("document.querySelector('.fork').previousSibling.at") == 2

    def test_only_all_is_a_hundred_percent(self, page: Page) -> None:
        told = page.js("[0, 0.00001, 0.004, 0.5, 0.994, 0.9962, 0.9999, 1].map(percent)")
        assert told == ["0 %", "under 0.01 %", "0.4 %", "50 %", "99 %", "99.6 %", "over 99.9 %", "100 %"]

    def test_a_token_of_the_answer_shows_what_it_rested_on(self, page: Page, two_sides: tuple[Report, Path]) -> None:
        side = two_sides[0].sides[0]
        assert side.looked
        glance = side.looked[1]
        assert glance
        page.click("document.querySelectorAll('.card.a .piece')[2]")
        shares = np.array(page.js("Array.from(report.now.share)"))
        large = glance.mean > glance.mean.max() * 1e-4
        assert np.allclose(shares[large], glance.mean[large], rtol=0.03)
        assert shares[glance.mean == 0].max(initial=0) == 0
        line = page.js("document.getElementById('rested').textContent")
        assert f"{100 * glance.mean.sum():.0f} % of attention went to the prompt" in line
        assert f"{100 * glance.answer.mean():.0f} % to the answer's own tokens" in line
        page.js("report.change({layer: 1, head: 1})")
        page.settle()
        shares = np.array(page.js("Array.from(report.now.share)"))
        there = glance.best[1, 1] >= 0
        assert np.allclose(shares[glance.best[1, 1][there]], glance.weight[1, 1][there], atol=1e-5)
        # Of a single head nobody wrote down what sinks took, so that no more is said than is known.
        line = page.js("document.getElementById('rested').textContent")
        assert "of attention went to the answer's own tokens. Shown are the" in line
        assert "went to the prompt" not in line
        page.press("Escape")
        assert page.js("document.getElementById('rested').hidden")
        page.js("document.querySelector('.card.a .piece').focus()")
        page.press("ArrowRight", "Enter")
        assert page.js("document.querySelector('.piece[aria-pressed=true]').at") == 1
        page.click("document.querySelector('.card.a .piece')")
        assert "was not recorded" in page.js("document.querySelector('.card.a .hint').textContent")

    def test_a_glance_tells_what_the_answer_rested_on(self, browser: Browser) -> None:
        report = synthetic.report(text=241, sides=1)
        page = opened(browser, report)
        chips = page.js("[...document.querySelectorAll('.card.a .rests .chip bdi')].map((chip) => chip.textContent)")
        numbers = page.js("[...document.querySelectorAll('.card.a .rests .number')].map((each) => each.textContent)")
        mean = np.mean([glance.mean for glance in report.sides[0].looked or () if glance], 0)
        most = sorted(report.views, key=lambda view: -mean[view.tokens].sum())[:2]
        assert [chip for chip in chips if chip.startswith("picture")] == [view.title for view in most]
        (share,) = (number for chip, number in zip(chips, numbers, strict=True) if chip == most[0].title)
        assert float(share.removesuffix(" %")) == pytest.approx(100 * mean[most[0].tokens].sum(), rel=0.05)
        assert page.js("document.querySelectorAll('.card.a .rests img').length") == 2
        (said,) = (chip for chip in chips if not chip.startswith("picture"))
        # A whole sentence of the prompt, and none of the question behind the last picture.
        assert said.startswith("“")
        question = "".join(report.tokens[int(report.views[-1].tokens.max()) + 1 :]).split()
        tail = page.js("document.querySelector('.tail bdi').textContent")
        assert tail.removeprefix("… ").split() == question[-48:]
        # A chip goes to its picture.
        page.click("[...document.querySelectorAll('.card.a .rests .chip')].find((chip) => chip.querySelector('img'))")
        flashed = "document.querySelector('#pane .flash figcaption bdi')?.textContent"
        page.until(f"{flashed} === {json.dumps(next(chip for chip in chips if chip.startswith('picture')))}")
        assert page.complaints() == []
        page.close()

    def test_attention_parked_at_the_first_token_hides_no_other(self, browser: Browser) -> None:
        base = synthetic.report(text=60, pictures=0, sides=1)
        mean = np.full(60, 1e-4, np.float32)
        mean[0], mean[30] = 0.6, 0.05
        side = base.sides[0]
        looked = [dataclasses.replace(glance, mean=mean) for glance in side.looked or () if glance]
        page = opened(browser, dataclasses.replace(base, sides=[dataclasses.replace(side, looked=looked)]))
        page.click("document.querySelectorAll('.card.a .piece')[2]")
        shade = f"({token(0)}).style.backgroundColor === ({token(30)}).style.backgroundColor"
        assert page.js(shade)
        assert "5.0 % and more" in page.js("document.getElementById('legend').textContent")
        tall = page.js(
            """(() => {
                const { width: w, height: h } = document.querySelector('#ribbon canvas');
                const d = document.querySelector('#ribbon canvas').getContext('2d').getImageData(0, 0, w, h).data;
                return [0, 30, 40].map((cell) => {
                    const x = Math.round((w * (cell + 0.5)) / 60);
                    let sum = 0;
                    for (let y = 0; y < h - 5; y++) sum += d[4 * (y * w + x) + 3] > 100;
                    return sum;
                });
            })()"""
        )
        assert tall[0] == tall[1] > 40
        assert tall[2] < 3
        assert page.js("[strength('look', 12), strength('diff', -12)]") == [1, -1]
        page.close()

    @pytest.mark.parametrize("size", [(96, 32), (32, 48)], ids=["wide", "tall"])
    def test_small_pictures_are_shown_whole(self, browser: Browser, size: tuple[int, int]) -> None:
        base = synthetic.report(sides=1)
        views = [dataclasses.replace(view, picture=Image.new("RGB", size, "teal")) for view in base.views]
        page = opened(browser, dataclasses.replace(base, views=views))
        page.until("[...document.querySelectorAll('.rests img')].every((each) => each.complete)")
        _, _, width, height = page.box("document.querySelector('.rests img')")
        assert width / height == pytest.approx(size[0] / size[1], rel=0.02)
        page.close()

    def test_of_text_alone_nothing_speaks_of_pictures(self, browser: Browser) -> None:
        report = synthetic.report(text=400, pictures=0, sides=1)
        page = opened(browser, report)
        shown = page.js("document.querySelector('main').innerText")
        assert "heads have nothing to prefer" in shown
        assert "picture" not in shown.lower()
        assert page.js("document.querySelectorAll('#figures .field').length") == 3
        assert page.js("document.querySelectorAll('#ribbon .key').length") == 0
        # The end of the prompt is where the question is.
        assert "the prompt's end aside" in page.js("document.querySelector('.rests').textContent")
        mean = np.mean([glance.mean for glance in report.sides[0].looked or () if glance], 0)
        last = len(mean) - 48
        ends = [n + 1 for n in range(last) if report.tokens[n].endswith("\n")]
        sums = [mean[first:end].sum() for first, end in zip([1, *ends], [*ends, last], strict=True)]
        told = page.js("[...document.querySelectorAll('.rests .number')].map((each) => parseFloat(each.textContent))")
        assert told == pytest.approx([100 * share for share in sorted(sums, reverse=True)[:3]], rel=0.06)
        assert page.complaints() == []
        page.close()

    def test_a_few_lines_stand_beside_pictures(self, browser: Browser) -> None:
        base = synthetic.report(text=16, pictures=3, sides=1)
        texts = [n for n, kind in enumerate(base.modality) if kind == 0]
        tokens = list(base.tokens)
        # Between the first two pictures few lines, between the others a paragraph.
        tokens[texts[4]], tokens[texts[5]] = "\n\n\n\n", "Step\none: "
        tokens[texts[9]] = "\nIt is a long story, and it has many lines.\n\nThis is one of them.\n"
        page = opened(browser, dataclasses.replace(base, tokens=tokens))
        short = page.js(
            "[...document.querySelectorAll('#pane .text')].map((each) => each.classList.contains('short'))"
        )
        assert short == [True, True, False, True]
        tops = [page.box(f"document.querySelectorAll('#pane figure')[{number}]")[1] for number in range(3)]
        assert tops[0] == tops[1] < tops[2]
        page.close()

    def test_axes_name_layers_evenly(self, browser: Browser) -> None:
        for layers, expected in ((1, [0]), (6, [0, 1, 2, 3, 4, 5]), (13, [0, 2, 4, 6, 8, 10, 12])):
            page = opened(browser, synthetic.report(text=60, layers=layers, sides=1))
            for number in range(4):
                named = f"[...document.querySelectorAll('#figures .below')[{number}].children]"
                assert page.js(f"{named}.map((each) => Number(each.textContent))") == expected
            page.close()

    def test_of_one_token_it_says_that_nothing_was_looked_at(self, browser: Browser) -> None:
        for recorded, words in ((True, "comes from the prompt's own pass"), (False, "was not recorded")):
            page = opened(browser, synthetic.report(sides=1, answer=1, recorded=recorded))
            assert words in page.js("document.querySelector('.card.a .hint').textContent")
            assert page.js("document.querySelector('.card.a .rests')") is None
            page.close()

    def test_charts_tell_numbers_and_choose(self, page: Page, two_sides: tuple[Report, Path]) -> None:
        report = two_sides[0]
        side = report.sides[0]
        assert report.preference is not None
        assert side.asked is not None
        fields = "document.querySelectorAll('#figures .field')"
        assert page.js(f"{fields}.length") == 4
        page.js("document.getElementById('charts').scrollIntoView()")
        page.js(f"{fields}[0].focus({{focusVisible: true}})")
        page.press("ArrowRight", "ArrowDown")
        assert tip(page).startswith("layer 1, head 1\n")
        assert f"image {percent(report.preference[1, 1, 1])}" in tip(page)
        page.js(f"{fields}[1].focus()")
        page.press("ArrowRight")
        assert f"madakv: {side.kept[1, 0].sum()} of {len(report.tokens)} entries" in tip(page)
        page.press("Enter")
        assert page.js("[report.state.layer, report.state.head]") == [1, 0]
        page.js(f"{fields}[2].focus()")
        page.press("End")
        assert f"asked {side.asked[3].sum()}, got {side.kept[3].sum()} · even share" in tip(page)
        page.js(f"{fields}[3].focus()")
        page.press("Home")
        assert side.stays is not None
        assert f"madakv: {percent(side.stays[0].mean())}" in tip(page)

    def test_the_data_is_downloaded_as_it_is(self, page: Page, two_sides: tuple[Report, Path]) -> None:
        report = two_sides[0]
        name = "madakv-report.json"
        data = json.loads(page.download(lambda: page.click("document.getElementById('download')"), name))
        assert (data["model"], data["tokens"]) == (report.model, report.tokens)
        assert data["modality"] == report.modality.tolist()
        for got, view in zip(data["views"], report.views, strict=True):
            assert got["tokens"] == view.tokens.tolist()
            assert np.array_equal(np.array(got["boxes"], np.float32), view.boxes)
        assert report.preference is not None
        assert np.array_equal(np.array(data["preference"], np.float32), report.preference)
        for got, side in zip(data["sides"], report.sides, strict=True):
            kept = np.zeros_like(side.kept)
            for layer, heads in enumerate(got["kept"]):
                for head, positions in enumerate(heads):
                    kept[layer, head, positions] = True
            assert np.array_equal(kept, side.kept)
            assert side.asked is not None
            assert side.looked is not None
            assert got["asked"] == side.asked.tolist()
            for glance, expected in zip(got["looked"], side.looked, strict=True):
                assert expected
                assert np.array_equal(glance["best"], expected.best)
                assert np.allclose(glance["weight"], expected.weight, atol=1e-5)
                assert np.allclose(glance["answer"], expected.answer, atol=1e-5)

    def test_light_and_dark(self, page: Page) -> None:
        ground = "getComputedStyle(document.body).backgroundColor"
        light = page.js(ground)
        page.scheme("dark")
        page.settle()
        dark = page.js(ground)
        assert sum(map(int, re.findall(r"\d+", light))) > 600 > 100 > sum(map(int, re.findall(r"\d+", dark)))
        page.click("document.getElementById('theme')")
        assert page.js(ground) == light

    @pytest.mark.parametrize("dark", [False, True])
    def test_a_phone_needs_no_scrolling_aside(
        self, browser: Browser, two_sides: tuple[Report, Path], dark: bool
    ) -> None:
        page = browser.page(two_sides[1], width=375, height=700, dark=dark)
        for change in ("{}", "{side: 2, layer: 1}", "{side: 0, chosen: {side: 0, row: 0, at: 1}}"):
            page.js(f"report.change({change})")
            page.settle()
            assert page.js("document.documentElement.scrollWidth") <= 375
        page.close()

    def test_what_anyone_wrote_is_text(self, browser: Browser) -> None:
        page = opened(browser, synthetic.hostile())
        page.js("document.querySelectorAll('details').forEach((each) => (each.open = true))")
        for change in ("{side: 2}", "{side: 1, chosen: {side: 1, row: 0, at: 1}}", "{chosen: null}"):
            page.js(f"report.change({change})")
            page.settle()
        page.js("report.prompt.point([...document.querySelectorAll('.token')].find((each) => each.n === 0))")
        assert "</script><script>window.__hacked=1" in tip(page)
        page.js("report.openPicture(0)")
        assert page.js("window.__hacked") is None
        assert page.js("document.querySelectorAll('script').length") == 2
        assert page.js("document.querySelectorAll('img[onerror], [src=x]').length") == 0
        shown = page.js("document.getElementById('pane').textContent")
        assert synthetic.HOSTILE[1] in shown
        assert "{{7*7}}" in shown
        assert "⟨U+202E⟩gnp.⟨U+200F⟩evil⟨U+2066⟩" in shown
        assert "nul\u2400 bell\u2407 esc\u241b del⟨U+007F⟩ line⟨U+2028⟩para⟨U+2029⟩" in shown
        assert "lone ⟨U+D83D⟩ and ⟨U+DE00⟩" in shown
        assert synthetic.HOSTILE[8] in shown
        assert page.js("document.title").startswith("What the cache kept: </script>")
        assert page.complaints() == []
        assert page.requests() == []
        page.close()

    def test_the_kept_patch_lies_on_the_bright_square(self, browser: Browser) -> None:
        row, column, rows, columns = 4, 7, 6, 9
        page = opened(browser, synthetic.bright_square(row, column))
        page.js("report.openPicture(0)")
        page.settle()
        left, top, width, height = page.box("document.querySelector('#large img')")
        assert page.box("document.querySelector('#large canvas')") == (left, top, width, height)
        assert width / height == pytest.approx(columns / rows, rel=0.01)
        # What is drawn over the grey picture: all in one place.
        seen = page.js(
            """(() => {
                const { width: w, height: h } = document.querySelector('#large canvas');
                const d = document.querySelector('#large canvas').getContext('2d').getImageData(0, 0, w, h).data;
                let [l, t, r, b] = [w, h, 0, 0];
                for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) {
                    if (d[4 * (y * w + x) + 3] <= 10) continue;
                    [l, r, t, b] = [Math.min(l, x), Math.max(r, x + 1), Math.min(t, y), Math.max(b, y + 1)];
                }
                const middle = 4 * (((t + b) >> 1) * w + ((l + r) >> 1));
                return [l / w, t / h, r / w, b / h, d[middle], d[middle + 3]];
            })()"""
        )
        expected = [column / columns, row / rows, (column + 1) / columns, (row + 1) / rows]
        assert seen[:4] == pytest.approx(expected, abs=0.005)
        assert seen[4:] == [255, 255]
        # And pointed at, it is the token that was kept.
        page.hover(left + width * (column + 0.5) / columns, top + height * (row + 0.5) / rows)
        page.settle()
        assert f"token {2 + row * columns + column} · kept by 4 of 4 heads" in tip(page)
        frame = page.box("document.querySelector('#large .cursor')")
        assert frame[0] == pytest.approx(left + width * column / columns, abs=1)
        assert frame[1] == pytest.approx(top + height * row / rows, abs=1)
        page.close()

    def test_what_is_not_known_or_not_recorded_is_said(self, browser: Browser) -> None:
        base = synthetic.report(sides=1, recorded=False)
        first, second, third = base.views
        views = [
            dataclasses.replace(first, known=False),
            View(second.title, None, second.tokens, second.boxes),
            third,
        ]
        page = opened(browser, dataclasses.replace(base, views=views))
        shown = page.js("document.body.innerText")
        assert shown.count("where these tokens lie in the picture is not known") == 1
        assert shown.count("was not recorded") == 4
        assert "What each asked for was not recorded" in shown
        assert page.js("document.querySelectorAll('.covered').length") == 1
        assert page.js("document.getElementById('which').hidden")
        assert "budget 20 %" in shown
        assert page.complaints() == []
        page.close()

    def test_a_budget_in_entries_is_told_so(self, browser: Browser) -> None:
        page = opened(browser, synthetic.bright_square(1, 1))
        assert "budget 3 entries" in page.js("document.querySelector('.card h2').textContent")
        page.close()

    @pytest.mark.parametrize(
        "report",
        [
            synthetic.report(text=1, pictures=0, layers=1, heads=1, sides=1, answer=1),
            synthetic.report(text=0, pictures=1, grid=1, layers=1, heads=1, sides=2, answer=0, recorded=False),
            synthetic.report(text=9, pictures=200, grid=2, size=32, sides=1),
        ],
        ids=["one token", "one patch and no answer", "200 pictures"],
    )
    def test_odd_sizes_open(self, browser: Browser, report: Report) -> None:
        page = opened(browser, report)
        page.js("report.change({layer: 0, head: 0})")
        page.settle()
        page.js("document.querySelector('#pane [tabindex=\"0\"]').focus()")
        page.press("End", "Home", "ArrowRight", "ArrowLeft")
        assert page.complaints() == []
        page.close()

    def test_a_long_prompt_stays_quick(self, browser: Browser) -> None:
        random = np.random.default_rng(0)
        base = synthetic.report(text=30_000, pictures=4, grid=24, layers=1, heads=1, recorded=False)
        shape = (28, 4, len(base.tokens))
        sides = [
            dataclasses.replace(side, kept=random.random(shape) < 0.2, layers=np.arange(28)) for side in base.sides
        ]
        page = opened(browser, dataclasses.replace(base, sides=sides))
        assert page.js("document.querySelectorAll('*').length") < 5000
        page.send("Performance.enable", timeDomain="threadTicks")

        def seconds() -> float:
            """Of the page's main thread: what else the machine does is not in it."""
            metrics = page.send("Performance.getMetrics")["metrics"]
            return next(float(each["value"]) for each in metrics if each["name"] == "TaskDuration")

        taken = []
        for change in ("layer: 3", "layer: 4", "layer: 4, head: 1", "side: 1", "side: 2", "side: 2, layer: -1"):
            before = seconds()
            page.js(f"report.change({{{change}}})")
            page.settle()
            taken.append(seconds() - before)
        assert sorted(taken)[len(taken) // 2] < 0.1, taken
        page.js("document.getElementById('pane').scrollTop = 1e7")
        page.until(f"Boolean({token(len(base.tokens) - 1)})")
        page.close()


def percent(share: float) -> str:
    value = 100 * float(share)
    return f"{value:.0f} %" if value >= 10 else f"{value:.1f} %"
