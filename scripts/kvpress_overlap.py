"""Which entries madakv's methods keep, against NVIDIA's kvpress on the same model and prompt.

    python scripts/kvpress_overlap.py --kvpress-python /path/to/env/bin/python --out results/kvpress

kvpress wants another transformers than madakv does, so it runs in an environment of its own:

    python -m venv /path/to/env
    /path/to/env/bin/pip install torch==2.13.0    # first, and as madakv has it
    /path/to/env/bin/pip install kvpress

This script calls itself there. Where kept sets differ, it changes one of our rules after the other into kvpress',
in plain code of its own on our attention, until nothing differs any more; it fails if something still does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, max_pool1d

BUDGETS = (0.5, 0.2, 0.1)
TOKENS = 400
SEED = 5
TOLERANCE = 1e-5

KeptSets = list[list[list[int]]]
"""Kept positions of every layer and KV head."""


@dataclass(frozen=True)
class Rules:
    """A way to keep entries: a method's options, then the rules in which kvpress differs, each off as ours has it.

    Attributes:
        scores: by position, by the window's attention, or by that of all queries; or by what is no sum of attention,
            the keys' directions, the attention that is expected, or the most that the prompt pays when read again.
        window: last tokens that score and are kept; 0 for none.
        kernel, pooling: how the scores before the window are pooled.
        steepness: of a pyramid over the layers; None for even layers.
        safeguard: share of its even part that a head is sure of; None for even heads.
        truncates: the budget is cut off as floats reckon it, down to 79 where it is 80 less their error.
        whole_sinks: the sinks may take all of a head's share, not half of it (by position only).
        zero_borders: neighbours that do not exist are zeros of the mean.
        whole_window: the window may take all of a head's share, not half of it.
        hard_floor: the safeguard is a lower bound inside the layer's best, not a mix of these and even parts.
        pyramid_over_window: the pyramid shares out whole budgets, not only what is beyond the window.
        pyramid: layers' shares as kvpress reckons them.
        no_recent: no newest tokens are kept whatever their score (all queries only).
        per_query: attention is averaged over the queries that can see a token (all queries only).
        sinks: first tokens that are kept, half of a share at most.
        pooled: all heads of all layers compete.
    """

    scores: Literal["position", "window", "all", "keys", "expected", "repeated"]
    window: int = 0
    kernel: int = 1
    pooling: Literal["mean", "max"] = "mean"
    steepness: float | None = None
    safeguard: float | None = None
    truncates: bool = False
    whole_sinks: bool = False
    zero_borders: bool = False
    whole_window: bool = False
    hard_floor: bool = False
    pyramid_over_window: bool = False
    pyramid: bool = False
    no_recent: bool = False
    per_query: bool = False
    sinks: int = 0
    pooled: bool = False


@dataclass(frozen=True)
class Case:
    """One method in one choice of options.

    Attributes:
        name: the case's name.
        method, options: ours.
        press, settings: the class in kvpress, and what it is made with.
        ours: our method as rules.
        steps: what turns them into kvpress' rules, one change after the other, each with a few words.
        inside: the press that AdaKVPress is put around.
    """

    name: str
    method: str
    options: Mapping[str, Any]
    press: str
    settings: Mapping[str, Any]
    ours: Rules
    steps: tuple[tuple[str, Mapping[str, Any]], ...]
    inside: str = "SnapKVPress"


_TRUNCATES = ("budget cut off with its float error", {"truncates": True})
_WHOLE_SINKS = ("sinks may take the whole share", {"whole_sinks": True})
_ZERO_BORDERS = ("pooling counts missing neighbours as zeros", {"zero_borders": True})
_WHOLE_WINDOW = ("window may take the whole share", {"whole_window": True})
_HARD_FLOOR = ("safeguard is a lower bound", {"hard_floor": True})
_PYRAMID = (
    ("pyramid shares out the window, too", {"pyramid_over_window": True}),
    ("pyramid rounds and turns flat as kvpress' does", {"pyramid": True}),
)
_AS_KVPRESS = (
    ("window of 64", {"window": 64}),
    ("kernel of 5", {"kernel": 5}),
    ("mean pooling", {"pooling": "mean"}),
)

_NEAR = {"window_size": 8, "kernel_size": 5, "pooling": "mean"}
_NEAR_PRESS = {"window_size": 8, "kernel_size": 5}
_WINDOW = Rules("window", window=8, kernel=5)
_DEFAULT = Rules("window", window=32, kernel=7, pooling="max")
_SNAPKV_STEPS = (_TRUNCATES, _ZERO_BORDERS, _WHOLE_WINDOW)
_PYRAMID_STEPS = (_ZERO_BORDERS, _WHOLE_WINDOW, *_PYRAMID)

CASES = (
    Case("StreamingLLM", "streaming_llm", {}, "StreamingLLMPress", {}, Rules("position"), (_TRUNCATES, _WHOLE_SINKS)),
    Case(
        "H2O",
        "h2o",
        {},
        "ObservedAttentionPress",
        {},
        Rules("all"),
        (
            _TRUNCATES,
            ("newest tokens kept only by score", {"no_recent": True}),
            ("mean over the queries that see a token", {"per_query": True}),
        ),
    ),
    Case("SnapKV, same options", "snapkv", _NEAR, "SnapKVPress", _NEAR_PRESS, _WINDOW, _SNAPKV_STEPS),
    Case("SnapKV, defaults", "snapkv", {}, "SnapKVPress", {}, _DEFAULT, (*_AS_KVPRESS, *_SNAPKV_STEPS)),
    Case(
        "PyramidKV, same options, steepness 4",
        "pyramidkv",
        {**_NEAR, "steepness": 4.0},
        "PyramidKVPress",
        {**_NEAR_PRESS, "beta": 4},
        replace(_WINDOW, steepness=4.0),
        _PYRAMID_STEPS,
    ),
    Case(
        "PyramidKV, same options",
        "pyramidkv",
        {**_NEAR, "steepness": 20.0},
        "PyramidKVPress",
        {**_NEAR_PRESS, "beta": 20},
        replace(_WINDOW, steepness=20.0),
        _PYRAMID_STEPS,
    ),
    Case(
        "PyramidKV, defaults",
        "pyramidkv",
        {},
        "PyramidKVPress",
        {},
        replace(_DEFAULT, window=8, steepness=20.0),
        (*_AS_KVPRESS, *_PYRAMID_STEPS),
    ),
    Case(
        "AdaKV, same options",
        "adakv",
        {**_NEAR, "safeguard": 0.2},
        "AdaKVPress",
        {**_NEAR_PRESS, "alpha_safeguard": 0.2},
        replace(_WINDOW, safeguard=0.2),
        (*_SNAPKV_STEPS, _HARD_FLOOR),
    ),
    Case(
        "AdaKV, defaults",
        "adakv",
        {},
        "AdaKVPress",
        {},
        replace(_DEFAULT, safeguard=0.2),
        (*_AS_KVPRESS, *_SNAPKV_STEPS, _HARD_FLOOR),
    ),
    Case("KeyDiff", "keydiff", {}, "KeyDiffPress", {}, Rules("keys"), (_TRUNCATES,)),
    Case(
        "Expected Attention",
        "expected_attention",
        {},
        "ExpectedAttentionPress",
        {},
        Rules("expected", sinks=4),
        (_TRUNCATES,),
    ),
    Case(
        "Expected Attention, heads compete",
        "expected_attention",
        {"safeguard": 0.2},
        "AdaKVPress",
        {"alpha_safeguard": 0.2},
        Rules("expected", sinks=4, safeguard=0.2),
        (_TRUNCATES, _HARD_FLOOR),
        inside="ExpectedAttentionPress",
    ),
    Case(
        "KVzip, no instruction",
        "kvzip",
        {"n_sink": 0},
        "KVzipPress",
        {"n_sink": 0},
        Rules("repeated", pooled=True),
        (_TRUNCATES,),
    ),
)


# Comparing


@dataclass(frozen=True)
class Comparison:
    """How far two sets of kept entries agree, over layers and heads.

    Attributes:
        overlap: kept by both over kept by kvpress, mean.
        jaccard: kept by both over kept by either, mean.
        least_overlap, least_jaccard: of the layer and head that agree least.
        ours, theirs: entries kept per head and layer, mean.
    """

    overlap: float
    jaccard: float
    least_overlap: float
    least_jaccard: float
    ours: float
    theirs: float


def compare(ours: KeptSets, theirs: KeptSets) -> Comparison:
    """Compare layer by layer and head by head; two empty sets agree."""
    if [len(layer) for layer in ours] != [len(layer) for layer in theirs]:
        raise ValueError(f"{len(ours)} and {len(theirs)} layers, or their heads, cannot be compared")
    pairs = [
        (set(mine), set(other))
        for our_layer, their_layer in zip(ours, theirs, strict=True)
        for mine, other in zip(our_layer, their_layer, strict=True)
    ]
    overlaps = [_share(len(mine & other), len(other)) for mine, other in pairs]
    jaccards = [_share(len(mine & other), len(mine | other)) for mine, other in pairs]
    return Comparison(
        overlap=_mean(overlaps),
        jaccard=_mean(jaccards),
        least_overlap=min(overlaps),
        least_jaccard=min(jaccards),
        ours=_mean([len(mine) for mine, _ in pairs]),
        theirs=_mean([len(other) for _, other in pairs]),
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# The rules in plain code


def keep(attention: Sequence[Tensor], heads: int, budget: float, rules: Rules) -> KeptSets:
    """Apply rules to the attention of every layer, [Hq, N, N] each, of one prompt without padding.

    Where scores are no sum of attention, they are given in its place, [H, N].
    """
    N = attention[0].shape[-1]
    if rules.pooled:
        return _keep_pooled(torch.stack(list(attention)), budget, rules)
    average = _average(N, budget, rules)
    floor = 0 if rules.pyramid_over_window else min(rules.window, average // 2)
    totals = _layer_totals(len(attention), heads, N, budget, average, floor, rules)
    kept: KeptSets = []
    for layer, total in zip(attention, totals, strict=True):
        # The first heads take what an even split leaves over.
        shares = [total // heads + (h < total % heads) for h in range(heads)]
        mask = _select(_scores(layer, heads, shares[-1], rules), shares, floor, rules)
        kept.append([row.nonzero()[:, 0].tolist() for row in mask])
    return kept


def _keep_pooled(scores: Tensor, budget: float, rules: Rules) -> KeptSets:
    """The best of [L, H, N]."""
    L, H, N = scores.shape
    # kvpress cuts off what goes, of all entries together.
    count = L * H * N - int(L * H * N * (1 - budget)) if rules.truncates else L * H * _average(N, budget, rules)
    mask = torch.zeros(L * H * N, dtype=torch.bool)
    mask[scores.flatten().argsort(descending=True, stable=True)[:count]] = True
    return [[row.nonzero()[:, 0].tolist() for row in layer] for layer in mask.view(L, H, N)]


def kvpress_pyramid(layers: int, tokens: int, budget: float, window: int, steepness: float) -> list[int]:
    """Entries per head of every layer, as kvpress reckons them."""
    base = tokens * (1 - (1 - budget))
    last = base / steepness
    first = 2 * base - last
    if first >= tokens - window:
        first = tokens - window
        last = 2 * base - first
    if not tokens >= first >= last >= window:
        return [max(1, round(base))] * layers
    return [round(first - layer * (first - last) / max(1, layers - 1)) for layer in range(layers)]


def _average(tokens: int, budget: float, rules: Rules) -> int:
    """Entries per head and layer."""
    # Cut off as kvpress does it, from the ratio that goes: 400 * (1 - 0.8) is 79.99... and gives 79.
    return max(1, int(tokens * (1 - (1 - budget)))) if rules.truncates else int((budget + 1e-12) * tokens)


def _layer_totals(
    layers: int, heads: int, tokens: int, budget: float, average: int, floor: int, rules: Rules
) -> list[int]:
    """Entries of every layer over all its heads; each head has the floor, and the pyramid shares what is beyond."""
    if rules.pyramid:
        steepness = rules.steepness or 1.0
        return [heads * n for n in kvpress_pyramid(layers, tokens, budget, rules.window, steepness)]
    if rules.steepness is None:
        return [heads * average] * layers
    from madakv.budget.layers import layer_entries, pyramid

    weights = pyramid(layers, rules.steepness)
    beyond = layer_entries(torch.tensor([average - floor]), torch.tensor([tokens - floor]), heads, weights)
    return [heads * floor + n for n in beyond[0].tolist()]


def _scores(attention: Tensor, heads: int, share: int, rules: Rules) -> Tensor:
    """[H, N] from [Hq, N, N]."""
    N = attention.shape[-1]
    if rules.scores in ("keys", "expected"):
        return attention
    if rules.scores == "position":
        place = torch.arange(N, dtype=torch.float32)
        sinks = min(4, share if rules.whole_sinks else share // 2)
        return torch.where(place < sinks, float(N), place).expand(heads, N)
    if rules.scores == "all":
        score = attention.sum(1)
        if rules.per_query:
            score = score / torch.arange(N, 0, -1)
        return score.view(heads, -1, N).mean(1)
    score = attention[:, -rules.window :].mean(1).view(heads, -1, N).mean(1)
    before = pooled(score[:, : -rules.window], rules.kernel, rules.pooling, rules.zero_borders)
    return torch.cat([before, score[:, -rules.window :]], -1)


def pooled(score: Tensor, kernel: int, how: Literal["mean", "max"], zero_borders: bool) -> Tensor:
    """Pool over the last axis; at the ends over what is there, or with zeros for what is not."""
    if how == "max":
        return max_pool1d(score, kernel, stride=1, padding=kernel // 2)
    return avg_pool1d(score, kernel, stride=1, padding=kernel // 2, count_include_pad=zero_borders)


def _select(score: Tensor, shares: Sequence[int], floor: int, rules: Rules) -> Tensor:
    """[H, N] bool; the window takes half of a share, or the floor if that is more."""
    H, N = score.shape
    share = torch.tensor(list(shares))
    mask = torch.zeros(H, N, dtype=torch.bool)
    if rules.whole_window:
        score = score.clone()
        score[:, -rules.window :] = score[:, : -rules.window].max() + 1
        if rules.hard_floor:
            return _hard_floor(score, shares[0], rules.safeguard or 0.0)
        if rules.safeguard is None:
            for h, n in enumerate(shares):
                # Not a stable sort: where the window is larger than the share, kvpress keeps what topk likes.
                mask[h, score[h].topk(n).indices] = True
            return mask
    if rules.hard_floor and not rules.whole_window:
        score = score.clone()
        score[:, : rules.sinks] = score.max() + 1
        return _hard_floor(score, shares[0], rules.safeguard or 0.0)
    if rules.scores == "window":
        most = share if rules.whole_window else (share // 2).clamp_min(floor)
        protected = most.clamp_max(rules.window)
    else:
        newest = rules.scores == "all" and not rules.no_recent
        protected = share // 2 if newest else torch.zeros_like(share)
    place = torch.arange(N)
    mask = (place >= N - protected[:, None]) | (place < (share // 2).clamp_max(rules.sinks)[:, None])
    free = share - mask.sum(-1)
    score = score.masked_fill(mask, float("-inf"))
    if rules.safeguard is not None:
        free = _mixed(score, free, rules.safeguard)
    best = score.argsort(dim=-1, descending=True, stable=True)
    for h, n in enumerate(free.tolist()):
        mask[h, best[h, :n]] = True
    return mask


def _mixed(score: Tensor, free: Tensor, safeguard: float) -> Tensor:
    """[H]: entries of each head, mixed of an even part and of what the layer's best would give it."""
    from madakv.budget.apportion import apportion

    H, N = score.shape
    best = score.flatten().argsort(dim=-1, descending=True, stable=True)[: int(free.sum())]
    found = torch.bincount(best // N, minlength=H)
    # In double precision: where shares tie, noise must not decide.
    wanted = safeguard * free.double() + (1 - safeguard) * found.double()
    return apportion(free.sum(), wanted, (score > float("-inf")).sum(-1))


def _hard_floor(score: Tensor, share: int, safeguard: float) -> Tensor:
    """[H, N] bool: the layer's best, of which each head's own best are some whatever they score."""
    H, N = score.shape
    safe = max(1, int(share * safeguard))
    score = score.scatter(-1, score.topk(safe, -1).indices, torch.finfo(score.dtype).max)
    mask = torch.ones(H * N, dtype=torch.bool)
    mask[(-score).flatten().topk(H * (N - share)).indices] = False
    return mask.view(H, N)


# Both libraries


def write_model(folder: Path) -> None:
    """A random Llama with grouped queries and a prompt, for both versions of transformers."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=16,
        vocab_size=97,
        max_position_embeddings=1024,
        # Large, so that attention has peaks and kept sets are more than noise.
        initializer_range=0.2,
        eos_token_id=None,
        bos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(SEED)
    LlamaForCausalLM(config).eval().save_pretrained(folder)
    torch.save({"input_ids": torch.randint(5, 97, (1, TOKENS))}, folder / "prompt.pt")


def load(folder: Path, attention: str) -> tuple[Any, Tensor]:
    """The model and its prompt, [1, N]."""
    from transformers import LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model = LlamaForCausalLM.from_pretrained(folder, attn_implementation=attention, dtype=torch.float32).eval()
    return model, torch.load(folder / "prompt.pt", weights_only=True)["input_ids"]


def full_pass(model: Any, prompt: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits, and every layer's keys [H, N, D], of a full cache."""
    from transformers import DynamicCache

    with torch.no_grad():
        out = model(prompt, past_key_values=DynamicCache(), use_cache=True)
    return out.logits[0], [layer.keys[0] for layer in out.past_key_values.layers]


def kvpress_half(folder: Path) -> None:
    """Runs in kvpress' environment: dump what each press keeps."""
    import kvpress  # type: ignore[import-not-found]
    import transformers
    from kvpress.presses import kvzip_press  # type: ignore[import-not-found]
    from transformers import DynamicCache

    model, prompt = load(folder, "sdpa")
    logits, keys = full_pass(model, prompt)
    torch.save({"logits": logits, "keys": keys}, folder / "full.pt")
    kept: dict[str, dict[str, KeptSets]] = {}
    for case in CASES:
        # ObservedAttentionPress needs weights, which sdpa does not give; AdaKVPress refuses eager attention.
        model, prompt = load(folder, "eager" if case.press == "ObservedAttentionPress" else "sdpa")
        _, keys = full_pass(model, prompt)
        kept[case.name] = {}
        for budget in BUDGETS:
            settings = dict(case.settings)
            if case.press == "AdaKVPress":
                outer = {name: settings.pop(name) for name in ("alpha_safeguard",) if name in settings}
                inside = getattr(kvpress, case.inside)(compression_ratio=1 - budget, **settings)
                press = kvpress.AdaKVPress(inside, **outer)
            elif case.press == "KVzipPress":
                kvzip_press.AutoTokenizer = _NoInstruction
                press = kvpress.KVzipPress(compression_ratio=1 - budget, **settings)
            else:
                press = getattr(kvpress, case.press)(compression_ratio=1 - budget, **settings)
            with torch.no_grad(), press(model):
                cache = model(prompt, past_key_values=DynamicCache(), use_cache=True).past_key_values
            if case.press in ("AdaKVPress", "KVzipPress"):
                dropped = [layer.self_attn.masked_key_indices for layer in model.model.layers]
                kept[case.name][str(budget)] = [
                    _not_dropped(d[1], d[2], full) for d, full in zip(dropped, keys, strict=True)
                ]
            else:
                left = [layer.keys[0] for layer in cache.layers]
                kept[case.name][str(budget)] = [_found(part, full) for part, full in zip(left, keys, strict=True)]
    from importlib.metadata import version

    diversity: dict[str, KeptSets] = {}
    model, prompt = load(folder, "sdpa")
    for budget in BUDGETS:
        with torch.no_grad(), kvpress.KeyDiffPress(compression_ratio=1 - budget)(model):
            cache = model(prompt, past_key_values=DynamicCache(), use_cache=True).past_key_values
        diversity[str(budget)] = [_found(layer.keys[0], full) for layer, full in zip(cache.layers, keys, strict=True)]
    versions = {
        "kvpress": version("kvpress"),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    (folder / "kvpress.json").write_text(json.dumps({"versions": versions, "kept": kept, "diversity": diversity}))


class _NoInstruction:
    """In place of a tokenizer, which the random model has none of: KVzipPress then repeats the prompt alone."""

    chat_template = None

    @classmethod
    def from_pretrained(cls, _name: str) -> _NoInstruction:
        return cls()

    def encode(self, _text: str, **_: Any) -> Tensor:
        return torch.zeros(1, 0, dtype=torch.int64)


def _not_dropped(heads: Tensor, positions: Tensor, full: Tensor) -> list[list[int]]:
    """Kept positions of each head, from the pruned ones; kvpress hides these from attention only later."""
    mask = torch.ones(full.shape[:2], dtype=torch.bool)
    mask[heads, positions] = False
    return [row.nonzero()[:, 0].tolist() for row in mask]


def _found(part: Tensor, full: Tensor) -> list[list[int]]:
    """Positions of kept keys [H, n, D] among all [H, N, D], by equality: what the cache really holds."""
    same = (part[:, :, None] == full[:, None]).all(-1)
    if not bool((same.sum(-1) == 1).all()):
        raise RuntimeError("a key that kvpress kept is not exactly one of the prompt's")
    positions: list[list[int]] = same.int().argmax(-1).sort(-1).values.tolist()
    return positions


def madakv_kept(model: Any, prompt: Tensor, case: Case, budget: float) -> KeptSets:
    """What madakv.evict keeps."""
    import madakv

    with torch.no_grad(), madakv.evict(model, case.method, budget=budget, **case.options) as run:
        model(prompt, use_cache=True)
    if run.last is None:
        raise RuntimeError("nothing was evicted")
    return [[head.tolist() for head in plan.indices[0]] for plan in run.last.plans]


def run_kvpress(python: Path, folder: Path) -> dict[str, Any]:
    """Run the other half and read what it found."""
    command = [str(python), str(Path(__file__).resolve()), "--kvpress-half", str(folder)]
    # One thread on both sides, so that sums are taken in the same order wherever the versions allow it.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    subprocess.run(command, check=True, env=environment)
    found: dict[str, Any] = json.loads((folder / "kvpress.json").read_text())
    return found


def compare_all(folder: Path, theirs: Mapping[str, Mapping[str, KeptSets]]) -> list[dict[str, Any]]:
    """One row per case and budget, with the ladder of rules that leads from ours to kvpress'.

    Raises:
        RuntimeError: the plain rules are not what madakv does, or do not end in what kvpress does.
    """
    model, prompt = load(folder, "sdpa")
    by_attention = prompt_attention(folder)
    given = {
        "keys": key_distances(model, prompt),
        "expected": expected_attention(model, prompt),
        "repeated": most_when_repeated(folder),
    }
    heads = model.config.num_key_value_heads
    rows: list[dict[str, Any]] = []
    for case in CASES:
        attention = given.get(case.ours.scores, by_attention)
        for budget in BUDGETS:
            ours, other = madakv_kept(model, prompt, case, budget), theirs[case.name][str(budget)]
            rules = case.ours
            if keep(attention, heads, budget, rules) != ours:
                raise RuntimeError(f"{case.name} at {budget}: the rules in this script are not madakv's")
            ladder = []
            for words, change in case.steps:
                rules = replace(rules, **change)
                ladder.append({"rule": words, **asdict(compare(keep(attention, heads, budget, rules), other))})
            if ladder[-1]["least_jaccard"] < 1:
                raise RuntimeError(f"{case.name} at {budget}: a difference is unexplained: {ladder[-1]}")
            rows.append(
                {
                    "case": case.name,
                    "budget": budget,
                    "method": case.method,
                    "options": dict(case.options),
                    "press": case.press,
                    "settings": dict(case.settings),
                    **asdict(compare(ours, other)),
                    "ours_per_layer": [_mean([len(head) for head in layer]) for layer in ours],
                    "theirs_per_layer": [_mean([len(head) for head in layer]) for layer in other],
                    "ours_fewest": min(len(head) for layer in ours for head in layer),
                    "theirs_fewest": min(len(head) for layer in other for head in layer),
                    "ladder": ladder,
                }
            )
    return rows


def prompt_attention(folder: Path) -> list[Tensor]:
    """Every layer's attention over the prompt, [Hq, N, N]."""
    model, prompt = load(folder, "eager")
    with torch.no_grad():
        return [layer[0] for layer in model(prompt, output_attentions=True).attentions]


def key_distances(model: Any, prompt: Tensor) -> list[Tensor]:
    """How far every layer's keys point away from the mean of their directions, [H, N]."""
    _, keys = full_pass(model, prompt)
    units = [key / key.norm(dim=-1, keepdim=True) for key in keys]
    return [1 - torch.cosine_similarity(unit, unit.mean(1, keepdim=True), dim=-1) for unit in units]


def expected_attention(model: Any, prompt: Tensor, sinks: int = 4, ahead: int = 512) -> list[Tensor]:
    """What every layer expects of later queries, times the norms of values, [H, N]; zero for the first tokens.

    The queries before RoPE are the projections' own, and the mean rotation is a matrix.
    """
    from transformers import DynamicCache

    queries: list[Tensor] = []
    hooks = [
        layer.self_attn.q_proj.register_forward_hook(lambda _module, _args, out: queries.append(out[0]))
        for layer in model.model.layers
    ]
    with torch.no_grad():
        cache = model(prompt, past_key_values=DynamicCache(), use_cache=True).past_key_values
    for hook in hooks:
        hook.remove()
    N, D = prompt.shape[1], model.config.head_dim
    cos, sin = model.model.rotary_emb(queries[0], torch.arange(N, N + ahead)[None])
    half = D // 2
    mean = torch.diag(cos[0].mean(0))
    for i, wave in enumerate(sin[0].mean(0)[:half].tolist()):
        mean[i, i + half], mean[i + half, i] = -wave, wave
    scores: list[Tensor] = []
    for query, layer in zip(queries, cache.layers, strict=True):
        key, value = layer.keys[0], layer.values[0]
        H = len(key)
        per_group = []
        for h, states in enumerate(query.view(N, -1, D).transpose(0, 1)[:, sinks:]):
            own = key[h * H // (query.shape[1] // D)]
            spread = mean @ torch.cov(states.T, correction=0) @ mean.T
            logits = own @ (mean @ states.mean(0)) / D**0.5 + (own @ spread * own).sum(-1) / D / 2
            logits[:sinks] = float("-inf")
            per_group.append(logits.softmax(-1))
        scores.append(torch.stack(per_group).view(H, -1, N).mean(1) * value.norm(dim=-1))
    return scores


def most_when_repeated(folder: Path) -> list[Tensor]:
    """The most that any token of the prompt, read once more behind it, pays to each entry, [H, N] of every layer."""
    model, prompt = load(folder, "eager")
    N, H = prompt.shape[1], model.config.num_key_value_heads
    with torch.no_grad():
        attention = model(torch.cat([prompt, prompt], 1), output_attentions=True).attentions
    return [layer[0, :, N:, :N].amax(1).view(H, -1, N).amax(1) for layer in attention]


def pooling_order(attention: Sequence[Tensor], heads: int, window: int = 8, kernel: int = 5) -> dict[str, float]:
    """Overlap of the best fifth, with query heads averaged before pooling and after, per kind of pooling."""
    overlap: dict[str, float] = {}
    kinds: tuple[Literal["mean", "max"], ...] = ("mean", "max")
    for how in kinds:
        before: KeptSets = []
        after: KeptSets = []
        for layer in attention:
            score = layer[:, -window:, :-window].mean(1)
            n = score.shape[-1] // 5
            grouped = score.view(heads, -1, score.shape[-1]).mean(1)
            before.append(pooled(grouped, kernel, how, True).topk(n).indices.tolist())
            late = pooled(score, kernel, how, True).view(heads, -1, score.shape[-1]).mean(1)
            after.append(late.topk(n).indices.tolist())
        overlap[how] = compare(before, after).overlap
    return overlap


def diversity(keys: Sequence[Tensor], theirs: Mapping[str, KeptSets]) -> dict[str, Any]:
    """MixKV's diversity term against KeyDiffPress, which keeps by that alone.

    Without queries and values attention is even and norms are zero, so that diversity alone orders the scores. Heads
    of negative redundancy are left out: there MixKV gives diversity no weight.
    """
    from madakv.methods.mixkv import MixKV
    from madakv.scoring import LayerView

    compared: dict[str, Any] = {}
    for budget, kept in theirs.items():
        ours: KeptSets = []
        others: KeptSets = []
        for key, layer in zip(keys, kept, strict=True):
            H, N, D = key.shape
            unit = torch.nn.functional.normalize(key, dim=-1)
            redundant = unit.mean(1).pow(2).sum(-1) * N > 1
            nothing = torch.zeros(1, H, N, D)
            modality = torch.zeros(1, N, dtype=torch.int64)
            view = LayerView(query=nothing, key=key[None], value=nothing, modality=modality, scaling=1.0)
            # The last token is the least possible window, which is scored otherwise; it is left out of both.
            score = MixKV(window_size=1, kernel_size=1).score(view)[0, :, :-1]
            heads = [h for h in range(H) if bool(redundant[h])]
            others.append([[n for n in layer[h] if n < N - 1] for h in heads])
            ours.append(
                [score[h].topk(len(other)).indices.tolist() for h, other in zip(heads, others[-1], strict=True)]
            )
        compared[budget] = {**asdict(compare(ours, others)), "heads": sum(map(len, ours))}
    return compared


# The report


def table(rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "Kept sets of madakv and of kvpress on the same random Llama "
        f"({about['model']}) and the same {about['tokens']} tokens.",
        "`overlap` is kept by both over kept by kvpress, `Jaccard` kept by both over kept by either, each a mean "
        "over layers and heads; counts are entries per head and layer, averages.",
        "`+ all rules` is the Jaccard index once every rule of the second table is kvpress'.",
        "",
        "| method | budget | overlap | least | Jaccard | least | ours | kvpress | + all rules |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row['case']} | {row['budget']} | {row['overlap']:.3f} | {row['least_overlap']:.3f} "
            f"| {row['jaccard']:.3f} | {row['least_jaccard']:.3f} | {row['ours']:.1f} | {row['theirs']:.1f} "
            f"| {row['ladder'][-1]['least_jaccard']:.3f} |"
        )
    lines += [
        "",
        "Which rule makes which difference: the Jaccard index after each change, on top of those above it.",
        "",
        "| method | rule | " + " | ".join(str(budget) for budget in BUDGETS) + " |",
        "|---|---|" + "---:|" * len(BUDGETS),
    ]
    for case in CASES:
        own = [row for row in rows if row["case"] == case.name]
        start = " | ".join(f"{row['jaccard']:.3f}" for row in own)
        lines.append(f"| {case.name} | ours | {start} |")
        for step, (words, _) in enumerate(case.steps):
            values = " | ".join(f"{row['ladder'][step]['jaccard']:.3f}" for row in own)
            lines.append(f"| | {words} | {values} |")
    here, there = about["environment"], about["kvpress_environment"]
    order = about["pooling_order"]
    lines += [
        "",
        f"Averaging query heads before or after pooling: overlap {order['mean']:.3f} with mean pooling, "
        f"{order['max']:.3f} with max pooling.",
        "",
        "The diversity term of `mixkv` alone against `KeyDiffPress`, in heads whose redundancy is positive: "
        + "; ".join(
            f"overlap {part['overlap']:.3f} (least {part['least_overlap']:.3f}) in {part['heads']} heads at {budget}"
            for budget, part in about["diversity"].items()
        )
        + ".",
        "",
        f"madakv {here['madakv']} ({here['git']}), transformers {here['transformers']}, torch {here['torch']}; "
        f"kvpress {there['kvpress']}, transformers {there['transformers']}, torch {there['torch']}. "
        f"Logits and keys of the two agree to {about['largest_difference']:.1e}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run both halves and write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kvpress-python", type=Path, help="the python of an environment with kvpress")
    parser.add_argument("--out", type=Path, default=Path("results/kvpress"))
    parser.add_argument("--kvpress-half", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.kvpress_half is not None:
        kvpress_half(arguments.kvpress_half)
        return
    if arguments.kvpress_python is None:
        parser.error("--kvpress-python is needed")
    from madakv.evaluation.records import provenance

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder)
        found = run_kvpress(arguments.kvpress_python, folder)
        model, prompt = load(folder, "sdpa")
        logits, keys = full_pass(model, prompt)
        theirs = torch.load(folder / "full.pt", weights_only=True)
        difference = max(
            float((mine - other).abs().max())
            for mine, other in zip([logits, *keys], [theirs["logits"], *theirs["keys"]], strict=True)
        )
        # Written so that NaN fails.
        if not difference <= TOLERANCE:
            sys.exit(f"the two versions of transformers disagree by {difference}")
        attention = prompt_attention(folder)
        rows = compare_all(folder, found["kept"])
        alike = diversity(keys, found["diversity"])
    about = {
        "environment": provenance(),
        "kvpress_environment": found["versions"],
        "model": "4 layers, 8 query heads on 4 KV heads of 16",
        "seed": SEED,
        "tokens": TOKENS,
        "largest_difference": difference,
        "mean_largest_weight": _mean([float(layer[:, -8:].amax(-1).mean()) for layer in attention]),
        "diversity": alike,
        "pooling_order": pooling_order(attention, model.config.num_key_value_heads),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "overlap.json").write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    report = table(rows, about)
    (arguments.out / "table.md").write_text(report)
    print(report)


if __name__ == "__main__":
    main()
