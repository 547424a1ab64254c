"""A draft of the answer scores the prompt: same first token, same budget, and what it needs is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig, TextStreamer

import madakv
from madakv import ConfigurationError, UnsupportedOptionError, bundled
from madakv.evaluation.distance import read_with_answer
from madakv.methods import from_text, resolve
from madakv.prompts import model_inputs
from tests import tiny


def drafted(
    model: Any, inputs: dict[str, Any], method: str = "madakv:safeguard=0.2", steps: int = 8, **options: Any
) -> torch.Tensor:
    with madakv.evict(model, from_text(method, budget=0.2), draft=4):
        return tiny.greedy(model, inputs, steps, **options)


def test_kept_is_what_question_and_draft_attend_to() -> None:
    """The second reading's plans are those of psi from full attention, question and draft together."""
    model, inputs = tiny.llava(), tiny.document()
    without = resolve("madakv", budget=0.2, values=False, context=0, echo=0)
    method = resolve(without, draft=4, answer_weight=2.0)
    with madakv.evict(model, without) as run:
        draft = tiny.greedy(model, inputs, 4)
    with madakv.evict(model, method) as run:
        out = tiny.greedy(model, inputs, 8)
    assert run.last is not None
    assert out[0, 0] == draft[0, 0]
    assert tiny.IMAGE_TOKEN not in draft
    N = inputs["input_ids"].shape[1]
    longer = {**inputs, "input_ids": torch.cat([inputs["input_ids"], draft], 1)}
    longer["attention_mask"] = torch.ones_like(longer["input_ids"])
    eager = model.config._attn_implementation
    model.set_attn_implementation("eager")
    attentions = model(**longer, output_attentions=True).attentions
    model.set_attn_implementation(eager)
    psi = []
    for layer in attentions:
        grouped = layer[0, :, :, :N].unflatten(0, (2, 4)).mean(1)
        psi.append((grouped[:, N - 10 : N].sum(1) + 2 * grouped[:, N:].sum(1))[None])
    modality = (inputs["input_ids"] == tiny.IMAGE_TOKEN).long()
    plans = madakv.allocate(psi, modality, method)
    for plan, kept in zip(plans, run.last.plans, strict=True):
        assert torch.equal(plan.positions, kept.positions)
    assert run.last.kv_bytes <= 0.2 * run.last.kv_bytes_full * 1.01


