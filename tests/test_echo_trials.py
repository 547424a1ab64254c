"""Echoes that were tried: what they hear is what they say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import madakv
from madakv.methods.madakv import MadaKV
from madakv.modality import Modality
from madakv.reading import Reading, Scores, echo
from tests.scripts import load_script
from tests.tiny import llama

trials = load_script("echo_trials")


def test_turned_queries_stand_behind_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A query that is moved to another place is the one that its token's state has there."""
    model, most = llama(), trials.most_attention
    heard: list[tuple[Any, Tensor]] = []

    def noted(view: Any, queries: Tensor) -> Tensor:
        heard.append((view, queries))
        return most(view, queries)

    monkeypatch.setattr(trials, "most_attention", noted)
    monkeypatch.setattr(Reading, "settle", Reading.settle)
    trials.hear_turned()
    ids = torch.randint(3, 60, (1, 40), generator=torch.Generator().manual_seed(0))
    states: list[Tensor] = []
    attention = model.model.layers[0].self_attn
    hook = attention.register_forward_pre_hook(
        lambda _module, _args, kwargs: states.append(kwargs["hidden_states"]), with_kwargs=True
    )
    with madakv.evict(model, MadaKV(budget=0.5, echo=0)):
        model.generate(ids, max_new_tokens=1, do_sample=False)
    hook.remove()
    view, queries = heard[0]
    assert bool(queries.all())
    assert bool(view.mask.all())
    cos, sin = model.model.rotary_emb(states[0], torch.arange(40, 80)[None])
    plain = attention.q_proj(states[0]).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
    half = plain.shape[-1] // 2
    other = torch.cat([-plain[..., half:], plain[..., :half]], -1)
    torch.testing.assert_close(view.query, plain * cos[:, None] + other * sin[:, None])


def test_upper_layers_are_not_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scores, "add", Scores.add)
    monkeypatch.setattr(trials, "LOWER", 1)
    trials.hear_lower()
    scores: Any = Scores(MadaKV(), torch.device("cpu"))
    scores._psi = [torch.zeros(1, 1, 3), torch.zeros(1, 1, 3)]
    for layer in range(2):
        scores.add(layer, torch.ones(1, 1, 3))
    assert [float(psi.sum()) for psi in scores._psi] == [3.0, 0.0]


def test_runs_are_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(echo, "_chosen", echo._chosen)
    trials.hear_spread()
    modality = torch.full((1, 160), int(Modality.TEXT))
    places, heard = echo.echo_places(modality, torch.tensor([50]), torch.zeros(1, 160))
    assert bool(heard.all())
    assert places[0].tolist() == [*range(16), *range(48, 64), *range(96, 112)]


def test_the_end_of_the_text_alone_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(echo, "_chosen", echo._chosen)
    monkeypatch.setattr(trials, "NEWEST", 2)
    trials.hear_own()
    text = torch.tensor([[1, 1, 0, 1, 1, 0], [0, 0, 0, 0, 1, 0]], dtype=torch.bool)
    taken = echo._chosen(text, torch.tensor([3, 3]), torch.rand(2, 6))
    assert taken.tolist() == [[False, False, False, True, True, False], [False] * 4 + [True, False]]


def test_chunks_are_those_of_kvzip(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is heard in chunks of eight tokens changes what is kept."""
    model = llama()
    ids = torch.randint(3, 60, (1, 64), generator=torch.Generator().manual_seed(0))

    def kept() -> Tensor:
        with madakv.evict(model, MadaKV(budget=0.3, echo="all")) as run:
            model.generate(ids, max_new_tokens=1, do_sample=False)
        return torch.cat([plan.positions.flatten() for plan in run.last.plans])

    monkeypatch.setattr(MadaKV, "echo_chunk", MadaKV.echo_chunk)
    whole = kept()
    monkeypatch.setattr(trials, "CHUNK", (8, 1))
    trials.hear_chunks()
    assert not torch.equal(whole, kept())
