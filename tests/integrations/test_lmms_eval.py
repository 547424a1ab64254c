"""madakv inside the real lmms-eval: its scores are those that madakv computes by itself."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from madakv import bundled
from madakv.answering import answer
from madakv.errors import ConfigurationError, InputError, UnsupportedOptionError
from madakv.evaluation.milebench.catalogue import DATASETS
from madakv.evaluation.milebench.data import read
from madakv.evaluation.milebench.pictures import open_pictures
from madakv.evaluation.milebench.prompts import prompt
from madakv.evaluation.milebench.scores import score
from madakv.integrations.lmms_eval import tasks_folder
from madakv.methods import from_text
from madakv.prompts import model_inputs
from tests.milebench_documents import write_documents

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lmms_eval") is None,
    reason="lmms-eval is not installed here; scripts/lmms_eval_env.sh makes an environment that has it",
)

ASKED = ("MMCoQA", "ALFRED")
TASKS = ("milebench_mmcoqa", "milebench_alfred")
METHOD, BUDGET, LENGTH = "madakv:draft=2", 0.1, 8


@pytest.fixture(scope="module")
def milebench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The document of the bundled model in MileBench's layout, so that there are right answers."""
    root = tmp_path_factory.mktemp("milebench")
    write_documents(root, ASKED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MILEBENCH", str(root))
        patch.setenv("LMMS_EVAL_DATASETS_CACHE", str(root / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield root


@pytest.fixture(scope="module")
def expected(milebench: Path) -> dict[str, list[tuple[str, float, float]]]:
    """Answers and scores of madakv alone, by task."""
    model, processor = bundled.load()
    found: dict[str, list[tuple[str, float, float]]] = {}
    for task, name in zip(TASKS, ASKED, strict=True):
        found[task] = []
        for question in read(milebench, DATASETS[name]):
            inputs = model_inputs(processor, prompt(question), open_pictures(question))
            said = answer(model, processor, inputs, from_text(METHOD, BUDGET), max_new_tokens=LENGTH).text
            worth = score(DATASETS[name].metric, said, question.gold, question.choices)
            found[task].append((said, worth.official, worth.strict))
    scores = [official for rows in found.values() for _, official, _ in rows]
    assert 0 < sum(scores) < len(scores), "the comparison needs right and wrong answers"
    return found


def make(**arguments: Any) -> Any:
    from madakv.integrations.lmms_eval.model import MadaKV

    return MadaKV(**({"pretrained": str(bundled.model_path()), "device": "cpu"} | arguments))


def test_lmms_eval_finds_the_model_by_name() -> None:
    from lmms_eval.models import get_model

    assert get_model("madakv").__module__ == "madakv.integrations.lmms_eval.model"


def test_scores_are_those_of_madakv_alone(expected: dict[str, list[tuple[str, float, float]]]) -> None:
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    got = simple_evaluate(
        model="madakv",
        model_args=f"pretrained={bundled.model_path()},method={METHOD},budget={BUDGET},device=cpu",
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(tasks_folder()), include_defaults=False, model_name="madakv"),
        gen_kwargs=f"max_new_tokens={LENGTH}",
        log_samples=True,
        bootstrap_iters=0,
    )
    for task, rows in expected.items():
        samples = sorted(got["samples"][task], key=lambda sample: sample["doc_id"])
        assert [(s["filtered_resps"][0], s["official"], s["strict"]) for s in samples] == rows
        for place, metric in enumerate(("official", "strict"), 1):
            mean = sum(row[place] for row in rows) / len(rows)
            assert got["results"][task][f"{metric},none"] == pytest.approx(mean)
    assert got["throughput"]["avg_kept_share"] <= BUDGET


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_the_command_gives_the_same_scores(
    processes: int, expected: dict[str, list[tuple[str, float, float]]], tmp_path: Path
) -> None:
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)] if processes > 1 else []
    options = {
        "--model": "madakv",
        "--model_args": f"pretrained={bundled.model_path()},method={METHOD},budget={BUDGET}",
        "--tasks": ",".join(TASKS),
        "--include_path": str(tasks_folder()),
        "--gen_kwargs": f"max_new_tokens={LENGTH}",
        "--output_path": str(tmp_path),
    }
    words = [word for option in options.items() for word in option]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, *launcher, "-m", "lmms_eval", *words, "--log_samples"],
        env=environment,
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    for task, rows in expected.items():
        (file,) = tmp_path.rglob(f"*_samples_{task}.jsonl")
        samples = sorted(map(json.loads, file.read_text().splitlines()), key=lambda sample: sample["doc_id"])
        assert [(s["filtered_resps"], s["official"], s["strict"]) for s in samples] == rows


def test_what_cannot_be_meant_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="no argument draft"):
        make(draft=8)
    with pytest.raises(ConfigurationError, match="name a model"):
        make(pretrained=None)
    with pytest.raises(ConfigurationError, match="unknown method"):
        make(method="madak")
    with pytest.raises(UnsupportedOptionError, match="batch_size=4"):
        make(batch_size="4")


def test_an_answer_ends_where_its_task_says() -> None:
    sample = bundled.sample()
    content = [{"type": "image", "url": image} for image in sample.images]
    content.append({"type": "text", "text": f"{sample.text} {sample.demo.prompt}"})
    model = make(method="full")

    def ask(**settings: Any) -> Any:
        request = SimpleNamespace(
            args=("", lambda _: [{"role": "user", "content": content}], settings, 0, "t", "test")
        )
        model.task_dict = {"t": {"test": [None]}}
        (result,) = model.generate_until([request])
        return result

    whole = ask(max_new_tokens=8)
    assert whole.text == sample.demo.answer
    first, _, rest = whole.text.partition(" ")
    assert rest
    ended = ask(max_new_tokens=8, until=[" "])
    assert ended.text == first
    assert ended.token_counts == whole.token_counts
    assert ask(max_new_tokens=1).token_counts.output_tokens == 1


def test_under_several_processes_each_takes_its_own_device() -> None:
    from madakv.integrations.lmms_eval.model import MadaKV

    one = SimpleNamespace(world_size=2, accelerator=SimpleNamespace(device=torch.device("cuda", 1)))
    assert MadaKV._place(one, None) == MadaKV._place(one, "cuda") == MadaKV._place(one, "cuda:0") == "cuda:1"
    with pytest.raises(ConfigurationError, match="accelerate launch --cpu"):
        MadaKV._place(one, "cpu")


def test_tasks_that_compare_likelihoods_or_have_rounds_are_refused() -> None:
    model = make()
    with pytest.raises(UnsupportedOptionError, match="likelihoods"):
        model.loglikelihood([])
    with pytest.raises(UnsupportedOptionError, match="several rounds"):
        model.generate_until_multi_round([])


def test_data_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from madakv.integrations.lmms_eval_tasks.milebench import hooks

    monkeypatch.delenv("MILEBENCH", raising=False)
    with pytest.raises(InputError, match="environment variable MILEBENCH"):
        hooks.questions(None)