@pytest.mark.parametrize("lookahead", [0, 3])
def test_scores_weigh_what_an_entry_adds(lookahead: int) -> None:
    """psi of question and answer, times how far the value moves the residual stream, decides."""
    torch.manual_seed(7)
    model, inputs = tiny.llava(), tiny.document()
    layers = read_with_answer(model, inputs, tiny.greedy(model, inputs, 6)[0].tolist())
    method = resolve("madakv", budget=0.2, lookahead=lookahead, context=0, echo=0)
    with madakv.evict(model, method) as run:
        tiny.greedy(model, inputs, 6)
    weighed = []
    for layer in layers:
        psi = method.score(layer.view) + method.weights.answer_weight * layer.paid[:lookahead].sum(0).mean(1)[None]
        weight = model.get_decoder().layers[len(weighed)].self_attn.o_proj.weight
        heads, D = layer.view.query.shape[1], layer.view.value.shape[-1]
        value = layer.view.value.repeat_interleave(heads // layer.view.value.shape[1], 1)
        moved = torch.einsum("bhnd,ehd->bhne", value, weight.view(-1, heads, D)).square().sum(-1)
        weighed.append(psi * moved.unflatten(1, (*psi.shape[1:2], -1)).mean(2).sqrt())
    assert run.last is not None
    plans = madakv.allocate(weighed, layers[0].view.modality, method)
    for plan, kept in zip(plans, run.last.plans, strict=True):
        assert torch.equal(plan.positions, kept.positions)


def test_at_budget_one_nothing_changes() -> None:
    torch.manual_seed(1)
    model, inputs = tiny.llava(), tiny.document()
    with madakv.evict(model, budget=1.0, draft=3):
        assert torch.equal(tiny.greedy(model, inputs), tiny.greedy(model, inputs, use_cache=True))
    plain = tiny.greedy(model, inputs)
    with madakv.evict(model, budget=1.0, draft=3):
        assert torch.equal(tiny.greedy(model, inputs), plain)


def test_padded_rows_get_what_they_get_alone() -> None:
    torch.manual_seed(2)
    model, (tokens, mask) = tiny.llama(), tiny.ids(40, 27)
    both = drafted(model, {"input_ids": tokens, "attention_mask": mask})
    for row, length in enumerate((40, 27)):
        alone = drafted(model, {"input_ids": tokens[row : row + 1, -length:]})
        assert torch.equal(both[row], alone[0])


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_short_answers(steps: int) -> None:
    torch.manual_seed(3)
    model, inputs = tiny.llava(), tiny.document()
    out = drafted(model, inputs, steps=steps)
    assert out.shape == (1, steps)
    assert torch.equal(out[:, :1], tiny.greedy(model, inputs, 1))


def test_rows_that_end_at_once_are_filled() -> None:
    torch.manual_seed(4)
    model, (tokens, mask) = tiny.llama(), tiny.ids(40, 27)
    inputs = {"input_ids": tokens, "attention_mask": mask}
    end = int(tiny.greedy(model, inputs, 1)[1, 0])
    out = drafted(model, inputs, eos_token_id=end)
    assert out[1, 0] == end
    assert (out[1, 1:] == 0).all()
    alone = drafted(model, {"input_ids": tokens[1:, -27:]}, eos_token_id=end)
    assert alone.tolist() == [[end]]


def test_streamers_hear_every_token_once() -> None:
    heard: list[torch.Tensor] = []

    class Ear(TextStreamer):
        def __init__(self) -> None:
            pass

        def put(self, value: torch.Tensor) -> None:
            heard.append(value.reshape(-1))

        def end(self) -> None:
            heard.append(torch.tensor([-1]))

    torch.manual_seed(5)
    model, inputs = tiny.llava(), tiny.document()
    out = drafted(model, inputs, streamer=Ear())
    assert torch.equal(heard[0], inputs["input_ids"][0])
    assert torch.cat(heard[1:]).tolist() == [*out[0].tolist(), -1]


@pytest.mark.parametrize("name", ["max_new_tokens", "max_length"])
def test_lengths_are_kept(name: str) -> None:
    torch.manual_seed(6)
    model, inputs = tiny.llava(), tiny.document()
    N = inputs["input_ids"].shape[1]
    config = GenerationConfig(**{name: 7 if name == "max_new_tokens" else N + 7}, do_sample=False)
    with madakv.evict(model, draft=4):
        assert model.generate(**inputs, generation_config=config).shape == (1, N + 7)


ALIKE: dict[str, dict[str, Any]] = {
    "no mask": {},
    "allowed tokens": {"prefix_allowed_tokens_fn": lambda b, ids: [7, 8, 9, 10]},
    "a criterion": {"stopping_criteria": [lambda ids, scores, **_: torch.tensor([len(ids[0]) > 20] * len(ids))]},
    "least length": {"min_new_tokens": 3},
    "not at first": {"begin_suppress_tokens": [8, 9]},
    "longest in all": {"max_new_tokens": None, "max_length": 21},
    "no length": {"max_new_tokens": None},
    "penalty": {"repetition_penalty": 1.7},
    "a dict": {"return_dict_in_generate": True},
    "one token": {"max_new_tokens": 1, "return_dict_in_generate": True},
}


@pytest.mark.parametrize("name", ALIKE)
@pytest.mark.parametrize("end", [None, 1, 3])
def test_at_budget_one_every_option_counts_as_it_does_without(name: str, end: int | None) -> None:
    """Rows of several lengths, ends after the first, second or fourth token: a draft changes nothing."""
    torch.manual_seed(11)
    model, (tokens, _) = tiny.llama(), tiny.ids(20, 11, 7)
    options = {"max_new_tokens": 6, "do_sample": False, **ALIKE[name]}
    if end is not None:
        options["eos_token_id"] = model.generate(tokens, max_new_tokens=6, do_sample=False)[:, 20 + end - 1].tolist()
    want = model.generate(tokens, **options)
    with madakv.evict(model, budget=1.0, draft=3):
        got = model.generate(tokens, **options)
    assert type(got) is type(want) or hasattr(got, "sequences")
    got, want = (x if isinstance(x, torch.Tensor) else x.sequences for x in (got, want))
    assert torch.equal(got, want)


@pytest.mark.parametrize(
    "options",
    [{"max_time": 5.0}, {"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}, {"output_logits": True}],
)
def test_what_needs_one_reading_is_refused(options: dict[str, Any]) -> None:
    model, inputs = tiny.llava(), tiny.document()
    name = next(iter(options))
    with madakv.evict(model, draft=4), pytest.raises(UnsupportedOptionError, match=f"{name}"):
        model.generate(**inputs, max_new_tokens=4, **options)


def test_lookahead_and_draft_exclude_each_other() -> None:
    with pytest.raises(ConfigurationError, match="choose one"):
        resolve("madakv", lookahead=1, draft=1)


def test_the_bundled_model_answers_more_with_a_draft() -> None:
    """A draft finds what only the answer asks for: all digits in order, at a fifth of the memory."""
    model, processor = bundled.load()
    sample = bundled.sample()
    question = next(question for question in sample.questions if question.kind == "which")
    inputs = model_inputs(processor, f"{sample.text} {question.prompt}", sample.images)
    answers = []
    for draft in (0, 12):
        with madakv.evict(model, budget=0.2, draft=draft):
            out = model.generate(**inputs, max_new_tokens=20, do_sample=False)
        answers.append(processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    assert answers[1] == question.answer
