"""How options of methods are named, grouped and refused."""

from __future__ import annotations

import warnings
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

import madakv
from madakv import ConfigurationError, MadaKV
from madakv.methods import from_text, list_methods, resolve
from madakv.methods.madakv_paper import HCC, MPA, MadaKVPaper
from madakv.methods.prefixkv import PrefixKV
from madakv.methods.snapkv import SnapKV
from madakv.methods.streaming_llm import StreamingLLM

# --- What a user sees -----------------------------------------------------------------------------------------


def test_few_options_are_seen_and_the_others_can_be_typed_all_the_same() -> None:
    method = from_text("madakv:echo_weight=2.0:draft=8:groups=max:context=0", budget=0.1)
    weights = MadaKV.Weights(echo_weight=2.0, groups="max", context=0)
    assert method == MadaKV(budget=0.1, draft=8, weights=weights)
    assert method.label == "madakv:draft=8:groups=max:context=0:echo_weight=2.0"
    assert from_text(method.label, budget=0.1) == method
    assert eval(repr(method), {"MadaKV": MadaKV}) == method
    seen = [field.name for field in fields(MadaKV)]
    assert sorted(seen) == sorted(
        ["budget", "lookahead", "draft", "echo", "weights", "proxies", "safeguard", "shape"]
    )


@pytest.mark.parametrize("name", list_methods())
def test_every_method_is_what_its_label_says(name: str) -> None:
    method = resolve(name)
    assert method.label == name
    assert method.options == method.defaults()
    assert from_text(name) == method == resolve(method)


def test_weights_given_as_an_object_are_started_from() -> None:
    weights = MadaKV.Weights(values=False)
    wanted = MadaKV(weights=replace(weights, context=0))
    assert resolve("madakv", weights=weights, context=0) == wanted
    assert resolve(MadaKV(weights=weights), context=0) == wanted


def test_weights_of_another_method_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"weights must be MadaKV.Weights\(...\); got GroupedMethod.Weights"):
        MadaKV(weights=SnapKV.Weights())  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="weights must be MadaKV"):
        from_text("madakv:weights=3:context=0")


def test_the_papers_method_knows_nothing_of_what_is_ours() -> None:
    assert not issubclass(MadaKVPaper, MadaKV)
    assert not issubclass(MadaKV, MPA)
    for option in ("values", "shape", "text_pooling"):
        with pytest.raises(
            ConfigurationError, match=f"'madakv-paper' has no option '{option}'; it is one of madakv;"
        ):
            resolve("madakv-paper", **{option: 1})


# --- Options that change nothing ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("madakv:theta=0.8", "'madakv' has no theta=0.8: 'madakv-paper' has"),
        ("mpa:theta=0.8", "'mpa' has no option 'theta'; it is one of hcc, madakv-paper;"),
        ("madakv:answer_weight=8.0", "answer_weight=8.0 changes nothing with neither draft nor lookahead"),
        ("snapkv:answer_weight=8.0", "answer_weight"),
        ("prefixkv:answer_weight=8.0", "answer_weight"),
        ("madakv:echo=0:echo_weight=2.0", "echo_weight=2.0 changes nothing with echo=0"),
        ("h2o:echo_weight=2.0", "echo_weight"),
        ("madakv:context=0:context_weight=2.0", "context_weight=2.0 changes nothing with context=0"),
        ("madakv-paper:context_weight=2.0", "context_weight"),
        ("madakv:proxies=4:max_proxies=8", "max_proxies=8 changes nothing with proxies=4"),
        ("madakv:shape=rectangular:safeguard=0.2", "safeguard=0.2 changes nothing with shape=rectangular"),
        ("madakv:safeguard=0.0:protected=1.0", "protected=1.0 changes nothing with safeguard=0.0"),
        ("snapkv:kernel_size=1:pooling=mean", "pooling=mean changes nothing with kernel_size=1"),
        ("snapkv:kernel_size=1:pooling_scope=text", "pooling_scope"),
        ("streaming_llm:draft=4", "draft=4 changes nothing with positions alone deciding"),
        ("random:draft=4", "draft"),
        ("full:draft=4", "draft"),
        ("full:lookahead=4", "lookahead"),
    ],
)
def test_what_changes_nothing_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as raised:
        from_text(text)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "madakv:echo=0",
        "madakv:context=0:echo=0",
        "madakv:safeguard=0.0",
        "madakv:safeguard=1.0",
        "madakv:shape=rectangular",
        "madakv:shape=heads-even:safeguard=0.0",
        "madakv:shape=layers-even:safeguard=0.0:protected=1.0",
        "madakv:proxies=4",
        "madakv:lookahead=2:answer_weight=8.0",
        "snapkv:kernel_size=1",
        "mixkv:kernel_size=1",
        "streaming_llm:lookahead=2",
    ],
)
def test_defaults_are_never_refused(text: str) -> None:
    from_text(text, budget=1.0)
    from_text(text, budget=0.1)


