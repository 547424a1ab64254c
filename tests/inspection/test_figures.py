"""Pictures of numbers that are known: files, words in them, and what cannot be drawn."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from madakv.errors import InputError, MissingExtraError
from madakv.inspection.analysis import SUM, TOGETHER, Analysis, Seen, as_numbers
from madakv.inspection.figures import draw

HOSTILE = "$x_1^$ <script>alert('&amp;')</script> ‮[b]"


def seen(
    document: str = "d",
    task: str = "code",
    kinds: tuple[tuple[int, int], ...] = ((0, 6), (1, 20), (0, 4)),
    seed: int = 0,
    shape: tuple[int, int] = (3, 2),
) -> Seen:
    modality = np.concatenate([np.full(count, kind) for kind, count in kinds])
    paid = np.random.default_rng(seed).gamma(0.3, size=(*shape, len(modality)))
    paid /= paid.sum(-1, keepdims=True)
    return Seen(document, task, tuple(range(shape[0])), paid, modality, np.array([30.0, 10.0, 0.0, 0.0]))


def several() -> Analysis:
    analysis = Analysis("madakv at 20%")
    for document in range(3):
        for task in ("code", HOSTILE):
            analysis.add(seen(str(document), task, seed=document))
    return analysis


def words(path: Path) -> list[str]:
    root = ElementTree.parse(path).getroot()
    assert all(not child.tag.endswith("script") for child in root.iter())
    return ["".join(one.itertext()).strip() for one in root.iter("{http://www.w3.org/2000/svg}text")]


def has_margins(picture: Image.Image) -> bool:
    """Whether nothing is drawn over the edge."""
    grey = np.asarray(picture.convert("L"))
    return bool(min(grey[:3].min(), grey[-3:].min(), grey[:, :3].min(), grey[:, -3:].min()) == 255)


@pytest.mark.parametrize("name", ["concentration", "preference", "layers", "tasks"])
def test_names_are_text_in_pictures_as_wide_as_a_column(name: str, tmp_path: Path) -> None:
    figure = getattr(several(), name)()
    draw(figure, HOSTILE, tmp_path / name)
    draw(figure, HOSTILE, tmp_path / "again")
    said = words(tmp_path / f"{name}.svg")
    assert " ".join(HOSTILE.split()) in " ".join(said)
    assert any("%" in word for word in said)
    if name == "tasks":
        assert HOSTILE in said
        assert "(kept by madakv at 20%)" in said
    with Image.open(tmp_path / f"{name}.png") as picture:
        assert picture.width == 1020
        assert has_margins(picture)
    for kind in ("png", "svg"):
        assert (tmp_path / f"{name}.{kind}").read_bytes() == (tmp_path / f"again.{kind}").read_bytes()
    assert "<image" not in (tmp_path / f"{name}.svg").read_text()
    json.dumps(as_numbers(figure), allow_nan=False)


@pytest.mark.parametrize("shape", [(1, 1), (28, 4), (32, 32), (100, 1)])
def test_models_of_every_shape_fit(shape: tuple[int, int], tmp_path: Path) -> None:
    analysis = Analysis("random at 20%")
    analysis.add(seen(shape=shape, kinds=((0, 3), (1, 4), (2, 4), (3, 4), (0, 2))))
    for name in ("preference", "layers"):
        draw(getattr(analysis, name)(), "a name of many words " * 12, tmp_path / name)
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width == 1020
            assert picture.height < 2000
            assert has_margins(picture)


def test_cells_say_their_percentages(tmp_path: Path) -> None:
    analysis = Analysis("random at 20%")
    one = seen()
    one.attention[1, 0] = np.where(one.modality == 0, 0.04, 0.03)
    analysis.add(one)
    figure = analysis.preference()
    assert figure.prompt == pytest.approx(2 / 3)
    assert figure.plain[1][0] == pytest.approx(0.6)
    assert figure.per_token[1][0] == pytest.approx(3 / 7)
    draw(figure, "title", tmp_path / "preference")
    assert {"60", "43"} <= set(words(tmp_path / "preference.svg"))


def test_numbers_are_means_over_prompts_and_quartiles_over_heads() -> None:
    analysis, reads = Analysis("m"), [seen(seed=1), seen(seed=2, kinds=((0, 10), (1, 5), (0, 3)))]
    for read in reads:
        analysis.add(read)
    layers, curves = analysis.layers(), analysis.concentration()
    assert list(layers.demands) == ["text", "image", SUM]
    assert list(curves.curves) == ["text", "image", TOGETHER]
    assert (curves.curves["text"].tokens, curves.curves["image"].tokens) == (11.5, 12.5)
    for name, kind in (("text", 0), ("image", 1)):
        demands, needs = np.zeros((3, 2)), np.zeros((3, 2))
        for read in reads:
            own = read.attention[..., read.modality == kind]
            for at in np.ndindex(3, 2):
                ranked = np.sort(own[at])[::-1]
                count = next(k for k in range(1, len(ranked) + 1) if ranked[:k].sum() >= 0.9 * ranked.sum())
                demands[at] += count / len(read.modality) / 2
                needs[at] += count / len(ranked) / 2
        found = layers.demands[name]
        assert [demand.heads for demand in found] == pytest.approx(demands)
        assert [demand.mean for demand in found] == pytest.approx(demands.mean(1))
        assert [demand.spread.high for demand in found] == pytest.approx(np.percentile(demands, 75, axis=1))
        assert curves.curves[name].need.median == pytest.approx(np.median(needs))
        assert curves.curves[name].need.low == pytest.approx(np.percentile(needs, 25))
    heads = {name: np.array([demand.heads for demand in found]) for name, found in layers.demands.items()}
    assert heads[SUM] == pytest.approx(heads["text"] + heads["image"])


def test_tasks_are_ranked_by_attention_and_told_with_intervals() -> None:
    analysis = Analysis("madakv at 20%")
    for document in range(4):
        for task, tilt in (("text", 0.1), ("show", 10.0)):
            read = seen(str(document), task, seed=document)
            read.attention[..., read.modality == 1] *= tilt
            kept = np.array([10.0, 30.0 + document, 0, 0]) if task == "show" else np.array([3.0, 1.0, 0, 0])
            analysis.add(Seen(read.document, task, read.layers, read.attention, read.modality, kept))
    tasks = analysis.tasks().tasks
    assert list(tasks) == ["show", "text"]
    assert tasks["show"].kept.mean == pytest.approx(np.mean([30 / 40, 31 / 41, 32 / 42, 33 / 43]))
    assert tasks["show"].kept.interval is not None
    low, high = tasks["show"].kept.interval
    assert 30 / 40 <= low < tasks["show"].kept.mean < high <= 33 / 43
    assert tasks["text"].kept.interval == (0.25, 0.25)
    assert tasks["text"].prompt.mean == pytest.approx(2 / 3)
    assert tasks["text"].documents == 4


def test_text_alone_has_curves_and_layers_and_nothing_to_prefer(tmp_path: Path) -> None:
    analysis = Analysis("m")
    analysis.add(seen(kinds=((0, 1),)))
    assert list(analysis.concentration().curves) == list(analysis.layers().demands) == ["text"]
    assert analysis.concentration().curves["text"].need.median == 1.0
    for name in ("concentration", "layers"):
        draw(getattr(analysis, name)(), "one token", tmp_path / name)
    for name in ("preference", "tasks"):
        with pytest.raises(InputError, match=f"{name} compares .* the prompt is text alone; use a model"):
            getattr(analysis, name)()


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_attention_that_is_none_is_refused(value: float) -> None:
    analysis = Analysis("m")
    read = seen()
    read.attention[:] = value
    with pytest.raises(InputError, match="prompt 1 is all zero or no number: .* use --dtype float32"):
        analysis.add(read)


def test_a_head_that_pays_pictures_nothing_is_no_number_in_json() -> None:
    analysis = Analysis("m")
    read = seen()
    read.attention[..., read.modality == 1] = 0.0
    analysis.add(read)
    found = as_numbers(analysis.concentration())
    assert found["curves"]["image"]["need"] == {"median": None, "low": None, "high": None}
    assert as_numbers(analysis.layers())["demands"]["image"][0]["mean"] == 0.0


def test_a_head_that_pays_the_prompt_nothing_has_an_empty_cell(tmp_path: Path) -> None:
    analysis = Analysis("m")
    read = seen()
    read.attention[1, 0] = 0.0
    analysis.add(read)
    figure = analysis.preference()
    found = as_numbers(figure)
    assert found["plain"][1][0] is found["per_token"][1][0] is None
    assert found["plain"][1][1] is not None
    draw(figure, "title", tmp_path / "preference")
    assert "nan" not in words(tmp_path / "preference.svg")


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(package: str) -> None:
        raise PackageNotFoundError(package)

    monkeypatch.setattr("madakv.extras.distribution", missing)
    with pytest.raises(MissingExtraError, match=r"plots need matplotlib: pip install 'madakv\[plot\]'"):
        draw(several().layers(), "title", tmp_path / "layers")
