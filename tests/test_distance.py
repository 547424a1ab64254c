"""Distances from the full cache against attention in plain loops."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

import madakv
from madakv import bundled
from madakv.evaluation.distance import (
    ORACLES,
    errors,
    oracle_plans,
    plans_of,
    read_with_answer,
    scores_of,
)
from madakv.evaluation.distances import distance_table, run_distances
from madakv.hf.replay import ReadPrompt
from madakv.methods import from_text
from tests import tiny

ANSWER = [7, 8, 9, 10]


def naive_error(model: torch.nn.Module, layers: list, plans: list, number: int) -> float:  # type: ignore[type-arg]
    """From the definition: softmax over kept prompt entries and earlier answer tokens, in float64."""
    layer, plan = layers[number], plans[number]
    key = torch.cat([layer.view.key, layer.key], dim=2)[0].double()
    value = torch.cat([layer.view.value, layer.value], dim=2)[0].double()
    N, G = layer.view.key.shape[2], layer.query.shape[1] // key.shape[0]
    full, kept = [], []
    for head in range(layer.query.shape[1]):
        stays = set(plan.indices[0][head // G].tolist())
        for q in range(layer.query.shape[2]):
            logits = key[head // G] @ layer.query[0, head, q].double() * layer.view.scaling
            seen = torch.tensor([j <= N + q for j in range(len(logits))])
            held = torch.tensor([j >= N or j in stays for j in range(len(logits))]) & seen
            for mask, out in ((seen, full), (held, kept)):
                out.append(logits.masked_fill(~mask, float("-inf")).softmax(0) @ value[head // G])
    wanted, got = torch.stack(full), torch.stack(kept)
    return float((got - wanted).norm() / wanted.norm())


def test_errors_are_those_of_the_definition() -> None:
    torch.manual_seed(6)
    model, inputs = tiny.llava(), tiny.document()
    layers = read_with_answer(model, inputs, ANSWER)
    for method in (from_text("snapkv:window_size=4", budget=0.3), from_text("madakv:safeguard=0.2", budget=0.2)):
        plans = plans_of(layers, method, scores_of(model, ReadPrompt.of(model, inputs), method))
        measured = errors(layers, plans, method)
        for number, error in enumerate(measured):
            assert error == pytest.approx(naive_error(model, layers, plans, number), rel=1e-4)
        with madakv.evict(model, method) as run:
            model(**inputs, use_cache=True)
        assert run.last is not None
        assert all(torch.equal(a.positions, b.positions) for a, b in zip(plans, run.last.plans, strict=True))


def test_nothing_is_lost_at_budget_one() -> None:
    torch.manual_seed(6)
    layers = read_with_answer(tiny.llava(), tiny.document(), ANSWER)
    assert max(errors(layers, plans_of(layers, from_text("full")))) < 1e-6


@pytest.mark.parametrize("decides", ORACLES)
def test_the_oracle_spends_the_same_and_is_nearer(decides: str) -> None:
    torch.manual_seed(6)
    layers = read_with_answer(tiny.llava(), tiny.document(), ANSWER)
    plans = plans_of(layers, from_text("random", budget=0.2))
    oracle = oracle_plans(layers, plans, decides)
    assert sum(int(plan.counts.sum()) for plan in oracle) == sum(int(plan.counts.sum()) for plan in plans)
    if decides in ("scores", "modalities"):
        assert all(torch.equal(a.counts, b.counts) for a, b in zip(oracle, plans, strict=True))
    assert sum(errors(layers, oracle)) < 0.8 * sum(errors(layers, plans))


def test_lookahead_sees_the_answers_queries() -> None:
    torch.manual_seed(6)
    model, inputs = tiny.llava(), tiny.document()
    first = tiny.greedy(model, inputs, 5)[0].tolist()
    layers = read_with_answer(model, inputs, first)
    method = from_text("h2o:lookahead=3", budget=0.2)
    with madakv.evict(model, method) as run:
        tiny.greedy(model, inputs, 5)
    assert run.last is not None
    for ours, real in zip(plans_of(layers, method), run.last.plans, strict=True):
        assert torch.equal(ours.positions, real.positions)


def test_a_run_resumes_and_makes_a_table(tmp_path: Path) -> None:
    model, processor = bundled.load()
    methods = [from_text("madakv"), from_text("lookm")]

    def run() -> list:  # type: ignore[type-arg]
        return run_distances(
            model,
            processor,
            suite_name="digits",
            model_name="bundled",
            methods=methods,
            samples=1,
            seed=0,
            out=tmp_path,
            progress=lambda done, total: None,
        )

    rows = run()
    packed = (tmp_path / "rows.jsonl.gz").read_bytes()
    written = gzip.decompress(packed)
    assert len(written.splitlines()) == len(rows) == 10
    assert run() == rows
    assert (tmp_path / "rows.jsonl.gz").read_bytes() == packed
    assert set(json.loads(written.splitlines()[0])["oracle"]) == set(ORACLES)
    table = distance_table(rows).splitlines()
    assert len(table) == 4
    assert table[0].count("layer") >= 4