def test_an_object_is_held_to_the_same() -> None:
    method = MadaKV(weights=MadaKV.Weights(answer_weight=8.0))
    psi, modality = [torch.rand(1, 2, 9)], torch.zeros(1, 9, dtype=torch.int64)
    with pytest.raises(ConfigurationError, match="answer_weight=8.0 changes nothing"):
        madakv.allocate(psi, modality, method)
    madakv.allocate(psi, modality, method, draft=2)


# --- Shapes ---------------------------------------------------------------------------------------------------


def test_shapes_are_what_they_are_called() -> None:
    scale = torch.tensor([1.0, 8.0])[:, None]
    psi = [torch.rand(1, 2, 40) * scale * (1 + 3 * layer) for layer in range(3)]
    modality = torch.tensor([[0] * 20 + [1] * 12 + [0] * 8])

    def counts(shape: str) -> torch.Tensor:
        plans = madakv.allocate(psi, modality, "madakv", budget=0.25, shape=shape)
        return torch.stack([plan.counts[0] for plan in plans])

    shapes = ("ragged", "layers-even", "heads-even", "rectangular")
    ragged, even, alike, rectangular = (counts(shape) for shape in shapes)
    assert ragged.sum() == even.sum() == alike.sum() == rectangular.sum() == 60
    assert len(ragged.sum(1).unique()) > 1
    assert even.sum(1).tolist() == [20] * 3
    assert len(even.unique()) > 1
    assert alike.sum(1).tolist() == ragged.sum(1).tolist()
    assert (alike[:, 0] - alike[:, 1]).abs().max() <= 1
    assert rectangular.unique().tolist() == [10]


# --- Former names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "wanted", "says"),
    [
        (lambda: SnapKV(window=4), SnapKV(window_size=4), "SnapKV: window is now window_size"),
        (lambda: SnapKV(kernel=3), SnapKV(kernel_size=3), "SnapKV: kernel is now kernel_size"),
        (lambda: resolve("adakv", window="question"), resolve("adakv", window_size="question"), "window_size"),
        (lambda: from_text("mixkv:kernel=3"), from_text("mixkv:kernel_size=3"), "kernel_size"),
        (lambda: StreamingLLM(sinks=2), StreamingLLM(n_sink=2), "StreamingLLM: sinks is now n_sink"),
        (lambda: PrefixKV(sinks=2), PrefixKV(n_sink=2), "n_sink"),
        (lambda: resolve(PrefixKV(), sinks=2), PrefixKV(n_sink=2), "n_sink"),
        (
            lambda: MadaKV(values=False),
            MadaKV(weights=MadaKV.Weights(values=False)),
            r"MadaKV: values is now weights=MadaKV.Weights\(values=...\)",
        ),
        (lambda: MadaKV(compensation="shared"), MadaKV(), "compensation='shared' is now shape='ragged'"),
        (lambda: from_text("madakv:compensation=none"), MadaKV(shape="layers-even"), "shape='layers-even'"),
        (
            lambda: from_text("madakv:compensation=none:safeguard=0.2"),
            MadaKV(shape="layers-even", safeguard=0.2),
            "shape='layers-even'",
        ),
        (
            lambda: from_text("madakv:compensation=none:safeguard=1.0"),
            MadaKV(shape="rectangular"),
            "shape='rectangular'",
        ),
    ],
)
def test_former_names_work_and_warn_where_they_are_used(make: Any, wanted: Any, says: str) -> None:
    with pytest.warns(DeprecationWarning, match=says) as warned:
        got = make()
    assert got == wanted
    assert [warning.filename for warning in warned] == [__file__]


