"""From a run to what its report shows, and the command that makes one."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import madakv
from madakv import bundled
from madakv.cli.app import app
from madakv.errors import ConfigurationError, InputError
from madakv.inspection.assemble import assemble
from madakv.loading import load
from madakv.prompts import model_inputs
from tests.tiny import llama


@cache
def loaded() -> tuple[Any, Any]:
    return load(None, device="cpu", dtype="auto")


@cache
def prompt() -> Any:
    sample = bundled.sample()
    return model_inputs(loaded()[1], f"{sample.text} {sample.demo.prompt}", list(sample.images))


def inspected(method: str = "madakv", inputs: Any = None, **options: Any) -> madakv.Run:
    model = loaded()[0]
    options = {"budget": 0.2, "record": True} | options
    with madakv.evict(model, method, **options) as run:
        model.generate(
            **(prompt() if inputs is None else inputs), min_new_tokens=4, max_new_tokens=8, do_sample=False
        )
    return run


def test_a_report_shows_what_was_kept() -> None:
    run, other = inspected(), inspected("snapkv", budget=0.1)
    kept, recording = run.last, run.recording
    assert kept is not None
    assert recording is not None
    found = assemble([run, other], loaded()[1])
    sample = bundled.sample()
    # The processor's own words around pictures aside, the text is there as it was written.
    written = "".join(found.tokens)
    assert all(word in written for word in sample.demo.prompt.split())
    assert [view.picture is not None for view in found.views] == [True] * len(sample.images)
    assert sorted(np.concatenate([view.tokens for view in found.views])) == np.flatnonzero(found.modality).tolist()
    side = found.sides[0]
    for layer, plan in enumerate(kept.plans):
        for head, positions in enumerate(plan.indices[0]):
            assert np.flatnonzero(side.kept[layer, head]).tolist() == positions.tolist()
            attention = recording.attention[layer][0, head].float()
            assert side.stays is not None
            expected = float(attention[positions].sum() / attention.sum())
            assert side.stays[layer, head] == pytest.approx(expected, abs=1e-3)
            assert side.asked is not None
            best = attention.sort(descending=True).values.double().cumsum(0)
            assert side.asked[layer, head] == int((best < 0.9 * best[-1]).sum()) + 1
    assert found.preference is not None
    np.testing.assert_allclose(found.preference.sum(-1), 1, atol=1e-4)
    assert found.sides[1].kept.sum() < side.kept.sum()
    assert (side.label, found.sides[1].label) == ("madakv", "snapkv")


def test_glances_are_what_steps_looked_at() -> None:
    run = inspected()
    assert run.recording is not None
    assert run.last is not None
    side = assemble([run], loaded()[1]).sides[0]
    assert side.looked is not None
    assert side.looked[0] is None, "the first token comes out of the prompt's own pass"
    assert len(side.looked) == len(side.answer) >= 2
    glance, step = side.looked[1], run.recording.steps[1]
    assert glance is not None
    whole = np.zeros(side.kept.shape)
    for layer, (looked, plan) in enumerate(zip(step, run.last.plans, strict=True)):
        start = 0
        for head, positions in enumerate(plan.indices[0]):
            whole[layer, head, positions] = looked.entries[start : start + len(positions)].float()
            start += len(positions)
    np.testing.assert_allclose(glance.mean, whole.mean((0, 1)), atol=1e-4)
    np.testing.assert_allclose(whole.sum(-1) + glance.answer, 1, atol=5e-3)
    assert (glance.best[0, 0, 0], glance.weight[0, 0, 0]) == (
        int(whole[0, 0].argmax()),
        pytest.approx(whole[0, 0].max(), abs=1e-4),
    )


def test_padding_is_not_shown_and_rows_are_told_apart() -> None:
    processor = loaded()[1]
    short = model_inputs(processor, "image", list(bundled.sample().images[:1]))
    long = model_inputs(processor, "image " * 40, [])
    missing = long["input_ids"].shape[1] - short["input_ids"].shape[1]
    assert missing > 0
    pixels = {"pixel_values": short["pixel_values"]}
    batch = pixels | {
        name: torch.cat([torch.nn.functional.pad(short[name], (missing, 0)), long[name]])
        for name in ("input_ids", "attention_mask")
    }
    run = inspected(inputs=batch, budget=0.5)
    first, second = (assemble([run], processor, row) for row in (0, 1))
    assert len(first.tokens) == short["input_ids"].shape[1]
    assert len(second.tokens) == long["input_ids"].shape[1]
    assert (len(first.views), len(second.views)) == (1, 0)
    assert first.sides[0].kept.shape[-1] == len(first.tokens)
    for together, own in ((first, short), (second, long)):
        alone = assemble([inspected(inputs=own, budget=0.5)], processor)
        side, expected = together.sides[0], alone.sides[0]
        assert (side.rows, expected.rows) == (2, 1), "bytes are those of the cache, which holds both"
        assert (side.kept == expected.kept).all()
        assert side.answer == expected.answer
        assert side.looked is not None
        assert expected.looked is not None
        assert len(side.looked) >= 3
        for glance, wanted in zip(side.looked[1:3], expected.looked[1:3], strict=True):
            assert glance is not None
            assert wanted is not None
            np.testing.assert_allclose(glance.mean, wanted.mean, atol=1e-3)
            np.testing.assert_allclose(glance.answer, wanted.answer, atol=1e-3)
        for view, same in zip(together.views, alone.views, strict=True):
            assert (view.tokens == same.tokens).all()
    with pytest.raises(InputError, match="row 2 of a batch of 2"):
        assemble([run], processor, 2)


def test_without_recording_the_rest_is_there() -> None:
    found = assemble([inspected(record=False), inspected("full", budget=None, record=False)], loaded()[1])
    assert found.preference is None
    assert found.sides[0].looked is None
    assert found.sides[1].kept.all()
    assert found.views[0].picture is not None


def test_what_cannot_be_shown_is_said(tmp_path: Path) -> None:
    model, processor = loaded()
    with madakv.evict(model) as run, pytest.raises(InputError, match="nothing was generated"):
        run.report(tmp_path / "a.html", processor)
    other = inspected(inputs=model_inputs(processor, "image", []))
    with pytest.raises(InputError, match="different prompts"):
        inspected().report(tmp_path / "a.html", processor, beside=other)
    with madakv.evict(llama(), budget=0.5) as run:
        embedded = llama().get_input_embeddings()(torch.tensor([[5, 6, 7]])).detach()
        llama().generate(inputs_embeds=embedded, max_new_tokens=2)
    with pytest.raises(InputError, match="embeddings"):
        run.report(tmp_path / "a.html", processor)
    with madakv.evict(llama(), budget=0.5) as run:
        llama().generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2)
    with pytest.raises(ConfigurationError, match="no processor was found for 'LlamaForCausalLM'"):
        run.report(tmp_path / "a.html")
    assert not list(tmp_path.iterdir())


# -- madakv inspect


def command(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["inspect", *arguments])


def test_the_command_makes_one_page(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    result = command("--methods", "madakv,snapkv", "--budget", "0.2", "--out", str(out))
    assert result.exit_code == 0, result.output
    page = out.read_text()
    assert page.startswith("<!doctype html>") or page.startswith("<!DOCTYPE html>")
    assert "snapkv" in page
    assert str(out) in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods", "madakv,snapkv,h2o"], "a report shows one or two; got 3"),
        (["--methods", "madakv,snapkv", "--budget", "0.2,0.1"], "got 4"),
        (["--methods", "madakw"], "madakw"),
        (["--budget", "7.5"], "7.5"),
        (["--image", "nowhere.png", "--prompt", "x"], "no such image file"),
        (["--prompt", ""], "empty"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, arguments: list[str], words: str) -> None:
    out = tmp_path / "report.html"
    result = command(*arguments, "--out", str(out))
    assert result.exit_code == 2
    assert words in result.output
    assert "Traceback" not in result.output
    assert not out.exists()


def test_where_no_page_can_be_written_nothing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("madakv.cli.inspect.load", lambda *_, **__: pytest.fail("a model was loaded"))
    for out, words in ((tmp_path, "not of a folder"), (tmp_path / "no" / "a.html", "no such folder")):
        result = command("--out", str(out))
        assert (result.exit_code, words in result.output) == (2, True), result.output


def test_a_page_that_cannot_be_written_is_one_line() -> None:
    # Whoever runs as root is allowed everything, but for this.
    result = command("--prompt", "image", "--max-new-tokens", "2", "--out", "/proc/madakv.html")
    assert result.exit_code == 2
    assert "/proc/madakv.html" in result.output
    assert "Traceback" not in result.output


def test_prompts_of_every_size(tmp_path: Path) -> None:
    """No picture, one token, and more pictures than anybody looks at."""
    picture = tmp_path / "a.png"
    Image.new("RGB", (30, 20), "red").save(picture)
    cases = {
        "none": ["--prompt", "image code"],
        "one": ["--prompt", "image"],
        "many": ["--prompt", "show", *["--image", str(picture)] * 60],
    }
    for name, arguments in cases.items():
        out = tmp_path / f"{name}.html"
        result = command(*arguments, "--out", str(out), "--max-new-tokens", "3")
        assert result.exit_code == 0, result.output
        assert out.stat().st_size < 10 << 20


# -- what a run left behind and what was said have to be of one prompt


class _BrokenError(Exception):
    pass


class _Breaks:
    """A streamer whose reader goes away after the prompt was read."""

    def __init__(self) -> None:
        self.told = 0

    def put(self, _: Any) -> None:
        self.told += 1
        if self.told > 1:
            raise _BrokenError

    def end(self) -> None:
        pass


@pytest.mark.parametrize("method", ["snapkv", "full"])
@pytest.mark.parametrize("how", ["exception", "forward"])
def test_another_prompt_read_since_is_not_shown_as_the_last_answer(method: str, how: str) -> None:
    model, processor = loaded()
    own = {} if method == "full" else {"budget": 0.2, "record": True}
    with madakv.evict(model, method, **own) as run:
        model.generate(**prompt(), max_new_tokens=4)
        assemble([run], processor)
        other = dict(prompt()) | {"input_ids": prompt()["input_ids"].clone()}
        other["input_ids"][0, -3] = 5
        if how == "forward":
            with torch.no_grad():
                model(**other)
        else:
            with pytest.raises(_BrokenError):
                model.generate(**other, max_new_tokens=4, min_new_tokens=4, streamer=_Breaks())
    with pytest.raises(InputError, match="right after generate"):
        assemble([run], processor)


def test_a_second_turn_leaves_the_first_as_it_was() -> None:
    model, processor = loaded()
    with madakv.evict(model, "snapkv", budget=0.2, record=True) as run:
        out = model.generate(**prompt(), max_new_tokens=4, min_new_tokens=4, return_dict_in_generate=True)
        before = assemble([run], processor).sides[0]
        later = torch.cat([out.sequences, torch.tensor([[5, 6, 7]])], 1)
        model.generate(later, past_key_values=out.past_key_values, max_new_tokens=4)
    after = assemble([run], processor).sides[0]
    assert after.answer == before.answer
    assert (after.kept == before.kept).all()


@pytest.mark.parametrize("method", ["snapkv", "full"])
def test_answers_of_beams_are_those_of_their_prompts(method: str) -> None:
    model, processor = loaded()
    batch = {name: torch.cat([value, value]) for name, value in prompt().items()}
    batch["input_ids"][1, -2] = 9
    with madakv.evict(model, method, budget=None if method == "full" else 0.2) as run:
        out = model.generate(**batch, max_new_tokens=4, num_beams=3, num_return_sequences=2, do_sample=False)
    assert run.last is not None
    rows, N = run.last.modality.shape
    assert (rows, len(out)) == (6, 4)
    for row in range(4):
        found = assemble([run], processor, row)
        words = [processor.tokenizer.decode([token]) for token in batch["input_ids"][row // 2, -3:].tolist()]
        assert [word.strip() for word in found.tokens[-3:]] == words
        special = set(processor.tokenizer.all_special_ids)
        spoken = [processor.tokenizer.decode([t]) for t in out[row, N:].tolist() if t not in special]
        assert [piece.strip() for piece in found.sides[0].answer] == spoken
    with pytest.raises(InputError, match="row 4 of a batch of 4"):
        assemble([run], processor, 4)


def test_runs_of_two_models_are_no_comparison() -> None:
    """What the question attends to is taken of one run, and would be told of both."""
    one, other = inspected(), inspected()
    assert other.exchange is not None
    other.exchange = replace(other.exchange, name="another/model")
    with pytest.raises(InputError, match="two models.*another/model"):
        assemble([one, other], loaded()[1])


def test_runs_of_other_rows_pictures_or_padding_are_no_comparison() -> None:
    processor = loaded()[1]
    run = inspected()
    batch = inspected(inputs={name: torch.cat([value, value]) for name, value in prompt().items()})
    with pytest.raises(InputError, match="row 1 of a batch of 1"):
        assemble([batch, run], processor, 1)
    pictures = dict(prompt()) | {"pixel_values": prompt()["pixel_values"].flip(-1)}
    other = inspected(inputs=pictures)
    with pytest.raises(InputError, match="different prompts.*pixel_values"):
        assemble([run, other], processor)
    # Some families have another name for them.
    for one, inputs in ((run, prompt()), (other, pictures)):
        assert one.exchange is not None
        held = one.exchange._inputs | {"image_patches": partial(torch.clone, inputs["pixel_values"])}  # type: ignore[operator]
        one.exchange = replace(one.exchange, _inputs={k: v for k, v in held.items() if k != "pixel_values"})
    with pytest.raises(InputError, match="different prompts.*image_patches"):
        assemble([run, other], processor)
    run = inspected()
    hidden = dict(prompt()) | {"attention_mask": prompt()["attention_mask"].clone()}
    hidden["attention_mask"][0, :4] = 0
    with pytest.raises(InputError, match="different prompts"):
        assemble([run, inspected(inputs=hidden)], processor)


def test_a_head_that_pays_nothing_prefers_nothing() -> None:
    run = inspected()
    assert run.recording is not None
    run.recording.attention[0][:, 0] = 0
    found = assemble([run], loaded()[1])
    assert found.preference is not None
    assert found.sides[0].stays is not None
    assert np.isnan(found.preference[0, 0]).all()
    assert np.isnan(found.sides[0].stays[0, 0])
    assert np.isfinite(found.preference[0, 1:]).all()


def test_what_follows_the_end_is_no_answer() -> None:
    model, processor = loaded()
    N = prompt()["input_ids"].shape[1]
    batch = {name: torch.cat([value, value]) for name, value in prompt().items()}
    batch["input_ids"][1, -2] = 9
    with madakv.evict(model, "snapkv", budget=0.2, record=True) as run:
        free = model.generate(**batch, min_new_tokens=6, max_new_tokens=6, do_sample=False)[:, N:]
        end = next(int(token) for token in free[0] if token not in free[1])
        place = free[0].tolist().index(end)
        out = model.generate(**batch, max_new_tokens=6, do_sample=False, eos_token_id=[end, 2], pad_token_id=7)
    assert 7 in out[0, N:]
    side = assemble([run], processor).sides[0]
    assert len(side.answer) <= place + 1
    assert processor.tokenizer.decode([7]) not in [piece.strip() for piece in side.answer]


@pytest.mark.parametrize("processor", [object(), "abc", "pictures"])
def test_a_processor_without_words_is_one_line(tmp_path: Path, processor: Any) -> None:
    processor = loaded()[1].image_processor if processor == "pictures" else processor
    with pytest.raises(ConfigurationError, match="neither a tokenizer"):
        inspected().report(tmp_path / "a.html", processor)


def test_a_name_that_no_file_can_have_is_one_line() -> None:
    with pytest.raises(ConfigurationError, match="cannot write"):
        inspected().report("a\0.html", loaded()[1])  # type: ignore[arg-type]
