"""The suites of real text: whose documents are whose, what is asked, and who is right."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

import madakv
from madakv import ConfigurationError, InputError, bundled
from madakv.evaluation.documents.presentation import ONE_SIZE
from madakv.evaluation.losses import losses
from madakv.evaluation.records import Row
from madakv.evaluation.report import Results, write_report
from madakv.evaluation.runner import run_samples
from madakv.evaluation.samples import LOSS_TOKENS, Sample
from madakv.evaluation.suites import suite, suite_settings
from madakv.evaluation.summary import summarise
from madakv.evaluation.texts import TASKS, TEXT_LENGTHS
from madakv.evaluation.texts.corpus import SPLITS, sources, split_of
from madakv.evaluation.texts.judges import normalised
from madakv.evaluation.texts.passage import about_tokens, draw
from madakv.hf.replay import ReadPrompt, loss_on
from madakv.prompts import follow_up_ids, text_inputs

DOCUMENTS = 6
FIRST = list(SPLITS.values())


@cache
def drawn(seed: int, name: str = "text-1k", documents: int = DOCUMENTS) -> list[Sample]:
    return list(suite(name)(documents, seed, ONE_SIZE))


def of_task(name: str) -> list[Sample]:
    return [sample for seed in FIRST for sample in drawn(seed) if sample.dataset == name]


def told(samples: list[Sample]) -> list[tuple[str, ...]]:
    return [(one.dataset, one.id, one.prompt, one.follow_up or "", one.following or "", one.gold) for one in samples]


def test_equal_seeds_give_equal_documents() -> None:
    assert told(drawn(7)) == told(list(suite("text-1k")(DOCUMENTS, 7, ONE_SIZE)))
    assert told(drawn(7, documents=3))[len(TASKS) :] == told(drawn(8, documents=2))
    assert len({one.prompt for seed in FIRST for one in drawn(seed)}) == 3 * DOCUMENTS * len(TASKS)
    assert [one.dataset for one in drawn(0, documents=1)] == list(TASKS)


def test_the_texts_are_those_of_the_list() -> None:
    for source in sources():
        assert hashlib.sha256(source.text.encode()).hexdigest() == source.sha256
        assert source.licence.startswith(("public domain", "BSD", "MIT", "Apache"))
    by_split = {split: {one.kind for one in sources() if one.split == split} for split in SPLITS}
    assert by_split == {split: {"prose", "code"} for split in SPLITS}


def test_nothing_in_them_is_markup_for_a_model() -> None:
    for source in sources():
        assert not re.search(r"<image>|<\|\w+\|>|<s>|</s>", source.text)


@pytest.mark.parametrize("split", SPLITS)
def test_splits_share_no_source(split: str) -> None:
    own = [source.text for source in sources() if source.split == split]
    others = [source.text for source in sources() if source.split != split]
    for sample in drawn(SPLITS[split]):
        if sample.dataset == "loss":
            whole = sample.prompt + (sample.following or "")
            assert sum(whole in text for text in own) == 1
            assert not any(sample.prompt[:200] in text for text in others)


def test_seeds_are_of_one_split() -> None:
    assert [split_of(seed, 5) for seed in (0, 99_995, 100_000, 200_000, 299_995)] == [
        *("held-out", "held-out", "tune", "unseen", "unseen")
    ]
    for seed in (99_996, 199_999, 299_996, 300_000):
        with pytest.raises(ConfigurationError, match=f"{seed} to {seed + 4}.*100000 \\(tune\\)"):
            drawn(seed, documents=5)


@pytest.mark.parametrize("name", TEXT_LENGTHS)
def test_prompts_are_about_as_long_as_they_say(name: str) -> None:
    """Never longer: some models end at 8,192 positions."""
    for sample in drawn(100_000, name, documents=3):
        length = about_tokens(sample.prompt) + (LOSS_TOKENS if sample.following else 0)
        # Words of a list are several tokens each, which this count does not know.
        least = {"fwe": 0.3, "cwe": 0.7}.get(sample.dataset, 0.8)
        assert least * TEXT_LENGTHS[name] < length <= TEXT_LENGTHS[name], sample.dataset


CODES = ("niah_single", "niah_multikey_3", "niah_multikey_8", "second", "niah_multivalue")


@pytest.mark.parametrize("task", [*CODES, "qa", "copy"])
def test_the_answer_stands_in_the_text_once(task: str) -> None:
    for sample in of_task(task):
        golds = sample.gold.split() if task in CODES else [sample.gold]
        said = f" {normalised(sample.prompt)} "
        for gold in golds:
            assert said.count(f" {normalised(gold)} ") == 1, sample.prompt
        assert not any(gold in (sample.follow_up or "") for gold in golds)


@pytest.mark.parametrize(("task", "held"), [("niah_single", 1), ("niah_multikey_3", 3), ("niah_multikey_8", 8)])
def test_so_many_codes_are_in_the_text(task: str, held: int) -> None:
    for sample in of_task(task):
        assert len(set(re.findall(r"(?<!\d)\d{5}(?!\d)", sample.prompt))) == held


def test_the_second_question_tells_nothing_of_the_first() -> None:
    for sample in of_task("second"):
        assert sample.follow_up is not None
        place = re.search(r"of (\w+)\?|for (\w+)\?|with (\w+)\?", sample.follow_up)
        assert place is not None, sample.follow_up
        assert (place[1] or place[2] or place[3]) not in sample.prompt.rsplit("Question", 1)[1]


def test_variables_are_a_chain() -> None:
    for sample in of_task("vt"):
        names = sample.gold.split()
        assigned = re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", sample.prompt)
        assert [name for name, _ in assigned] == names
        assert [value for _, value in assigned][1:] == names[:-1]


def test_counted_words_are_the_most_frequent() -> None:
    for task in ("cwe", "fwe"):
        for sample in of_task(task):
            words = Counter(re.findall(r"[a-z]+", sample.prompt.split("\n\n", 1)[1].rsplit("\n\n", 1)[0]))
            golds = sample.gold.split()
            rest = max(times for word, times in words.items() if word not in golds)
            assert min(words[word] for word in golds) > rest


WRONG: dict[str, Callable[[Sample], list[str]]] = {
    **{
        task: lambda one: ["", one.gold[:-1], f"{one.gold} or 13579", f"{one.gold}0", one.gold[::-1] + "1"]
        for task in ("niah_single", "niah_multikey_3", "niah_multikey_8", "second")
    },
    "niah_multivalue": lambda one: ["", one.gold.split()[0], f"{one.gold} 13579", one.gold.replace(" ", "")],
    "vt": lambda one: ["", one.gold.split()[0], f"{one.gold} ZZZ", one.gold.lower()],
    "copy": lambda one: ["", one.gold.rsplit(" ", 1)[0], " ".join(reversed(one.gold.split()))],
    "qa": lambda one: ["", one.gold.rsplit(" ", 1)[0], f"x{one.gold}"],
    "cwe": lambda one: ["", "the", f"{one.gold} {re.findall('[a-z]{5,8}', one.prompt.rsplit('Question')[0])[7]}"],
    "fwe": lambda one: ["", "the", f"{one.gold} {sorted(set(re.findall('[a-z]{4}x', one.prompt)))[0]}"],
}


@pytest.mark.parametrize("task", [name for name in TASKS if name != "loss"])
def test_answers_are_judged_whole(task: str) -> None:
    for sample in of_task(task):
        for right in (sample.gold, f"The answer is: {sample.gold}.", f"{sample.gold}\n\n{sample.gold}"):
            assert sample.judge(right).scores == {"exact": 1.0}, right
        for wrong in WRONG[task](sample):
            if set(wrong.split()) != set(sample.gold.split()):
                assert sample.judge(wrong).scores == {"exact": 0.0}, wrong


def test_codes_are_read_as_people_write_them() -> None:
    (sample, *_) = of_task("niah_single")
    assert sample.judge(f"{sample.gold[:2]},{sample.gold[2:]}").scores == {"exact": 1.0}
    assert sample.judge(f"In 1851 it was {sample.gold}, and 12").scores == {"exact": 1.0}


def test_lines_are_put_between_sentences() -> None:
    for source in sources():
        passage = draw(random.Random(3), source, 600)
        held = passage.holding(random.Random(4), ("First one.", "Second one."))
        for line in ("First one.", "Second one."):
            before = held[: held.index(line)]
            assert before.rstrip(" #")[-1] in ".!?\"')\n" or source.kind == "code" or before.endswith("\n\n")
        assert held.index("First") < held.index("Second")
        assert re.sub(r"(# )?(First|Second) one\.\s", "", held).split() == passage.text.split()


def evaluate(out: Path, samples: list[Sample], methods: list[Any], stop_after: float = float("inf")) -> list[Row]:
    model, processor = bundled.load()
    calls = count(1)

    def progress(_done: int, _total: int) -> None:
        if next(calls) > stop_after:
            raise KeyboardInterrupt

    return run_samples(
        model,
        processor,
        samples=samples,
        settings={"suite": "text-1k"},
        model_name="bundled",
        methods=methods,
        out=out,
        max_new_tokens=4,
        progress=progress,
    )


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    samples, methods = drawn(100_000, documents=1), [madakv.Full(), madakv.MadaKV(budget=0.2)]
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path / "killed", samples, methods, stop_after=2 * len(TASKS) - 1)
    assert len((tmp_path / "killed" / "rows.jsonl").read_text().splitlines()) == 2 * len(TASKS) - 1
    with (tmp_path / "killed" / "rows.jsonl").open("a") as file:
        file.write('{"model": "bundled", "loss": 1.')
    resumed = evaluate(tmp_path / "killed", samples, methods)
    assert len(resumed) == 2 * len(TASKS)
    whole = evaluate(tmp_path / "whole", samples, methods)
    assert {repr(replace(row, seconds=0.0)) for row in resumed} == {repr(replace(row, seconds=0.0)) for row in whole}
    for row in resumed:
        assert row.error is None
        assert (row.loss is None, row.scores == {}) == ((False, True) if row.dataset == "loss" else (True, False))


WORDS = ["code", "n3", "4", "7", "1", ".", "owner", "n7", "n17", "red", "blue", "ring", "cross"]


def text_of(words: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def loss_sample() -> Sample:
    (sample,) = (one for one in drawn(0, documents=1) if one.dataset == "loss")
    return replace(sample, prompt=text_of(150, 1), following=" " + text_of(300, 2))


def test_the_loss_is_transformers_own_with_the_full_cache(tmp_path: Path) -> None:
    sample = loss_sample()
    (row,) = evaluate(tmp_path, [sample], [madakv.Full()])
    model, processor = bundled.load()
    ids = processor(text=sample.prompt + (sample.following or ""), return_tensors="pt")["input_ids"]
    read = processor(text=sample.prompt, return_tensors="pt")["input_ids"].shape[1]
    ids = ids[:, : read + LOSS_TOKENS]
    labels = ids.clone()
    labels[:, :read] = -100
    with torch.no_grad():
        wanted = model(input_ids=ids, labels=labels).loss
        by_hand = (
            -model(input_ids=ids).logits[0, read - 1 : -1].log_softmax(-1).gather(-1, ids[0, read:, None]).mean()
        )
    assert row.loss == pytest.approx(float(wanted), abs=1e-5)
    assert row.loss == pytest.approx(float(by_hand), abs=1e-5)
    assert (row.new_tokens, row.prompt_tokens, row.answer) == (LOSS_TOKENS, read, "")


@pytest.mark.parametrize("lookahead", [0, 4])
def test_the_loss_of_an_evicted_cache_does_not_depend_on_the_passes(lookahead: int, tmp_path: Path) -> None:
    """Many tokens in one pass meet the cache that single ones meet: evicted when the method has heard enough."""
    model, processor = bundled.load()
    sample = loss_sample()
    inputs, ids = text_inputs(processor, sample.prompt, sample.following or "", LOSS_TOKENS)
    prompt = ReadPrompt.of(model, inputs)
    method = madakv.MadaKV(budget=0.1, lookahead=lookahead)
    found = []
    for one_by_one in (lookahead, LOSS_TOKENS):
        with madakv.evict(model, method) as run:
            cache = prompt.evicted(model, run)
            found.append(loss_on(model, cache, prompt.logits, ids, one_by_one=one_by_one))
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    with madakv.evict(model, madakv.Full()) as run:
        whole = loss_on(model, prompt.evicted(model, run), prompt.logits, ids)
    assert abs(found[0] - whole) > 1e-3
    (row,) = evaluate(tmp_path, [sample], [method])
    assert row.loss == pytest.approx(found[0], abs=1e-6)


def test_too_little_that_follows_is_refused() -> None:
    _, processor = bundled.load()
    with pytest.raises(InputError, match="3 tokens of text and 2 that follow it"):
        text_inputs(processor, "code n3 4", " 7 1", 3)


def test_a_text_is_cut_where_its_tokens_end() -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(WordLevel({"[UNK]": 0, "one": 1, "two": 2, "three": 3, "thr": 4, "four": 5}, unk_token="[UNK]"))
    plain.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]")
    inputs, after = text_inputs(tokenizer, "one two thr", "ee four", 2)
    assert inputs["input_ids"].tolist() == [[1, 2]]
    assert inputs["attention_mask"].shape == (1, 2)
    assert after == [3, 5]


def test_a_second_question_is_a_turn_of_the_template() -> None:
    _, processor = bundled.load()
    tokenizer = processor.tokenizer
    plain = tokenizer("? code n3", add_special_tokens=False)["input_ids"]
    assert follow_up_ids(processor, "? code n3") == plain
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}? {{ m.content }} . {% else %}{{ m.content }} red "
        "{% endif %}{% endfor %}{% if add_generation_prompt %}owner{% endif %}"
    )
    said = tokenizer.convert_ids_to_tokens(follow_up_ids(tokenizer, "code n3"))
    assert [word for word in said if word.strip()] == ["red", "?", "code", "n3", ".", "owner"]
    tokenizer.chat_template = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    with pytest.raises(InputError, match="leaves out answers"):
        follow_up_ids(tokenizer, "code n3")


OLD = json.loads(
    '{"model": "m", "method": "A(budget=0.5)", "label": "a", "budget": 0.5, "dataset": "qa", "sample": "0", '
    '"document": "0", "group": "facts", "level": "1024", "images": 0, "gold": "x", "fingerprint": "f", '
    '"answer": "x", "scores": {"exact": 1.0}, "fault": null, "error": null, "prompt_tokens": 9, "kept_share": 0.5, '
    '"kv_bytes": 1, "kv_bytes_full": 2, "new_tokens": 3, "seconds": 0.1, "model_fingerprint": "f"}'
)


def rows_of(label: str, scores: dict[str, list[float]], lost: list[float | None]) -> list[Row]:
    named = Row(**OLD | {"label": label, "method": label})
    found = [
        replace(named, dataset=task, sample=str(n), document=str(n), scores={"exact": score})
        for task, own in scores.items()
        for n, score in enumerate(own)
    ]
    return found + [
        replace(
            named,
            dataset="loss",
            sample=str(n),
            document=str(n),
            scores={},
            loss=loss,
            error="OutOfMemoryError" if loss is None else None,
        )
        for n, loss in enumerate(lost)
    ]


def test_rows_from_before_there_were_losses_are_read() -> None:
    assert Row(**OLD).loss is None


def test_a_task_counts_where_the_full_cache_can_do_it(tmp_path: Path) -> None:
    full = rows_of("full", {"qa": [1, 1, 0, 1], "vt": [1, 0, 0, 1], "copy": [1, 1, 1, 1]}, [])
    own = rows_of("own", {"qa": [1, 0, 0, 1], "vt": [1, 1, 1, 1], "copy": [1, 0, 0, 0]}, [])
    lines = {line.label: line for line in summarise([*full, *own], **suite_settings("text-1k"))}
    assert lines["own"].left_out == lines["full"].left_out == ("vt",)
    assert lines["own"].datasets == {"qa": 0.5, "vt": 1.0, "copy": 0.25}
    assert lines["own"].average == 0.375
    assert lines["full"].average == 0.875
    assert lines["own"].of_full == pytest.approx(0.375 / 0.875)
    assert lines["own"].levels == {"1024": 0.375}
    assert {line.label: line.average for line in summarise([*full, *own])}["own"] == pytest.approx(1.75 / 3)
    results = Results([*full, *own], {"suite": "text-1k", **suite_settings("text-1k")}, [])
    table, _ = write_report(results, tmp_path, "title")
    assert "| qa | (vt) | copy |" in table
    assert "too few right: vt." in table
    assert json.loads((tmp_path / "summary.json").read_text())[1]["average"] == 0.375


def test_no_average_where_no_task_counts(tmp_path: Path) -> None:
    full = rows_of("full", {"vt": [1, 0, 0, 0]}, [])
    own = rows_of("own", {"vt": [1, 1, 1, 1]}, [])
    results = Results([*full, *own], {"counts_from": 0.6}, [])
    table, _ = write_report(results, tmp_path, "title")
    assert "| `own` | 50% | 50.0% | 100.0% | **-** |  | 4 |" in table
    assert not list(tmp_path.glob("*.png"))


def test_losses_are_apart_from_scores(tmp_path: Path) -> None:
    full = rows_of("full", {"qa": [1.0, 1.0, 1.0]}, [2.0, 3.0, 4.0])
    own = rows_of("own", {"qa": [1.0, 0.0, 1.0]}, [3.0, 3.0, None])
    assert [line.average for line in summarise([*full, *own])] == [1.0, pytest.approx(2 / 3)]
    whole, line = losses([*full, *own])
    assert (whole.loss, whole.of_full, whole.failed) == (3.0, 1.0, 0)
    assert (line.loss, line.of_full, line.paired, line.texts, line.failed) == (3.0, pytest.approx(1.2), 2, 3, 1)
    assert line.interval is not None
    assert line.interval[0] <= 1.2 <= line.interval[1]
    table, notes = write_report(Results([*full, *own], {}, []), tmp_path, "title")
    assert "m, next-token loss" in table
    assert "| `own` | 50% | 50.0% | 3.000 | 1.200 (" in table
    assert "m: 1 of 12 answers failed, 1 by OutOfMemoryError" in notes
    assert "own,0.5,0.500000,loss,,3.000000,1.200000" in (tmp_path / "report.csv").read_text()
    assert json.loads((tmp_path / "losses.json").read_text())[1]["loss"] == 3.0


def test_losses_alone_make_a_report(tmp_path: Path) -> None:
    table, _ = write_report(Results(rows_of("full", {}, [2.0]), {}, []), tmp_path, "title")
    assert "| `full` | 50% | 50.0% | 2.000 | 1.000 (1.000 to 1.000) | 1 | 0 |" in table
