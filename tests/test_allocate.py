"""`madakv.allocate` against the slow reference, and against the promises that hold for any scores."""

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from madakv import ConfigurationError, InputError, KeepPlan, MadaKV, allocate
from madakv.methods import resolve
from madakv.methods.madakv_paper import MPA, Ledger
from tests.allocate_reference import Rules, allocate_reference, entries_reference, proxies_reference

SHAPES = ("ragged", "layers-even", "heads-even", "rectangular")
READINGS = ("capped", "demand", "signal")
KINDS = (*SHAPES, "mpa", *READINGS)
"""Of methods: ours by its shape, the paper's by its reading of HCC, and MPA alone."""
NOISY = ("huge", "mixed")
"""Score flavours whose float64 sums depend on the order of summation."""

Kept = list[list[list[list[int]]]]
"""Kept token indices by layer, row and head."""


def method_of(kind: str, **options: Any) -> MadaKV | MPA:
    """A method of a kind, without those options that it lacks or that would change nothing in it."""
    name, own = ("madakv", {"shape": kind}) if kind in SHAPES else ("mpa", {})
    if kind in READINGS:
        name, own = "madakv-paper", {"compensation": kind}
    if kind == "rectangular":
        options.pop("safeguard", None)
    if kind in ("ragged", "heads-even") and options.get("safeguard") == 0:
        options.pop("protected", None)
    if options.get("proxies", "question") != "question":
        options.pop("max_proxies", None)
    known = resolve(name).options
    method: Any = resolve(name, **own, **{option: value for option, value in options.items() if option in known})
    return method


def quick(examples: int) -> settings:
    """The same examples in every run; no deadline, since the machine may be shared."""
    return settings(
        max_examples=examples, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
    )


# --- Prompts and scores ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompt:
    """One call of `allocate`. Without `repr`s of long tensors, a falsifying example stays readable."""

    rows: list[list[int]]
    flavour: str
    seed: int
    heads: int
    layers: int
    method: MadaKV | MPA

    @property
    def between_layers(self) -> str:
        """What layers hand on to each other."""
        return Rules.of(self.method).between_layers

    @property
    def modality(self) -> Tensor:
        """[B, N], shorter rows padded on the side that the seed's parity names."""
        width = max(map(len, self.rows))
        gaps = [[-1] * (width - len(row)) for row in self.rows]
        pairs = zip(gaps, self.rows, strict=True)
        return torch.tensor([gap + row if self.seed % 2 else row + gap for gap, row in pairs])

    @property
    def psi(self) -> list[Tensor]:
        B, N = self.modality.shape
        return [scores(self.flavour, 1000 * self.seed + layer, (B, self.heads, N)) for layer in range(self.layers)]

    @property
    def tokens(self) -> list[int]:
        """N of each row, padding aside."""
        return [sum(kind >= 0 for kind in row) for row in self.rows]

    @property
    def averages(self) -> list[int]:
        """Entries per head and layer that the budget allows each row."""
        return [entries_reference(self.method.budget, N) for N in self.tokens]

    def kept(self) -> Kept:
        return as_lists(allocate(self.psi, self.modality, self.method))

    def totals(self, row: int) -> list[int]:
        """Entries that each layer keeps of a row, over its heads."""
        return [sum(map(len, layer[row])) for layer in self.kept()]


