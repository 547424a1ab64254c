"""How far a method's attention output is from the full cache's, and from the best that its bytes could buy.

The answer is read with the full cache, so that every query it will make is known. Each method evicts the prompt, and
the attention outputs of those queries over what it kept are compared with those over everything. An oracle scores
with these very queries and spends the same bytes; given a method's own counts it tells which of its decisions cost
most: the scores, the split between modalities, between heads, or between layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from madakv.api import evict
from madakv.attention import ragged_attention
from madakv.attention.ragged import ragged_partial, weights_on_prompt
from madakv.budget.mpa import top_of_each_modality
from madakv.cache import RaggedEntries, Tail
from madakv.hf.replay import ReadPrompt
from madakv.merge import merge_evicted
from madakv.methods import Method
from madakv.modality import KINDS, Modality
from madakv.plan import KeepPlan
from madakv.reading import Decisions, Scores
from madakv.scoring import LayerView

ORACLES = ("scores", "modalities", "heads", "layers")
"""What the oracle decides, each with those before it: which tokens are kept for given counts per layer, head and
modality; the split between modalities; between heads; between layers."""


@dataclass(frozen=True, eq=False)
class Later:
    """One layer's prompt, and what the tokens after it asked of it.

    Attributes:
        view: the prompt's prefill.
        query: [1, Hq, Q, Dk] of the later tokens.
        key: [1, H, Q, Dk].
        value: [1, H, Q, Dv].
        paid: [Q, H, G, N] fp32, attention of each later token to the prompt.
        out: [1, Hq, Q, Dv], attention output over everything.
    """

    view: LayerView
    query: Tensor
    key: Tensor
    value: Tensor
    paid: Tensor
    out: Tensor


def read_with_answer(model: Any, inputs: Any, answer: Sequence[int]) -> list[Later]:
    """Read a prompt and its answer, and part them again.

    Args:
        model: as for `madakv.evict`; all layers with full attention.
        inputs: of the prompt, one row.
        answer: ids of the answer.
    """
    prompt = inputs["input_ids"].shape[1]
    return [_part(view, prompt) for view in ReadPrompt.of(model, _followed(inputs, answer)).views]


def scores_of(model: Any, prompt: ReadPrompt, method: Method) -> Scores:
    """What a method makes of a prompt, and of an echo of it if it has one.

    Args:
        model: as `read_with_answer`.
        prompt: read by it.
        method: the method; a draft or a lookahead of it is left out, see `plans_of`.
    """
    with evict(model, method):
        return prompt.heard_by(model, method)


def _followed(inputs: Any, ids: Sequence[int]) -> dict[str, Any]:
    """Inputs of a prompt with further text behind it."""
    extended = dict(inputs)
    more = torch.tensor([list(ids)], device=inputs["input_ids"].device, dtype=inputs["input_ids"].dtype)
    extended["input_ids"] = torch.cat([inputs["input_ids"], more], dim=1)
    for name, fill in (("attention_mask", 1), ("mm_token_type_ids", 0)):
        if name in extended:
            extended[name] = torch.cat([inputs[name], torch.full_like(more, fill)], dim=1)
    return extended


def _part(view: LayerView, prompt: int) -> Later:
    own = view.prefix(prompt)
    query, key, value = (x[:, :, prompt:] for x in (view.query, view.key, view.value))
    whole = RaggedEntries.gather(own.key, own.value, KeepPlan.everything(own.modality, key.shape[1]))
    tail, mask = _tail(key, value)
    options: dict[str, Any] = {"scaling": view.scaling, "softcap": view.softcap}
    part = ragged_partial(query, whole, tail, mask=mask, sinks=view.sinks, **options)
    paid = weights_on_prompt(query, whole, part.lse, **options)[0].permute(2, 0, 1, 3)
    out = ragged_attention(query, whole, tail, mask=mask, sinks=view.sinks, **options)
    return Later(view=own, query=query, key=key, value=value, paid=paid, out=out)


def _tail(key: Tensor, value: Tensor) -> tuple[Tail, Tensor]:
    """The later tokens as a cache's tail, and their causal mask."""
    tail = Tail()
    tail.append(key, value, 0)
    Q = key.shape[2]
    return tail, torch.ones(Q, Q, dtype=torch.bool, device=key.device).tril()[None, None]