def test_evict_and_allocate_know_former_names() -> None:
    psi, modality = [torch.rand(1, 2, 30)], torch.zeros(1, 30, dtype=torch.int64)
    with pytest.warns(DeprecationWarning, match="window_size"):
        (old,) = madakv.allocate(psi, modality, "snapkv", window=3)
    (new,) = madakv.allocate(psi, modality, "snapkv", window_size=3)
    assert torch.equal(old.positions, new.positions)


def test_present_names_do_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in list_methods():
            resolve(resolve(name), lookahead=0)
        from_text("snapkv:window_size=question:kernel_size=1:context=64:echo=256")
        SnapKV(weights=SnapKV.Weights(context=3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 3, "window_size": 4}, "window_size was given twice: window is its former name"),
        ({"window_size": 4, "window": 3}, "window_size was given twice"),
    ],
)
def test_both_names_of_an_option_are_refused(options: dict[str, Any], message: str) -> None:
    for make in (SnapKV, lambda **given: resolve("snapkv", **given)):
        with pytest.raises(ConfigurationError, match=message):
            make(**options)


@pytest.mark.parametrize("compensation", ["capped", "demand", "signal"])
def test_the_papers_readings_are_the_papers(compensation: str) -> None:
    with pytest.raises(ConfigurationError, match=f"'madakv' has no compensation='{compensation}': 'madakv-paper'"):
        MadaKV(compensation=compensation)  # type: ignore[call-arg]
    assert resolve("hcc", compensation=compensation) == HCC(compensation=compensation)  # type: ignore[arg-type]


# --- Budgets as others count them -----------------------------------------------------------------------------


def test_a_compression_ratio_is_what_a_budget_leaves() -> None:
    assert resolve("snapkv", compression_ratio=0.8) == resolve("snapkv", budget=0.2)
    assert from_text("snapkv:compression_ratio=0.9", budget=0.5).budget == 0.1
    assert from_text("snapkv:budget=0.3", budget=0.5).budget == 0.3
    assert resolve("full", compression_ratio=0) == resolve("full")
    assert resolve(MadaKV(budget=7), compression_ratio=0.5).budget == 0.5
    psi, modality = [torch.rand(1, 2, 10)], torch.zeros(1, 10, dtype=torch.int64)
    (plan,) = madakv.allocate(psi, modality, compression_ratio=0.7)
    assert plan.counts.sum() == 6


def test_every_two_decimal_ratio_is_its_budget() -> None:
    for percent in range(1, 101):
        assert resolve("h2o", compression_ratio=(100 - percent) / 100).budget == percent / 100


def test_a_budget_and_a_compression_ratio_are_refused() -> None:
    message = r"compression_ratio=0.5 is 1 - budget, and budget=0.5 was given, too; choose one"
    with pytest.raises(ConfigurationError, match=message):
        resolve("snapkv", budget=0.5, compression_ratio=0.5)
    with pytest.raises(ConfigurationError, match=message):
        from_text("snapkv:budget=0.5:compression_ratio=0.5")


@pytest.mark.parametrize("ratio", [1, 1.0, -0.1, True, "half", float("nan")])
def test_a_compression_ratio_that_cannot_be_meant(ratio: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"compression_ratio must be .* in \[0, 1\); got "):
        resolve("snapkv", compression_ratio=ratio)