def scores(flavour: str, seed: int, shape: tuple[int, int, int]) -> Tensor:
    """[B, H, N] fp32 scores of one kind."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(shape, generator=generator)
    match flavour:
        case "attention":
            return (torch.randn(shape, generator=generator) * 3).softmax(-1)
        case "uniform":
            return uniform
        case "coarse":
            return (uniform * 4).floor() / 4
        case "sparse":
            return torch.where(uniform > 0.8, uniform, 0.0)
        case "equal":
            return torch.full(shape, 0.1)
        case "zero":
            return torch.zeros(shape)
        case "tiny":
            return (uniform * 5).floor() * 2.0**-149
        case "huge":
            return uniform * 3e38
        case "mixed":
            return 10 ** (uniform * 60 - 30)
    raise AssertionError(flavour)


def as_lists(plans: list[KeepPlan]) -> Kept:
    return [[[indices.tolist() for indices in row] for row in plan.indices] for plan in plans]


FLAVOURS = ("attention", "uniform", "coarse", "sparse", "equal", "zero", "tiny", *NOISY)


@st.composite
def rows(draw: st.DrawFn, *, padding: bool = True) -> list[int]:
    """Modality ids of one row, in spans as prompts have them, or token by token; 1 to 60 tokens."""
    kinds = draw(st.lists(st.sampled_from([0, 1, 2, 3]), min_size=1, max_size=4, unique=True))
    if padding and draw(st.booleans()):
        kinds = [*kinds, -1]
    kind = st.sampled_from(kinds)
    if draw(st.booleans()):
        row = draw(st.lists(kind, min_size=1, max_size=12))
    else:
        spans = draw(st.lists(st.tuples(kind, st.integers(1, 20)), min_size=1, max_size=6))
        row = [kind for kind, length in spans for _ in range(length)][:60]
    assume(any(kind >= 0 for kind in row))
    return row


@st.composite
def methods(draw: st.DrawFn, /, **fixed: Any) -> MadaKV | MPA:
    options: dict[str, st.SearchStrategy[Any]] = {
        "budget": st.one_of(st.floats(0.01, 1.0), st.integers(1, 70), st.sampled_from([0.05, 0.2, 0.5, 1.0])),
        "kind": st.sampled_from(KINDS),
        "theta": st.one_of(st.sampled_from([0.9, 0.5, 1.0]), st.floats(0.01, 1.0)),
        "proxies": st.one_of(st.just("question"), st.integers(1, 70)),
        "max_proxies": st.integers(1, 40),
        "text_pooling": st.sampled_from([5, 1, 3, 7, 61]),
        "safeguard": st.sampled_from([1.0, 0.2, 0.0, 0.5]),
        "protected": st.sampled_from([0.5, 0.0, 1.0]),
    }
    return method_of(**{name: fixed.get(name) or draw(option) for name, option in options.items()})


@st.composite
def prompts(
    draw: st.DrawFn, /, *, flavours: tuple[str, ...] = FLAVOURS, padding: bool = True, **fixed: Any
) -> Prompt:
    return Prompt(
        rows=draw(st.lists(rows(padding=padding), min_size=1, max_size=3)),
        flavour=draw(st.sampled_from(flavours)),
        seed=draw(st.integers(0, 99)),
        heads=draw(st.integers(1, 4)),
        layers=draw(st.integers(1, 5)),
        method=draw(methods(**fixed)),
    )


# --- The reference -----------------------------------------------------------------------------------------


@quick(300)
@given(prompts())
def test_decides_what_the_reference_decides(prompt: Prompt) -> None:
    assert prompt.kept() == allocate_reference(prompt.psi, prompt.modality, prompt.method)


# Scores of 8 tokens: five of an image, three of the question behind it.
IMAGE_THEN_QUESTION = [1, 1, 1, 1, 1, 0, 0, 0]
FLAT = [0.18, 0.18, 0.18, 0.18, 0.18, 0.10, 0.0, 0.0]
PEAKED = [0.02, 0.02, 0.90, 0.02, 0.02, 0.02, 0.0, 0.0]


@pytest.mark.parametrize(
    ("kind", "layers", "expected"),
    [
        # 4 entries a layer, 2 of them for the newest proxies; the image holds nearly all the weight.
        ("rectangular", [PEAKED, PEAKED, PEAKED], [[0, 2, 6, 7], [0, 2, 6, 7], [0, 2, 6, 7]]),
        ("mpa", [PEAKED, PEAKED, PEAKED], [[0, 2, 6, 7], [0, 2, 6, 7], [0, 2, 6, 7]]),
        # 0.9 of the image's weight is in one token: a layer needs 3, and the last one gets what is over.
        ("capped", [PEAKED, PEAKED, PEAKED], [[2, 6, 7], [2, 6, 7], [0, 1, 2, 5, 6, 7]]),
        # A flat layer demands the whole prompt and gets it; 2 entries are the floor of each later layer.
        ("demand", [FLAT, PEAKED, PEAKED], [[0, 1, 2, 3, 4, 5, 6, 7], [5, 7], [2, 7]]),
        # The flat layer keeps its 4, and its demand for 8 costs the next layer half of the surplus.
        ("signal", [FLAT, PEAKED, PEAKED], [[0, 1, 6, 7], [2, 7], [0, 1, 2, 5, 6, 7]]),
        # Of 12 entries each layer is sure of 2, a proxy and its best; the 6 others are the best left of all layers.
        ("ragged", [FLAT, PEAKED, PEAKED], [[0, 1, 2, 3, 4, 5, 7], [0, 2, 7], [2, 7]]),
    ],
)
def test_worked_by_hand(kind: str, layers: list[list[float]], expected: list[list[int]]) -> None:
    psi = [torch.tensor([[layer]]) for layer in layers]
    method = method_of(kind, budget=0.5, theta=0.9, safeguard=0.5)
    modality = torch.tensor([IMAGE_THEN_QUESTION])
    assert as_lists(allocate(psi, modality, method)) == [[[indices]] for indices in expected]
    assert allocate_reference(psi, modality, method) == [[[indices]] for indices in expected]


def test_a_signal_may_leave_more_than_the_last_layers_can_hold() -> None:
    """Every layer demands everything, so each pays for the one before, until the rest is enough for all."""
    psi = [torch.ones(1, 1, 100)] * 8
    modality = torch.tensor([[1] * 99 + [0]])
    method = method_of("signal", budget=0.9, theta=1.0)
    plans = allocate(psi, modality, method)
    assert [int(plan.counts) for plan in plans] == [90, 89, 88, 86, 83, 78, 100, 100]
    assert as_lists(plans) == allocate_reference(psi, modality, method)


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        # Token 4 is the peak; its text neighbours come with it, the image token between them does not.
        (1, [0, 4, 9]),
        (3, [3, 4, 9]),
        (5, [2, 3, 9]),
    ],
)
@pytest.mark.parametrize("shape", ["rectangular", "ragged"])
def test_text_pooling_takes_neighbours_of_the_same_kind(shape: str, width: int, expected: list[int]) -> None:
    modality = torch.tensor([[0, 0, 0, 0, 0, 1, 0, 0, 1, 0]])
    psi = torch.tensor([[[0.4, 0.0, 0.1, 0.0, 0.9, 0.0, 0.0, 0.0, 0.0, 0.0]]])
    method = method_of(shape, budget=3, max_proxies=1, text_pooling=width, safeguard=1.0)
    (plan,) = allocate([psi], modality, method)
    assert plan.indices[0][0].tolist() == expected


# --- What holds for any scores -----------------------------------------------------------------------------


@quick(80)
@given(prompts())
def test_plans_are_well_formed(prompt: Prompt) -> None:
    modality = prompt.modality
    plans = allocate(prompt.psi, modality, prompt.method)
    assert len(plans) == prompt.layers
    for plan in plans:
        assert plan.counts.dtype == plan.positions.dtype == torch.int64
        assert plan.counts.tolist() == [[len(indices) for indices in row] for row in plan.indices]
        for b, row in enumerate(plan.indices):
            assert len(row) == prompt.heads
            valid = set((modality[b] >= 0).nonzero().flatten().tolist())
            for indices in row:
                assert indices.tolist() == sorted(set(indices.tolist()))
                assert valid.issuperset(indices.tolist())


@quick(80)
@given(prompts())
def test_a_prompt_never_costs_more_than_its_budget(prompt: Prompt) -> None:
    for b, average in enumerate(prompt.averages):
        totals = prompt.totals(b)
        pot = average * prompt.heads * prompt.layers
        assert sum(totals) <= pot
        if prompt.between_layers == "shared":
            assert sum(totals) == pot
        if prompt.between_layers == "none":
            assert totals == [average * prompt.heads] * prompt.layers
        if prompt.between_layers in ("demand", "signal"):
            reserve = average * prompt.heads // 2
            for done in range(prompt.layers):
                assert pot - sum(totals[:done]) >= reserve * (prompt.layers - done)


@quick(80)
@given(st.one_of(prompts(kind="rectangular"), prompts(kind="mpa")))
def test_heads_of_an_even_layer_keep_the_same_number(prompt: Prompt) -> None:
    for layer in prompt.kept():
        for row, average in zip(layer, prompt.averages, strict=True):
            assert [len(indices) for indices in row] == [average] * prompt.heads


@quick(80)
@given(prompts(kind="heads-even"))
def test_even_heads_share_what_their_layers_win(prompt: Prompt) -> None:
    own = {name: value for name, value in prompt.method.options.items() if name not in ("shape", "weights")}
    ragged = replace(prompt, method=method_of("ragged", **own))
    for b in range(len(prompt.rows)):
        totals = prompt.totals(b)
        assert totals == ragged.totals(b)
        for layer, total in zip(prompt.kept(), totals, strict=True):
            sizes = [total // prompt.heads + (h < total % prompt.heads) for h in range(prompt.heads)]
            assert [len(indices) for indices in layer[b]] == sizes


@quick(80)
@given(prompts(budget=1.0))
def test_a_whole_budget_keeps_every_token(prompt: Prompt) -> None:
    everything = [[[i for i, kind in enumerate(row) if kind >= 0]] * prompt.heads for row in prompt.modality.tolist()]
    assert prompt.kept() == [everything] * prompt.layers
    as_int = replace(prompt, method=replace(prompt.method, budget=max(prompt.tokens)))
    assert as_int.kept() == [everything] * prompt.layers


@quick(80)
@given(prompts())
def test_a_part_of_each_share_is_the_newest_proxies(prompt: Prompt) -> None:
    rules, kept = Rules.of(prompt.method), prompt.kept()
    for b, kinds in enumerate(prompt.modality.tolist()):
        pot = prompt.averages[b] * prompt.heads * prompt.layers
        proxies = proxies_reference(kinds, rules.proxies, rules.max_proxies)
        for layer, total in enumerate(prompt.totals(b)):
            # "signal" keeps its allotment whole; every other layer starts from an even one. Layers that share are
            # sure of a part of the average.
            even = min(pot // (prompt.layers - layer), prompt.tokens[b] * prompt.heads)
            allotment = total if rules.between_layers == "signal" else even
            for h, indices in enumerate(kept[layer][b]):
                share = allotment // prompt.heads + (h < allotment % prompt.heads)
                if rules.between_layers == "shared":
                    share = int(prompt.averages[b] * rules.safeguard)
                protected = proxies[max(len(proxies) - int(share * rules.protected), 0) :]
                assert set(indices).issuperset(protected)
            pot -= total


@quick(80)
@given(prompts())
def test_the_recursion_hands_on_exactly_what_is_left(prompt: Prompt) -> None:
    """phi[l+1] = phi[l] - K[l] / (H * (L - l)) in exact arithmetic, K counted on what layer l kept."""
    assume(prompt.between_layers != "shared")
    H, L = prompt.heads, prompt.layers
    for b, (average, tokens) in enumerate(zip(prompt.averages, prompt.tokens, strict=True)):
        ledger = Ledger(torch.tensor([average]), torch.tensor([tokens]), H, L)
        phi = Fraction(average)
        totals = prompt.totals(b)
        for number, kept in enumerate(totals, start=1):
            even = min(int(H * phi), tokens * H)
            assert ledger.even().tolist() == [even]
            assert ledger.ample.tolist() == [phi >= tokens]
            if prompt.between_layers == "capped":
                assert kept <= even
            if number == L:
                # Nobody comes after it: the last layer keeps its allotment whole.
                assert kept == even
            else:
                phi -= (kept - H * phi) / (H * (L - number))
            ledger.spend(torch.tensor([kept]))
        assert ledger.left.tolist() == [average * H * L - sum(totals)]


@quick(100)
@given(prompts(padding=False), st.data())
def test_padding_and_neighbours_in_the_batch_change_nothing(prompt: Prompt, data: st.DataObject) -> None:
    row = prompt.rows[0]
    alone = replace(prompt, rows=[row])
    gaps = data.draw(st.lists(st.integers(0, 3), min_size=len(row) + 1, max_size=len(row) + 1))
    if Rules.of(prompt.method).text_pooling > 1:
        # Neighbours are neighbours in the padded row, so only padding around it leaves them as they are.
        gaps[1:-1] = [0] * (len(row) - 1)
    place = [sum(gaps[: i + 1]) + i for i in range(len(row))]
    width = place[-1] + 1 + gaps[-1]
    modality = torch.stack([torch.full((width,), -1), torch.arange(width) % 4])
    modality[0, place] = torch.tensor(row)
    psi = [torch.full((2, prompt.heads, width), 7.0) for _ in range(prompt.layers)]
    for padded, scored in zip(psi, alone.psi, strict=True):
        padded[0][:, place] = scored[0]
    batch = as_lists(allocate(psi, modality, prompt.method))
    shifted = [[[place[i] for i in indices] for indices in layer[0]] for layer in alone.kept()]
    assert [layer[0] for layer in batch] == shifted


@quick(80)
@given(prompts(flavours=("attention", "uniform"), safeguard=1.0), st.permutations([1, 2, 3]))
def test_names_of_modalities_do_not_matter(prompt: Prompt, names: list[int]) -> None:
    """Only text is special (proxies, pooling); with scores that tie nowhere the very plan stays."""
    # "demand" and a safeguard split in proportion to whole numbers, which do tie; the lower id gets the odd entry.
    assume(prompt.between_layers != "demand")
    renamed = [[kind if kind <= 0 else names[kind - 1] for kind in row] for row in prompt.rows]
    assert replace(prompt, rows=renamed).kept() == prompt.kept()


@quick(50)
@given(prompts(flavours=("coarse", "equal", "zero")), st.permutations([1, 2, 3]))
def test_names_of_modalities_do_not_change_the_cost(prompt: Prompt, names: list[int]) -> None:
    # Where shares tie, the lower id gets the odd entry, and "capped" may then find that it needs none.
    assume(prompt.between_layers != "capped")
    renamed = replace(prompt, rows=[[k if k <= 0 else names[k - 1] for k in row] for row in prompt.rows])
    for b in range(len(prompt.rows)):
        assert renamed.totals(b) == prompt.totals(b)


@quick(60)
@given(prompts(flavours=("attention", "uniform", "coarse", "sparse", "equal")), st.integers(-20, 20))
def test_only_proportions_of_scores_matter(prompt: Prompt, power: int) -> None:
    scaled = [layer * 2.0**power for layer in prompt.psi]
    assert as_lists(allocate(scaled, prompt.modality, prompt.method)) == prompt.kept()


@quick(60)
@given(prompts())
def test_kept_per_modality_counts_what_a_loop_counts(prompt: Prompt) -> None:
    modality = prompt.modality
    kinds = modality.tolist()
    for plan in allocate(prompt.psi, modality, prompt.method):
        counted = plan.kept_per_modality(modality)
        assert counted.shape == (len(prompt.rows), prompt.heads, 4)
        for b, row in enumerate(plan.indices):
            for h, indices in enumerate(row):
                found = [kinds[b][i] for i in indices.tolist()]
                assert counted[b, h].tolist() == [found.count(kind) for kind in range(4)]


# --- Corners that went wrong, or could ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "row",
    [[0], [1], [1] * 9, [0] * 9, [0, 1], [1, 0], [3] * 5 + [0], [-1, -1, 2], [2, -1, -1], [0, 1, 2, 3], [-1] * 5],
    ids=str,
)
def test_odd_prompts_are_read(row: list[int], kind: str) -> None:
    modality = torch.tensor([row, row[::-1]])
    for budget in (0.01, 0.2, 0.5, 1.0, 1, 3, 100):
        method = method_of(kind, budget=budget, safeguard=0.2)
        psi = [scores("uniform", layer, (2, 3, len(row))) for layer in range(3)]
        assert as_lists(allocate(psi, modality, method)) == allocate_reference(psi, modality, method)


def test_a_demand_for_all_the_weight_is_not_a_matter_of_summation_order() -> None:
    """The whole of [2e, 1] once was "1 + 2e" for the target and "1" for the tokens that should reach it."""
    tiny = 2.0**-53
    psi = [torch.tensor([[[tiny, tiny, 1.0, 0.5]]])] * 2
    modality = torch.tensor([[1, 1, 1, 0]])
    method = method_of("capped", theta=1.0, budget=0.8)
    assert as_lists(allocate(psi, modality, method)) == [[[[2, 3]]], [[[0, 1, 2, 3]]]]


@pytest.mark.parametrize("kind", KINDS)
def test_padding_does_not_move_a_demand_for_all_the_weight(kind: str) -> None:
    """Scores over many orders of magnitude, whose float64 sum depends on how many terms stand around them."""
    method = method_of(kind, theta=1.0, budget=0.7, safeguard=0.2)
    for pad in range(1, 24):
        generator = torch.Generator().manual_seed(pad)
        psi = [(torch.randn(1, 2, 40, generator=generator) * 12).softmax(-1) for _ in range(3)]
        modality = torch.randint(0, 3, (1, 40), generator=generator)
        padded = [torch.nn.functional.pad(layer, (pad, 0)) for layer in psi]
        alone = allocate(psi, modality, method)
        shifted = allocate(padded, torch.nn.functional.pad(modality, (pad, 0), value=-1), method)
        assert [(plan.positions - pad).tolist() for plan in shifted] == [p.positions.tolist() for p in alone]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["layers-even", "demand", "signal"])
def test_the_default_dtype_decides_nothing(kind: str, dtype: torch.dtype) -> None:
    """Models are often loaded under a half-precision default, which rounds (and overflows) counts of entries."""
    # 3 * 101 is no bfloat16, and 300 * 240 is more than float16 can hold.
    cases = [
        Prompt([[0, 1, 2] * 100 + [0]], "attention", 0, 3, 6, method_of(kind, budget=0.334, safeguard=0.2)),
        Prompt([[0, 1, 2] * 133 + [0]], "attention", 0, 300, 3, method_of(kind, budget=0.6, safeguard=0.2)),
    ]
    for case in cases:
        psi, expected = case.psi, case.totals(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            plans = allocate(psi, case.modality, case.method)
        finally:
            torch.set_default_dtype(before)
        assert [int(plan.counts.sum()) for plan in plans] == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_any_float_dtype(kind: str, dtype: torch.dtype) -> None:
    modality = torch.tensor([[0, 0, 1, 1, 1, 1, 2, 2, 2, 0, 0, 0]])
    psi = [scores("attention", layer, (1, 2, 12)).to(dtype) for layer in range(3)]
    method = method_of(kind, budget=0.5, safeguard=0.2)
    exact = [layer.to(torch.float32) for layer in psi]
    assert as_lists(allocate(psi, modality, method)) == as_lists(allocate(exact, modality, method))


def test_neither_scores_nor_modality_are_written_to() -> None:
    prompt = Prompt([[0, 1, 1, 2, 0], [-1, 3, 3, 0]], "uniform", 0, 2, 3, method_of("signal"))
    psi, modality = prompt.psi, prompt.modality
    allocate(psi, modality, prompt.method)
    assert all(torch.equal(*pair) for pair in zip(psi, prompt.psi, strict=True))
    assert torch.equal(modality, prompt.modality)


def test_a_method_may_be_named_and_its_options_given() -> None:
    prompt = Prompt([[0, 1, 1, 2, 0, 0]], "uniform", 0, 2, 3, MadaKV(budget=0.5, safeguard=0.2))
    by_name = allocate(prompt.psi, prompt.modality, "madakv", budget=0.5, safeguard=0.2)
    changed = allocate(prompt.psi, prompt.modality, MadaKV(safeguard=0.2), budget=0.5)
    assert as_lists(by_name) == as_lists(changed) == prompt.kept()


# --- Bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [0, 0.0, 1.5, -1, -0.2, True, False, "abc", float("nan"), float("inf"), [0.2]])
def test_a_budget_that_cannot_be_meant(budget: Any) -> None:
    with pytest.raises(ConfigurationError, match="^budget must be .*got ") as raised:
        allocate([torch.rand(1, 2, 4)], torch.zeros(1, 4, dtype=torch.int64), "madakv", budget=budget)
    assert repr(budget) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_int_budget_of_any_size_is_no_limit() -> None:
    (plan,) = allocate([torch.rand(1, 2, 4)], torch.zeros(1, 4, dtype=torch.int64), "madakv", budget=2**70)
    assert plan.counts.tolist() == [[4, 4]]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("theta", 0),
        ("theta", 1.01),
        ("theta", float("nan")),
        ("theta", "0.9"),
        ("compensation", "always"),
        ("compensation", "none"),
        ("shape", "square"),
        ("groups", "median"),
        ("proxies", 0),
        ("proxies", -3),
        ("proxies", "answer"),
        ("proxies", 2.5),
        ("proxies", True),
        ("max_proxies", 0),
        ("max_proxies", "8"),
        ("max_proxies", 2.5),
        ("text_pooling", 0),
        ("text_pooling", 4),
        ("text_pooling", "5"),
        ("text_pooling", 5.0),
    ],
)
def test_an_option_that_cannot_be_meant(option: str, value: Any) -> None:
    paper = option in ("theta", "compensation")
    with pytest.raises(ConfigurationError, match=f"^{option} must be .*got ") as raised:
        resolve("madakv-paper" if paper else "madakv", **{option: value})
    assert repr(value) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("psi", "says"),
    [
        ([], "one tensor per layer"),
        ([torch.full((1, 2, 4), -0.1)], r"psi\[0\] holds values that are negative or not finite"),
        ([torch.full((1, 2, 4), torch.nan)], r"psi\[0\] holds values that are negative or not finite"),
        ([torch.ones(1, 2, 4), torch.full((1, 2, 4), torch.inf)], r"psi\[1\] holds values"),
        ([torch.full((1, 2, 4), 1e300, dtype=torch.float64)], r"psi\[0\] holds values"),
        ([torch.rand(1, 2, 5)], r"psi\[0\] has shape \(1, 2, 5\)"),
        ([torch.rand(2, 2, 4)], r"psi\[0\] has shape \(2, 2, 4\)"),
        ([torch.rand(2, 4)], r"psi\[0\] has shape \(2, 4\)"),
        ([torch.rand(1, 2, 4), torch.rand(1, 3, 4)], r"psi\[1\] has shape \(1, 3, 4\)"),
        ([torch.rand(1, 0, 4)], r"psi\[0\] has shape \(1, 0, 4\)"),
        ([torch.ones(1, 2, 4, dtype=torch.int64)], r"psi\[0\].*int64"),
        ([torch.ones(1, 2, 4, dtype=torch.bool)], r"psi\[0\].*bool"),
    ],
)
def test_scores_that_cannot_be_read(psi: list[Tensor], says: str) -> None:
    with pytest.raises(InputError, match=says) as raised:
        allocate(psi, torch.zeros(1, 4, dtype=torch.int64), "madakv")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("modality", "says"),
    [
        (torch.zeros(4, dtype=torch.int64), r"modality must be \[B, N\].*; got shape \(4,\)"),
        (torch.zeros(1, 1, 4, dtype=torch.int64), r"modality must be \[B, N\]"),
        (torch.zeros(1, 3, dtype=torch.int64), "modality is"),
        (torch.tensor([[0.0, 0.5, 1.0, 0.0]]), "modality.*float32"),
        (torch.tensor([[0, 4, 0, 0]]), "modality.*4"),
        (torch.tensor([[0, -2, 0, 0]]), "modality.*-2"),
    ],
)
def test_a_modality_map_that_cannot_be_read(modality: Tensor, says: str) -> None:
    with pytest.raises(InputError, match=says) as raised:
        allocate([torch.rand(1, 2, 4)], modality, "madakv")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
def test_a_modality_map_of_any_integer_dtype(dtype: torch.dtype) -> None:
    modality = torch.tensor([[0, 1, 3, 1, 0, 0]], dtype=dtype)
    psi = scores("uniform", 0, (1, 2, 6))
    (plan,) = allocate([psi], modality, MadaKV(budget=0.5))
    (same,) = allocate([psi], modality.to(torch.int64), MadaKV(budget=0.5))
    assert plan.positions.tolist() == same.positions.tolist()
    assert plan.kept_per_modality(modality).tolist() == same.kept_per_modality(modality).tolist()


def test_a_prompt_without_tokens() -> None:
    with pytest.raises(InputError, match="N"):
        allocate([torch.rand(1, 2, 0)], torch.zeros(1, 0, dtype=torch.int64), "madakv")
