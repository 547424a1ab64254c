"""Every rival against the loops of `reference`; merging and lookahead against the unmodified model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import madakv
from madakv import ConfigurationError, InputError, KeepPlan, Method, UnsupportedModelError, UnsupportedOptionError
from madakv.attention.ragged import ragged_partial, weights_on_prompt
from madakv.cache import RaggedEntries, Tail
from madakv.hf.cache import RaggedCache
from madakv.merge import merge_evicted, merge_into_nearest
from madakv.merge.nearest import merge_into_nearest_reference
from madakv.methods import resolve
from madakv.reading import Decisions, Revision, Scores
from madakv.reading.chunks import Chunks
from madakv.scoring import LayerView, Rotary
from madakv.scoring.entropy import cross_modal_entropy
from tests import tiny
from tests.allocate_reference import entries_reference
from tests.rivals import reference
from tests.rivals.loops import Keeps, Layer, Row, frequencies
from tests.tolerance import TOLERANCE, assert_same


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.no_grad():
        yield


# --- Prompts --------------------------------------------------------------------------------------------------

LONG = [0] * 5 + [1] * 9 + [0] * 7 + [1] * 11 + [0] * 8 + [1] * 3 + [0] * 6
PROMPTS: dict[str, list[list[int]]] = {
    "long": [LONG, [0] * 3 + [1] * 20 + [0] * 12],
    "text alone": [[0] * 23, [0] * 11],
    "pictures alone": [[1] * 17, [1] * 10],
    "all kinds": [[0, 0, 2, 2, 2, 0, 3, 3, 1, 1, 1, 0, 0, 0, 2, 2], [3, 0, 1, 1, 0]],
    "shorter than windows": [[0, 1, 1, 0, 0], [1, 0, 0]],
    "one and two tokens": [[0, 1], [0]],
}


def left_padded(rows: list[list[int]]) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[-1] * (width - len(row)) + row for row in rows])


def layers_of(modality: Tensor, *, L: int = 3, H: int = 2, G: int = 2, D: int = 4, seed: int = 0) -> list[LayerView]:
    """Random prefills, the later layers' attention the more peaked, so that layers differ in more than noise."""
    generator = torch.Generator().manual_seed(seed)
    B, N = modality.shape

    def states(heads: int) -> Tensor:
        return torch.randn(B, heads, N, D, generator=generator)

    rotary = Rotary(_turn, _waves(D), ((modality >= 0).cumsum(-1) - 1).clamp_min(0))
    return [
        LayerView(states(H * G), states(H) + 0.5, states(H), modality, scaling=0.4 + 0.3 * number, rotary=rotary)
        for number in range(L)
    ]