def plans_of(layers: Sequence[Later], method: Method, scores: Scores | None = None) -> list[KeepPlan]:
    """What a method keeps of every layer; a draft is taken to be right.

    Args:
        layers: from `read_with_answer`.
        method: the method.
        scores: from `scores_of`, which a method with an echo needs.
    """
    heard = max(method.lookahead, method.draft)
    modality = layers[0].view.modality
    if scores is None:
        scores = Scores(method, modality.device)
        for layer in layers:
            scores.add_layer(layer.view)
    scores = scores.copy()
    decisions = Decisions(method, modality, heads=layers[0].key.shape[1], layers=len(layers))
    for number, layer in enumerate(layers):
        decisions.observe(layer.view)
        for paid in layer.paid[:heard]:
            scores.add(number, method.later_score(paid[None]))
    return decisions.decide_all([scores.final(number) for number in range(len(layers))])


def errors(layers: Sequence[Later], plans: Sequence[KeepPlan], method: Method | None = None) -> list[float]:
    """Relative error of each layer's attention output, over all later tokens and heads.

    Args:
        layers: from `read_with_answer`.
        plans: what each layer keeps.
        method: merges what it evicts, if it does; None merges nothing.
    """
    found = []
    for layer, plan in zip(layers, plans, strict=True):
        view = layer.view
        entries = RaggedEntries.gather(view.key, view.value, plan)
        if method is not None and method.merge is not None:
            entries = entries.replaced(*merge_evicted(view.key, view.value, plan, view.modality, method.merge))
        tail, mask = _tail(layer.key, layer.value)
        out = ragged_attention(
            layer.query, entries, tail, scaling=view.scaling, mask=mask, softcap=view.softcap, sinks=view.sinks
        )
        found.append(float((out - layer.out).norm() / layer.out.norm().clamp_min(1e-12)))
    return found


def oracle_plans(layers: Sequence[Later], plans: Sequence[KeepPlan], decides: str) -> list[KeepPlan]:
    """The oracle's plans at the bytes of a method's.

    Args:
        layers: from `read_with_answer`.
        plans: the method's.
        decides: one of `ORACLES`.
    """
    psi = [layer.paid.sum(0).mean(1)[None] for layer in layers]
    modality = layers[0].view.modality
    valid = (modality != Modality.PADDING)[:, None]
    if decides == "layers":
        return _best_of_all(psi, valid, sum(int(plan.counts.sum()) for plan in plans))
    made = []
    for scores, plan in zip(psi, plans, strict=True):
        candidates = valid.expand_as(scores)
        if decides == "scores":
            count = plan.kept_per_modality(modality)
            made.append(KeepPlan.from_mask(top_of_each_modality(scores, modality, candidates, count)))
        elif decides == "modalities":
            count = torch.zeros(*plan.counts.shape, len(KINDS), dtype=torch.int64, device=scores.device)
            count[..., 0] = plan.counts
            made.append(
                KeepPlan.from_mask(top_of_each_modality(scores, torch.zeros_like(modality), candidates, count))
            )
        else:
            made += _best_of_all([scores], valid, int(plan.counts.sum()))
    return made


def _best_of_all(psi: list[Tensor], valid: Tensor, total: int) -> list[KeepPlan]:
    """The `total` best scores of all layers and heads together."""
    stacked = torch.cat([scores.masked_fill(~valid, -1.0) for scores in psi])
    order = stacked.flatten().argsort(descending=True, stable=True)[:total]
    keep = torch.zeros(stacked.numel(), dtype=torch.bool, device=stacked.device)
    keep[order] = True
    return [KeepPlan.from_mask(mask[None]) for mask in keep.view_as(stacked)]