def _turn(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = states.chunk(2, -1)
    return states * cos[:, None] + torch.cat([-right, left], -1) * sin[:, None]


def _waves(D: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def waves(positions: Tensor) -> tuple[Tensor, Tensor]:
        angle = positions[..., None] * torch.tensor(frequencies(D)).repeat(2)
        return angle.cos(), angle.sin()

    return waves


def decided(method: Method, views: list[LayerView]) -> list[KeepPlan]:
    """As the cache asks for them: layer by layer, or all layers first if the method waits."""
    modality = views[0].modality
    scores = Scores(method, modality.device)
    decisions = Decisions(method, modality, heads=views[0].key.shape[1], layers=len(views))
    for number, view in enumerate(views):
        scores.add_layer(view)
        decisions.observe(view)
        if not method.waits:
            decisions.decide(scores.final(number))
    if method.waits:
        decisions.decide_all([scores.final(number) for number in range(len(views))])
    return decisions.plans


def as_lists(plans: list[KeepPlan], b: int) -> Keeps:
    return [[kept.tolist() for kept in plan.indices[b]] for plan in plans]


# --- Scores and decisions -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rival:
    """A method and the loops that say the same; `options` go to the loop that decides, `scoring` to the other."""

    method: Method
    score: Callable[..., Layer] | None
    keep: Callable[..., Keeps]
    options: dict[str, Any] = field(default_factory=dict)
    scoring: dict[str, Any] = field(default_factory=dict)


def rival(
    name: str, score: Any, keep: Any, shared: dict[str, Any] | None = None, more: dict[str, Any] | None = None
) -> Rival:
    """`shared` options are the method's and, where they take them, the loops'; `more` are the deciding loop's."""
    shared = shared or {}
    takes = {loop: set(inspect.signature(loop).parameters) for loop in (score, keep) if loop is not None}
    scoring = {option: value for option, value in shared.items() if option in takes.get(score, ())}
    options = {option: value for option, value in shared.items() if option in takes[keep]}
    return Rival(resolve(name, **shared), score, keep, options | (more or {}), scoring)


R = reference
RIVALS: dict[str, Rival] = {
    "streaming_llm": rival("streaming_llm", None, R.keep_streaming_llm),
    "streaming_llm without sinks": rival("streaming_llm", None, R.keep_streaming_llm, {"n_sink": 0}),
    "h2o": rival("h2o", R.score_h2o, R.keep_h2o),
    "h2o, max over groups": rival("h2o", R.score_h2o, R.keep_h2o, {"groups": "max"}),
    "snapkv": rival("snapkv", R.score_snapkv, R.keep_snapkv),
    "snapkv, short window": rival("snapkv", R.score_snapkv, R.keep_snapkv, {"window_size": 3, "kernel_size": 3}),
    "snapkv, question": rival("snapkv", R.score_snapkv, R.keep_snapkv, {"window_size": "question", "groups": "max"}),
    "snapkv, mean": rival(
        "snapkv", R.score_snapkv, R.keep_snapkv, {"window_size": 4, "kernel_size": 5, "pooling": "mean"}
    ),
    "snapkv, text pools": rival(
        "snapkv", R.score_snapkv, R.keep_snapkv, {"window_size": 4, "pooling_scope": "text"}, {"scope": "text"}
    ),
    "snapkv, kinds pool": rival(
        "snapkv",
        R.score_snapkv,
        R.keep_snapkv,
        {"window_size": 4, "pooling_scope": "modality"},
        {"scope": "modality"},
    ),
    "pyramidkv": rival(
        "pyramidkv",
        lambda row, window_size=8: R.score_snapkv(row, window_size=window_size),
        R.keep_pyramidkv,
        {"window_size": 8},
    ),
    "pyramidkv, flatter": rival(
        "pyramidkv",
        lambda row, window_size=2: R.score_snapkv(row, window_size=window_size),
        R.keep_pyramidkv,
        {"window_size": 2, "steepness": 3.0},
    ),
    "adakv": rival("adakv", R.score_snapkv, R.keep_adakv),
    "adakv, short window": rival("adakv", R.score_snapkv, R.keep_adakv, {"window_size": 3}),
    "adakv, no safeguard": rival("adakv", R.score_snapkv, R.keep_adakv, {"window_size": 2, "safeguard": 0.0}),
    "adakv, even": rival("adakv", R.score_snapkv, R.keep_adakv, {"window_size": 2, "safeguard": 1.0}),
    "lookm": rival("lookm", R.score_h2o, R.keep_lookm),
    "meda": rival("meda", R.score_h2o, R.keep_meda),
    "prefixkv": rival("prefixkv", R.score_prefixkv, R.keep_prefixkv),
    "prefixkv without sinks": rival("prefixkv", R.score_prefixkv, R.keep_prefixkv, {"n_sink": 0}),
    "mixkv": rival("mixkv", R.score_mixkv, R.keep_mixkv),
    "mixkv, short window": rival("mixkv", R.score_mixkv, R.keep_mixkv, {"window_size": 3}),
    "keydiff": rival("keydiff", R.score_keydiff, R.keep_keydiff),
    "expected_attention": rival("expected_attention", R.score_expected_attention, R.keep_expected_attention),
    "expected_attention, means alone": rival(
        "expected_attention",
        R.score_expected_attention,
        R.keep_expected_attention,
        {"n_future_positions": 3, "n_sink": 0, "use_covariance": False, "use_vnorm": False},
    ),
    "expected_attention, heads compete": rival(
        "expected_attention",
        R.score_expected_attention,
        R.keep_expected_attention,
        {"n_future_positions": 20, "n_sink": 1, "epsilon": 0.02, "safeguard": 0.2},
    ),
    "kvzip": rival("kvzip", None, R.keep_kvzip),
    "kvzip, uniform": rival("kvzip", None, R.keep_kvzip, {"budgets": "uniform", "n_sink": 0}),
    "tgv_kv": rival("tgv_kv", R.score_tgv_kv, R.keep_tgv_kv),
    "tgv_kv without sinks": rival("tgv_kv", R.score_tgv_kv, R.keep_tgv_kv, {"n_sink": 0}),
    "madakv-paper": rival("madakv-paper", R.score_madakv, R.keep_madakv_paper),
    "madakv-paper, other theta": rival("madakv-paper", R.score_madakv, R.keep_madakv_paper, {"theta": 0.5}),
    "mpa": rival("mpa", R.score_madakv, R.keep_madakv_paper, None, {"compensate": False}),
    "hcc": rival("hcc", R.score_madakv, R.keep_madakv_paper, None, {"adapt": False}),
}


BY_LAYERS = {"meda", "tgv_kv"}
"""Methods whose layers share by their attention, which scores alone do not tell."""


def test_every_published_method_has_a_reference() -> None:
    ours = {"full", "madakv", "random"}
    assert {case.method.name for case in RIVALS.values()} == set(madakv.list_methods()) - ours


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("name", [name for name, case in RIVALS.items() if case.score is not None])
def test_scores_are_those_of_the_loops(name: str, prompt: str) -> None:
    case, modality = RIVALS[name], left_padded(PROMPTS[prompt])
    (view,) = layers_of(modality, L=1, seed=5)
    got = case.method.score(view)
    assert got.dtype == torch.float32
    assert case.score is not None
    for b in range(2):
        want = torch.tensor(case.score(Row.of(view, b), **case.scoring), dtype=torch.float64)
        if want.abs().max() > 1e-9:
            assert_same(got[b], want)
        else:
            # A token alone is like all others, and one that is kept whatever its score has none.
            assert got[b].abs().max() < 1e-6
        assert (got[b][:, modality[b] < 0] == 0).all(), "padding scores nothing"


def test_scores_follow_a_mask() -> None:
    """Tokens of one picture that see each other, as in Gemma."""
    modality = left_padded(PROMPTS["all kinds"])
    N = modality.shape[1]
    both_pictures = (modality[:, :, None] > 0) & (modality[:, None] > 0)
    mask = ((torch.ones(N, N).tril() > 0) | both_pictures) & (modality >= 0)[:, None]
    (view,) = layers_of(modality, L=1)
    view = replace(view, mask=mask[:, None])
    for name in ("h2o", "snapkv", "mixkv", "prefixkv"):
        score = RIVALS[name].score
        assert score is not None
        for b in range(2):
            want = torch.tensor(score(Row.of(view, b)), dtype=torch.float64)
            assert_same(RIVALS[name].method.score(view)[b], want)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("name", RIVALS)
def test_decisions_are_those_of_the_loops(name: str, prompt: str) -> None:
    views = layers_of(left_padded(PROMPTS[prompt]), seed=7)
    for budget in (0.5, 0.2, 0.05, 3):
        assert_decides_as_the_loops(RIVALS[name], views, budget)


def assert_decides_as_the_loops(case: Rival, views: list[LayerView], budget: float | int) -> None:
    """The loops start from the method's own psi, so that no rounding decides between close scores."""
    method = replace(case.method, budget=budget)
    scores = Scores(method, views[0].modality.device)
    for view in views:
        scores.add_layer(view)
    psi = [scores.final(number).double().tolist() for number in range(len(views))]
    plans = decided(method, views)
    for b in range(len(views[0].modality)):
        options = dict(case.options)
        if method.name == "meda":
            options["entropies"] = [reference.entropy_meda(Row.of(view, b)) for view in views]
        if method.name == "tgv_kv":
            options["looked_up"] = [reference.looked_up_tgv_kv(Row.of(view, b)) for view in views]
        kinds = views[0].modality[b].tolist()
        want = case.keep([layer[b] for layer in psi], kinds, budget, **options)
        assert as_lists(plans, b) == want, f"row {b}"


kinds = st.lists(st.sampled_from([0, 0, 1, 1, 2]), min_size=1, max_size=14)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(sorted(RIVALS)),
    rows=st.lists(kinds, min_size=1, max_size=3),
    heads=st.sampled_from([(1, 1), (1, 3), (2, 2), (3, 1)]),
    L=st.integers(1, 5),
    budget=st.one_of(st.floats(0.01, 1.0), st.integers(1, 20)),
    seed=st.integers(0, 999),
)
def test_decisions_of_small_odd_prompts(
    name: str, rows: list[list[int]], heads: tuple[int, int], L: int, budget: float | int, seed: int
) -> None:
    views = layers_of(left_padded(rows), L=L, H=heads[0], G=heads[1], seed=seed)
    assert_decides_as_the_loops(RIVALS[name], views, budget)


@pytest.mark.parametrize("name", [name for name, case in RIVALS.items() if case.method.name not in BY_LAYERS])
def test_ties_go_to_the_earlier_token(name: str) -> None:
    case, modality = RIVALS[name], left_padded(PROMPTS["long"])
    psi = [torch.where(modality >= 0, 0.25, 0.0)[:, None].expand(2, 2, -1) for _ in range(3)]
    plans = madakv.allocate(psi, modality, case.method, budget=0.2)
    for b in range(2):
        layers = [layer[b].tolist() for layer in psi]
        assert as_lists(plans, b) == case.keep(layers, modality[b].tolist(), 0.2, **case.options)


@pytest.mark.parametrize("budget", [0.6, 0.3])
@pytest.mark.parametrize("name", [name for name, case in RIVALS.items() if case.method.name not in BY_LAYERS])
def test_decisions_on_peaked_scores(name: str, budget: float) -> None:
    """A few tokens anywhere hold most of a layer's attention, the more so the deeper it is; heads agree."""
    case, modality = RIVALS[name], left_padded([LONG[:40], LONG[10:35]])
    scores = torch.rand(3, 2, 1, modality.shape[1]) * (modality >= 0)[:, None]
    psi = [(layer ** (4 * number)).expand(-1, 2, -1) for number, layer in enumerate(scores, start=1)]
    plans = madakv.allocate(psi, modality, case.method, budget=budget)
    for b in range(2):
        layers = [layer[b].tolist() for layer in psi]
        assert as_lists(plans, b) == case.keep(layers, modality[b].tolist(), budget, **case.options)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_entropy_between_modalities(prompt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (view,) = layers_of(left_padded(PROMPTS[prompt]), L=1)
    want = [reference.entropy_meda(Row.of(view, b)) for b in range(2)]
    whole = cross_modal_entropy(view)
    assert whole.tolist() == pytest.approx(want, rel=1e-5, abs=1e-6)
    monkeypatch.setattr("madakv.scoring.entropy._SCRATCH_ELEMENTS", 1)
    assert cross_modal_entropy(view).tolist() == pytest.approx(want, rel=1e-5, abs=1e-6)


def test_meda_gives_most_to_the_layer_of_most_entropy() -> None:
    """`layers_of` sharpens attention from layer to layer, so entropy and budgets fall."""
    views = layers_of(left_padded([LONG, LONG]), L=4)
    sizes = torch.stack([plan.counts.sum(-1) for plan in decided(resolve("meda", budget=0.2), views)])
    assert (sizes.diff(dim=0) < 0).all()


@pytest.mark.parametrize("name", sorted(BY_LAYERS))
def test_scores_without_layers_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} shares the budget by the layers' attention"):
        madakv.allocate([torch.rand(1, 2, 9)], torch.zeros(1, 9, dtype=torch.int64), name)


def test_tgv_kv_gives_layers_what_text_looks_up_in_them() -> None:
    """The text behind a picture sees nothing of it in the second layer, and nothing else in the third."""
    (view,) = layers_of(left_padded([LONG, LONG]), L=1)
    hidden = (view.modality > 0)[:, None, None, :]
    causal = torch.ones(len(LONG), len(LONG)).tril().bool()[None, None]
    text_rows = (view.modality == 0)[:, None, :, None]
    own = torch.eye(len(LONG), dtype=torch.bool)
    blind = replace(view, mask=causal & (~text_rows | ~hidden))
    gazing = replace(view, mask=causal & (~text_rows | hidden | own))
    sizes = torch.stack(
        [plan.counts.sum(-1) for plan in decided(resolve("tgv_kv", budget=0.3), [view, blind, gazing])]
    )
    assert (sizes[1] == 0).all()
    assert (sizes[2] > sizes[0]).all()


def test_tgv_kv_keeps_text_before_any_picture() -> None:
    views = layers_of(left_padded([LONG, LONG]))
    modality = views[0].modality[0]
    for plan in decided(resolve("tgv_kv", budget=0.4), views):
        for kept in plan.indices[0]:
            if (modality[kept] > 0).any():
                assert set((modality == 0).nonzero()[:, 0].tolist()) <= set(kept.tolist())


@pytest.mark.parametrize(("chunk_size", "n_sink"), [(2000, 4), (30, 4), (12, 0), (7, 3)])
def test_kvzip_scores_by_the_prompt_read_again(chunk_size: int, n_sink: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the unmodified model's attention over the prompt and its repetition."""
    model, N = tiny.llama(), 30
    prompt = torch.randint(5, 97, (1, N))
    model.set_attn_implementation("eager")
    try:
        attentions = model(torch.cat([prompt, prompt], 1), output_attentions=True).attentions
    finally:
        model.set_attn_implementation("sdpa")
    found: list[Tensor] = []
    plain = Scores.add

    def add(self: Scores, layer: int, psi: Tensor) -> None:
        found.append(psi[0])
        plain(self, layer, psi)

    monkeypatch.setattr(Scores, "add", add)
    with madakv.evict(model, "kvzip", budget=0.3, chunk_size=chunk_size, n_sink=n_sink) as run:
        model(prompt)
    wanted = [
        R.score_kvzip(layer[0].double().tolist(), prompt=N, chunk_size=chunk_size, n_sink=n_sink, heads=2)
        for layer in attentions
    ]
    for got, want in zip(found, wanted, strict=True):
        assert_same(got, torch.tensor(want))
    assert run.last is not None
    assert as_lists(list(run.last.plans), 0) == R.keep_kvzip(wanted, [0] * N, 0.3, n_sink=n_sink)


def test_kvzip_leaves_alone_what_it_did_not_read_again() -> None:
    """Of 48 tokens, 16 are read again: those of the last chunk, and of no other."""
    modality = torch.zeros(1, 48, dtype=torch.int64)
    (view,) = layers_of(torch.zeros(1, 64, dtype=torch.int64), L=1)
    chunks = Chunks(16, 0, modality, torch.arange(32, 48)[None])
    most = chunks.most(view, torch.ones(1, 16, dtype=torch.bool), 48)
    assert (most[..., :32] == 0).all()
    assert (most[..., 32:] > 0).all()


def test_expected_attention_needs_to_know_the_rotation() -> None:
    (view,) = layers_of(left_padded(PROMPTS["long"]), L=1)
    with pytest.raises(UnsupportedModelError, match="LayerView.rotary"):
        resolve("expected_attention").score(replace(view, rotary=None))


def test_expected_attention_cannot_decide_again() -> None:
    with pytest.raises(ConfigurationError, match="expected_attention needs the whole prompt"):
        Revision.check(resolve("expected_attention"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("streaming_llm", {"n_sink": -1}, "n_sink must be"),
        ("prefixkv", {"n_sink": 1.5}, "n_sink must be"),
        ("snapkv", {"window_size": 0}, "window_size must be"),
        ("snapkv", {"kernel_size": 4}, "kernel_size must be odd"),
        ("snapkv", {"pooling": "median"}, "pooling must be one of"),
        ("snapkv", {"pooling_scope": "image"}, "pooling_scope must be one of"),
        ("pyramidkv", {"steepness": 0.5}, "steepness must be"),
        ("adakv", {"safeguard": 1.1}, "safeguard must be"),
        ("lookm", {"merging": "median"}, "merging must be one of"),
        ("h2o", {"groups": "median"}, "groups must be one of"),
        ("h2o", {"lookahead": -1}, "lookahead must be"),
        ("h2o", {"lookahead": True}, "lookahead must be"),
        ("mixkv", {"window_size": "answer"}, "window_size must be"),
        ("expected_attention", {"n_future_positions": 0}, "n_future_positions must be"),
        ("expected_attention", {"n_sink": -1}, "n_sink must be"),
        ("expected_attention", {"use_covariance": 1}, "use_covariance must be"),
        ("expected_attention", {"use_vnorm": "no"}, "use_vnorm must be"),
        ("expected_attention", {"epsilon": -0.1}, "epsilon must be"),
        ("expected_attention", {"safeguard": 2}, "safeguard must be"),
        ("expected_attention", {"use_vnorm": False, "epsilon": 0.1}, "epsilon=0.1 changes nothing"),
        ("tgv_kv", {"n_sink": -1}, "n_sink must be"),
        ("kvzip", {"echo": 0}, "echo must be 'all', 'auto' or a positive int"),
        ("kvzip", {"echo": "always"}, "echo must be 'all', 'auto' or a positive int"),
        ("kvzip", {"budgets": "pooled"}, "budgets must be one of"),
        ("kvzip", {"chunk_size": 0}, "chunk_size must be"),
        ("kvzip", {"n_sink": 0.5}, "n_sink must be"),
        ("random", {"proxies": 0}, "proxies must be"),
        ("random", {"seed": "x"}, "seed must be"),
    ],
)
def test_bad_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        resolve(name, **options)


# --- Random ---------------------------------------------------------------------------------------------------


def test_random_keeps_the_newest_of_the_question_and_anything_else_equally_often() -> None:
    modality = left_padded([LONG, LONG[8:]])
    views = layers_of(modality, L=1) * 400
    plans = decided(resolve("random", budget=0.2), views)
    for b in range(2):
        N = int((modality[b] >= 0).sum())
        C = entries_reference(0.2, N)
        kept = torch.zeros(modality.shape[1])
        for plan in plans:
            for positions in plan.indices[b]:
                assert len(positions) == C
                kept[positions] += 1
        sure = min(C // 2, 6)
        assert (kept[-sure:] == 800).all()
        share = kept[modality.shape[1] - N : -sure] / 800
        expected = (C - sure) / (N - sure)
        # Five standard deviations of 800 draws.
        assert (share - expected).abs().max() < 5 * (expected * (1 - expected) / 800) ** 0.5


def test_random_gives_equal_prompts_equal_plans() -> None:
    views = layers_of(left_padded([[0] * 12 + [1] * 8 + [0] * 5] * 2))
    plans = decided(resolve("random", budget=0.2), views)
    assert as_lists(plans, 0) == as_lists(plans, 1)


def test_random_is_seeded() -> None:
    views = layers_of(left_padded(PROMPTS["long"]))
    one, same, other = (as_lists(decided(resolve("random", seed=s), views), 0) for s in (1, 1, 2))
    assert one == same
    assert one != other
    assert one[0] != one[1], "layers draw anew"


# --- What holds for every method ------------------------------------------------------------------------------

WHOLE_ACCOUNT = {case.method.name for case in RIVALS.values()} | {"random", "full"}
WHOLE_ACCOUNT -= {"madakv-paper", "hcc"}
"""Methods that keep all they are allowed; compensation may spare some where the last layer cannot hold it."""


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("name", madakv.list_methods())
def test_the_account_holds_for_every_method(name: str, prompt: str) -> None:
    rows, (H, L) = PROMPTS[prompt], (3, 2)
    views = layers_of(left_padded(rows), L=L, H=H, G=1)
    for budget in [1.0] if name == "full" else [1.0, 0.5, 0.2, 0.05, 0.01, 4]:
        plans = decided(resolve(name, budget=budget), views)
        again = decided(resolve(name, budget=budget), views)
        assert len(plans) == L
        for b, row in enumerate(rows):
            N = len(row)
            average = entries_reference(budget, N)
            kept = sum(int(plan.counts[b].sum()) for plan in plans)
            assert kept <= average * H * L
            if name in WHOLE_ACCOUNT or average == N:
                assert kept == average * H * L
            assert as_lists(plans, b) == as_lists(again, b)
            for layer in as_lists(plans, b):
                for positions in layer:
                    assert positions == sorted(set(positions))
                    assert all(views[0].modality[b, i] >= 0 for i in positions)


@pytest.mark.parametrize("name", sorted(set(madakv.list_methods()) - {"full", "random"}))
def test_a_row_is_decided_as_if_alone(name: str) -> None:
    method, modality = resolve(name, budget=0.3), left_padded(PROMPTS["long"])
    views = layers_of(modality)
    together = decided(method, views)
    for b, row in enumerate(PROMPTS["long"]):
        pad = modality.shape[1] - len(row)
        alone = [
            replace(
                view,
                **{name: getattr(view, name)[b : b + 1, :, pad:] for name in ("query", "key", "value")},
                modality=view.modality[b : b + 1, pad:],
                rotary=replace(view.rotary, positions=view.rotary.positions[b : b + 1, pad:]),
            )
            for view in views
            if view.rotary is not None
        ]
        shifted = [[[i + pad for i in kept] for kept in layer] for layer in as_lists(decided(method, alone), 0)]
        assert as_lists(together, b) == shifted


@pytest.mark.parametrize(
    "name", ["prefixkv", "lookm", "streaming_llm", "h2o", "keydiff", "expected_attention", "tgv_kv"]
)
def test_padding_is_never_looked_at(name: str) -> None:
    method, modality = resolve(name, budget=0.3), left_padded(PROMPTS["long"])
    views = layers_of(modality)
    hidden = (modality < 0)[:, None, :, None]
    noisy = [replace(v, key=v.key + 50 * hidden, value=v.value - 50 * hidden) for v in views]
    for b in range(2):
        assert as_lists(decided(method, views), b) == as_lists(decided(method, noisy), b)


# --- Merging --------------------------------------------------------------------------------------------------

MERGES = ["mean", "pivot", "weighted"]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 12),
    kept=st.integers(0, 12),
    merged=st.integers(0, 12),
    how=st.sampled_from(MERGES),
    seed=st.integers(0, 10**6),
    aligned=st.booleans(),
)
def test_merging_is_that_of_the_loops(n: int, kept: int, merged: int, how: Any, seed: int, aligned: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(n, 3, generator=generator), torch.randn(n, 5, generator=generator)
    if aligned:
        # Exact ties in likeness, and keys of length zero.
        keys = torch.eye(4)[torch.randint(0, 4, (n,), generator=generator), :3] * 2
    order = torch.randperm(n, generator=generator)
    stay, gone = order[:kept].sort().values, order[kept : kept + merged].sort().values
    got = merge_into_nearest(keys, values, stay, gone, how)
    want = merge_into_nearest_reference(keys, values, stay, gone, how)
    for states, wanted in zip(got, want, strict=True):
        assert states.shape == wanted.shape
        assert states.dtype == torch.float32
        assert torch.allclose(states.double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("how", "want"), [("mean", [4.0, 2.0]), ("pivot", [3.0, 1.0]), ("weighted", [2.5, 1.0])])
def test_merging_by_hand(how: Any, want: list[float]) -> None:
    """Equations 10 to 12 with one kept and one evicted entry, whose keys have a cosine of one half."""
    keys = torch.tensor([[1.0, 0.0], [1.0, 3.0**0.5]])
    values = torch.tensor([[2.0, 0.0], [6.0, 4.0]])
    _, merged = merge_into_nearest(keys, values, torch.tensor([0]), torch.tensor([1]), how)
    assert merged[0].tolist() == pytest.approx(want)


def test_merging_in_chunks_and_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, values = torch.randn(30, 8), torch.randn(30, 6)
    kept, merged = torch.arange(0, 30, 3), torch.arange(1, 30, 3)
    whole = merge_into_nearest(keys, values, kept, merged, "pivot")
    low = merge_into_nearest(keys.bfloat16(), values.bfloat16(), kept, merged, "pivot")
    want = merge_into_nearest_reference(keys.bfloat16(), values.bfloat16(), kept, merged, "pivot")
    assert low[0].dtype == low[1].dtype == torch.bfloat16
    assert_same(low[0], want[0], 1e-2)
    assert_same(low[1], want[1], 1e-2)
    monkeypatch.setattr("madakv.merge.nearest._SCRATCH_ELEMENTS", 1)
    chunked = merge_into_nearest(keys, values, kept, merged, "pivot")
    assert_same(chunked[0], whole[0], 1e-6)
    assert_same(chunked[1], whole[1], 1e-6)


def test_only_pictures_are_merged_and_every_head_for_itself() -> None:
    modality = left_padded(PROMPTS["all kinds"])
    (view,) = layers_of(modality, L=1)
    keep = (torch.rand(2, 2, modality.shape[1]) < 0.4) & (modality >= 0)[:, None]
    keep[1, 1] = False
    plan = KeepPlan.from_mask(keep)
    keys, values = merge_evicted(view.key, view.value, plan, modality, "mean")
    start = 0
    for b in range(2):
        for h in range(2):
            kept = plan.indices[b][h]
            gone = torch.tensor([i for i in range(modality.shape[1]) if modality[b, i] > 0 and not keep[b, h, i]])
            want = merge_into_nearest_reference(view.key[b, h], view.value[b, h], kept, gone.long(), "mean")
            part = slice(start, start + len(kept))
            assert torch.allclose(keys[part].double(), want[0], atol=1e-6)
            assert torch.allclose(values[part].double(), want[1], atol=1e-6)
            start += len(kept)
    assert start == len(keys) == len(values)


def padded_documents() -> dict[str, Tensor]:
    """Two rows for `llava()`, the second shorter."""
    torch.manual_seed(4)
    one, two = tiny.document(9, 3), tiny.document(6, 3)
    pad = one["input_ids"].shape[1] - two["input_ids"].shape[1]
    rows = {
        name: torch.cat([one[name], torch.nn.functional.pad(two[name], (pad, 0))])
        for name in ("input_ids", "attention_mask")
    }
    return rows | {"pixel_values": torch.cat([one["pixel_values"], two["pixel_values"]])}


def row_of(inputs: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """One row of `padded_documents` without its padding."""
    n = int(inputs["attention_mask"][row].sum())
    tokens = inputs["input_ids"][row : row + 1, -n:]
    pictures = inputs["pixel_values"][3 * row : 3 * row + 3]
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "pixel_values": pictures}


@pytest.mark.parametrize("lookahead", [0, 2])
@pytest.mark.parametrize(("method", "how"), [("lookm", "pivot"), ("lookm", "weighted"), ("meda", "mean")])
def test_the_cache_holds_merged_entries(method: str, how: str, lookahead: int) -> None:
    model, inputs = tiny.llava(), padded_documents()
    # Not by a forward pass of its own, which would count padding in positions.
    full = model.generate(**inputs, max_new_tokens=1, return_dict_in_generate=True).past_key_values
    with madakv.evict(model, method, budget=0.3, merging=how, lookahead=lookahead) as run:
        cache = model.generate(
            **inputs, max_new_tokens=lookahead + 1, do_sample=False, return_dict_in_generate=True
        ).past_key_values
    assert run.last is not None
    changed = False
    for number, plan in enumerate(run.last.plans):
        entries = cache.layers[number].memory.entries
        for b in range(2):
            for h in range(2):
                kept = plan.indices[b][h]
                gone = [i for i in range(full.get_seq_length()) if run.last.modality[b, i] > 0 and i not in kept]
                keys, values = full.layers[number].keys[b, h], full.layers[number].values[b, h]
                want = merge_into_nearest_reference(keys, values, kept, torch.tensor(gone), how)  # type: ignore[arg-type]
                start = int(entries.starts[b, h])
                part = slice(start, start + len(kept))
                assert_same(entries.keys[part], want[0], 1e-4)
                assert_same(entries.values[part], want[1], 1e-4)
                changed = changed or not torch.allclose(want[0].float(), keys[kept], atol=1e-3)
    assert changed, "the case must be one where something is merged"


def test_merging_none_drops_what_is_evicted() -> None:
    model, inputs = tiny.llava(), tiny.document()
    full = model(**inputs).past_key_values
    with madakv.evict(model, "lookm", budget=0.3, merging="none") as run:
        cache = model(**inputs).past_key_values
    assert run.last is not None
    for number, plan in enumerate(run.last.plans):
        want = torch.cat([full.layers[number].keys[0, h, plan.indices[0][h]] for h in range(2)])
        assert_same(cache.layers[number].memory.entries.keys, want)


# --- Lookahead ------------------------------------------------------------------------------------------------

DECIDED_BY_SCORES = sorted(set(madakv.list_methods()) - {"full", "random", "kvzip"} - BY_LAYERS)
"""Of `kvzip`, what is recorded has not heard the echo yet."""


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """psi of every layer, as methods score it from now on."""
    scores: list[Tensor] = []
    plain = Scores.add_layer

    def add_layer(self: Scores, view: LayerView, *, seek: bool = False) -> Tensor | None:
        scores.append(self._method.score(view))
        return plain(self, view, seek=seek)

    monkeypatch.setattr(Scores, "add_layer", add_layer)
    return scores


def unmodified(model: Any, inputs: dict[str, Tensor], steps: int) -> tuple[Tensor, tuple[tuple[Tensor, ...], ...]]:
    """The full cache's tokens, [B, steps], and the attention of each pass and layer, from the eager model."""
    model.set_attn_implementation("eager")
    try:
        out = model.generate(
            **inputs, max_new_tokens=steps, do_sample=False, return_dict_in_generate=True, output_attentions=True
        )
    finally:
        model.set_attn_implementation("sdpa")
    return out.sequences[:, inputs["input_ids"].shape[1] :], out.attentions


def paid_to_prompt(passes: tuple[tuple[Tensor, ...], ...], layer: int, N: int) -> Tensor:
    """[B, 2, N]: summed over the given passes' queries, averaged over the four heads of a group."""
    attention = [step[layer][..., :N].double().sum(2) for step in passes]
    return torch.stack(attention).sum(0).unflatten(1, (2, 4)).mean(2)


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("name", DECIDED_BY_SCORES)
def test_lookahead_adds_what_the_first_tokens_attend_to(name: str, n: int, recorded: list[Tensor]) -> None:
    model, inputs = tiny.llava(), padded_documents()
    N = inputs["input_ids"].shape[1]
    tokens, attentions = unmodified(model, inputs, n + 1)
    # What is recorded is psi before it is weighed by values.
    weighed: dict[str, dict[str, Any]] = {
        "madakv": {"values": False, "answer_weight": 1.0, "context": 0, "echo": 0},
        "expected_attention": {"use_vnorm": False},
    }
    options = weighed.get(name, {})
    with madakv.evict(model, name, budget=0.25, lookahead=n, **options) as run:
        got = tiny.greedy(model, inputs, n + 3)
    assert run.last is not None
    assert torch.equal(got[:, : n + 1], tokens), "nothing is evicted yet"
    assert len(recorded) == 3
    psi = [scores + paid_to_prompt(attentions[1:], layer, N) for layer, scores in enumerate(recorded)]
    for got_plan, want in zip(
        run.last.plans, madakv.allocate(psi, run.last.modality, name, budget=0.25), strict=True
    ):
        assert got_plan.counts.tolist() == want.counts.tolist()
        assert torch.equal(got_plan.positions, want.positions)


def test_lookahead_from_the_eager_model_alone() -> None:
    """H2O's sum over the prompt's queries just goes on over the answer's."""
    model, inputs = tiny.llava(), tiny.document()
    N = inputs["input_ids"].shape[1]
    _, attentions = unmodified(model, inputs, 6)
    with madakv.evict(model, "h2o", budget=0.2, lookahead=5) as run:
        tiny.greedy(model, inputs, 8)
    assert run.last is not None
    modality = run.last.modality

    def wanted(passes: int) -> Keeps:
        psi = [paid_to_prompt(attentions[:passes], layer, N) for layer in range(3)]
        return as_lists(madakv.allocate(psi, modality, "h2o", budget=0.2), 0)

    assert as_lists(list(run.last.plans), 0) == wanted(6)
    assert wanted(6) != wanted(1), "the case must be one where looking ahead changes something"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("softcap", "sinks"), [(None, None), (1.5, None), (None, [-1.0, 0.5, 1.0, 2.0])])
def test_weights_on_the_prompt(softcap: float | None, sinks: list[float] | None, dtype: torch.dtype) -> None:
    """Softmax over prompt, tail and sink, of which the prompt's share is told; rows of unequal length."""
    B, H, G, N, Q, t, D = 2, 2, 2, 9, 1, 3, 4
    modality = left_padded([[0] * 9, [1] * 5])
    query, key, value = (torch.randn(B, heads, n, D).to(dtype) for heads, n in ((H * G, Q), (H, N), (H, N)))
    entries = RaggedEntries.gather(key, value, KeepPlan.everything(modality, H))
    tail = Tail()
    tail.append(torch.randn(B, H, t, D).to(dtype), torch.randn(B, H, t, D).to(dtype), N)
    sink = None if sinks is None else torch.tensor(sinks)
    part = ragged_partial(query, entries, tail, scaling=0.7, softcap=softcap, sinks=sink)
    got = weights_on_prompt(query, entries, part.lse, scaling=0.7, softcap=softcap)
    for b in range(B):
        seen = key[b, :, modality[b] >= 0].double()
        for h in range(H):
            for g in range(G):
                keys = torch.cat([seen[h], tail.keys[b, h].double()])
                logits = keys @ query[b, h * G + g, 0].double() * 0.7
                if softcap is not None:
                    logits = softcap * torch.tanh(logits / softcap)
                if sink is not None:
                    logits = torch.cat([logits, sink[h * G + g].double().view(1)])
                assert_same(got[b][h, g, 0], logits.softmax(0)[: len(seen[h])], TOLERANCE[dtype])


def test_lookahead_puts_off_eviction_and_then_frees_the_prompt() -> None:
    model, (tokens, _) = tiny.llama(), tiny.ids(40)
    with madakv.evict(model, "snapkv", budget=0.2, lookahead=2) as run:
        out = model(tokens)
        cache: RaggedCache = out.past_key_values
        sizes, noted = [cache.prompt_nbytes], [run.last is not None]
        for _ in range(3):
            out = model(out.logits[:, -1:].argmax(-1), past_key_values=cache)
            sizes.append(cache.prompt_nbytes)
            noted.append(run.last is not None)
    assert noted == [False, False, True, True]
    assert sizes == [cache.full_nbytes] * 2 + [cache.full_nbytes // 5] * 2
    assert run.last is not None
    assert run.last.kv_bytes == cache.full_nbytes // 5


@pytest.mark.parametrize("name", ["meda", "prefixkv", "tgv_kv"])
def test_methods_that_see_all_layers_evict_with_the_prefill(name: str) -> None:
    model, inputs = tiny.llava(), tiny.document()
    with madakv.evict(model, name, budget=0.25) as run:
        cache = model(**inputs).past_key_values
        assert run.last is not None
    assert cache.prompt_nbytes == cache.full_nbytes // 4
    assert not cache.reads_prompt


@pytest.mark.parametrize("stop", ["length", "end of sequence"])
def test_an_answer_shorter_than_the_lookahead_evicts_all_the_same(stop: str, recorded: list[Tensor]) -> None:
    model, inputs = tiny.llava(), tiny.document()
    tokens, attentions = unmodified(model, inputs, 3)
    how = {"max_new_tokens": 3} if stop == "length" else {"max_new_tokens": 9, "eos_token_id": int(tokens[0, 2])}
    assert int(tokens[0, 2]) not in tokens[0, :2].tolist()
    with madakv.evict(model, "h2o", budget=0.25, lookahead=20) as run:
        out = model.generate(**inputs, do_sample=False, return_dict_in_generate=True, **how)
    assert torch.equal(out.sequences[:, -3:], tokens)
    cache = out.past_key_values
    assert run.last is not None
    assert not cache.reads_prompt
    assert cache.prompt_nbytes == run.last.kv_bytes == cache.full_nbytes // 4
    N = inputs["input_ids"].shape[1]
    psi = [scores + paid_to_prompt(attentions[1:], layer, N) for layer, scores in enumerate(recorded)]
    wanted = madakv.allocate(psi, run.last.modality, "h2o", budget=0.25)
    assert as_lists(list(run.last.plans), 0) == as_lists(wanted, 0)


@pytest.mark.parametrize(
    "given_as",
    [
        "ids",
        "embeddings",
        "embeddings, ids named None",
    ],
)
def test_a_second_turn_evicts_first(given_as: str) -> None:
    """What a turn of many tokens reads, and what is kept, is as if the lookahead had ended with the answer."""
    model, (tokens, mask) = tiny.llama(), tiny.ids(40, 27)
    answer, turn = torch.randint(5, 97, (2, 2)), torch.randint(5, 97, (2, 6))
    more = {"input_ids": turn}
    if given_as != "ids":
        more = {"inputs_embeds": model.get_input_embeddings()(turn)}
    if given_as == "embeddings, ids named None":
        more["input_ids"] = None

    def converse(lookahead: int) -> tuple[Tensor, list[Keeps]]:
        with madakv.evict(model, "h2o", budget=0.2, lookahead=lookahead) as run:
            cache = model(tokens, attention_mask=mask).past_key_values
            for i in range(2):
                seen = torch.nn.functional.pad(mask, (0, i + 1), value=1)
                model(answer[:, i : i + 1], attention_mask=seen, past_key_values=cache)
            assert (run.last is None) == (lookahead > 2)
            whole = torch.nn.functional.pad(mask, (0, 8), value=1)
            logits = model(**more, attention_mask=whole, past_key_values=cache).logits
        assert run.last is not None
        return logits, [as_lists(list(run.last.plans), b) for b in range(2)]

    (got, kept), (want, wanted) = converse(9), converse(2)
    assert kept == wanted
    assert_same(got, want)


@pytest.mark.parametrize("name", ["madakv", "h2o"])
def test_generate_goes_on_after_a_short_answer(name: str) -> None:
    model, (tokens, _) = tiny.llama(), tiny.ids(40)
    turn = torch.randint(5, 97, (1, 5))
    with madakv.evict(model, name, budget=0.2, lookahead=9) as run:
        out = model.generate(tokens, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        kept = run.last
        longer = torch.cat([out.sequences, turn], 1)
        more = model.generate(longer, past_key_values=out.past_key_values, max_new_tokens=4, do_sample=False)
        assert more.shape[1] == longer.shape[1] + 4
        assert kept is not None
        assert run.last is not None
        assert run.last.plans is kept.plans, "the prompt is evicted once"


def test_prefixkv_keeps_the_same_tokens_in_all_heads_after_a_lookahead() -> None:
    model, (tokens, _) = tiny.llama(), tiny.ids(40)
    with madakv.evict(model, "prefixkv", budget=0.2, lookahead=4) as run:
        tiny.greedy(model, {"input_ids": tokens}, 6)
    assert run.last is not None
    for plan in run.last.plans:
        one, two = plan.indices[0]
        assert set(one.tolist()) <= set(two.tolist()) or set(two.tolist()) <= set(one.tolist())


def test_lookahead_refuses_beam_search() -> None:
    model, (tokens, _) = tiny.llama(), tiny.ids(20)
    with madakv.evict(model, "snapkv", lookahead=3) as run:
        with pytest.raises(UnsupportedOptionError, match="lookahead=3 .* beam search"):
            model.generate(tokens, num_beams=2, max_new_tokens=6)
        model.generate(tokens, max_new_tokens=6)
    assert run.last is not None


@pytest.mark.parametrize("name", ["meda", "prefixkv"])
def test_beams_follow_a_prompt_that_was_evicted_as_a_whole(name: str) -> None:
    model, (tokens, mask) = tiny.llama(), tiny.ids(40, 28)
    inputs = {"input_ids": tokens, "attention_mask": mask, "max_new_tokens": 8, "num_beams": 3}
    want = model.generate(**inputs)
    with madakv.evict(model, name, budget=1.0):
        assert torch.equal(model.generate(**inputs), want)
    with madakv.evict(model, name, budget=0.3):
        assert model.generate(**inputs).shape == want.shape


def test_several_samples_may_look_ahead() -> None:
    model, (tokens, _) = tiny.llama(), tiny.ids(30)
    with madakv.evict(model, "snapkv", budget=0.3, lookahead=4) as run:
        torch.manual_seed(1)
        out = model.generate(tokens, do_sample=True, num_return_sequences=3, max_new_tokens=8)
    assert out.shape == (3, 38)
    assert run.last is not None
    assert [int(plan.counts.sum()) for plan in run.last.plans] == [3 * 2 * 9] * 3


@pytest.mark.parametrize("lookahead", [0, 3])
@pytest.mark.parametrize("name", sorted(set(madakv.list_methods()) - {"full", "random"}))
def test_padded_rows_get_what_they_get_alone(name: str, lookahead: int) -> None:
    model, inputs = tiny.llava(), padded_documents()
    with madakv.evict(model, name, budget=0.25, lookahead=lookahead) as run:
        tokens = tiny.greedy(model, inputs, 8)
        together = run.last
        assert together is not None
        for b in range(2):
            row = row_of(inputs, b)
            pad = inputs["input_ids"].shape[1] - row["input_ids"].shape[1]
            assert torch.equal(tiny.greedy(model, row, 8), tokens[b : b + 1])
            assert run.last is not None
            shifted = [[[i + pad for i in kept] for kept in x] for x in as_lists(list(run.last.plans), 0)]
            assert as_lists(list(together.plans), b) == shifted
