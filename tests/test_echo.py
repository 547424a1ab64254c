"""Text of the prompt that is read once more behind it scores, and leaves no other trace."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

import madakv
from madakv import ConfigurationError, UnsupportedOptionError
from madakv.hf.cache import RaggedCache
from madakv.hf.echo import Echo
from madakv.hf.replay import ReadPrompt
from madakv.methods import resolve
from madakv.methods.grouped import AUTOMATIC_ECHO
from madakv.reading.echo import echo_places
from tests import tiny

DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 48}


def places(modality: list[list[int]], most: int, relevance: dict[int, float] | None = None) -> list[list[int]]:
    """Which tokens of each row are read again, if those at some places are relevant."""
    kinds = torch.tensor(modality)
    told = torch.zeros(kinds.shape)
    for place, value in (relevance or {}).items():
        told[:, place] = value
    found, heard = echo_places(kinds, torch.full((len(kinds),), most), told)
    return [row[own].tolist() for row, own in zip(found, heard, strict=True)]


def test_all_text_is_read_again_where_it_fits() -> None:
    assert places([[0, 1, 1, 0, 0], [-1, -1, 0, 1, 1], [1, 1, 1, 1, 1]], 8) == [[0, 3, 4], [2], []]


def test_of_longer_texts_the_most_relevant_runs_are() -> None:
    assert places([[0] * 100], 48, {40: 2.0, 90: 1.0}) == [[*range(32, 64), *range(80, 96)]]
    # Relevance speaks for its neighbours: what stands behind the words that were asked for is read again, too.
    assert places([[0] * 100], 32, {47: 2.0}) == [[*range(32, 64)]]
    # Runs of text go on behind a picture, and each row has its own.
    rows = [[0] * 10 + [1] * 40 + [0] * 50, [0] * 100]
    assert places(rows, 16, {54: 1.0}) == [[*range(10), *range(50, 56)], [*range(32, 48)]]


def test_of_less_than_a_run_its_beginning_is() -> None:
    assert places([[0] * 100], 5, {60: 1.0}) == [[48, 49, 50, 51, 52]]
    assert places([[0] * 100], 20, {60: 2.0, 9: 1.0}) == [[*range(48, 68)]]
    assert places([[0] * 100], 0) == [[]]


def test_no_more_than_asked_for_whatever_the_scores() -> None:
    torch.manual_seed(0)
    for most in range(1, 60, 7):
        kinds = (torch.rand(3, 57) < 0.5).long()
        found, heard = echo_places(kinds, torch.full((3,), most), torch.rand(3, 57))
        text = (kinds == 0).sum(-1)
        assert heard.sum(-1).tolist() == text.clamp_max(most).tolist()
        for row, own, kind in zip(found, heard, kinds, strict=True):
            assert (kind[row[own]] == 0).all()
            assert row[own].diff().gt(0).all()


def attentions(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """[B, Hq, N, N] of every layer."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    found: tuple[Tensor, ...] = model(**inputs, output_attentions=True).attentions
    model.set_attn_implementation(before)
    return found


@pytest.mark.parametrize("groups", ["mean", "max"])
def test_the_most_that_any_echoed_token_attends_counts(groups: str) -> None:
    """Plans are those of psi + the echo's maximum, told from full attention over prompt and echo."""
    model, inputs = tiny.llava(), tiny.document()
    method = resolve("madakv", budget=0.2, values=False, context=0, echo=64, echo_weight=3.0, groups=groups)
    with madakv.evict(model, method) as run:
        tiny.greedy(model, inputs, 1)
    ids = inputs["input_ids"]
    N = ids.shape[1]
    again = ids[:, (ids != tiny.IMAGE_TOKEN)[0]]
    longer = {**inputs, "input_ids": torch.cat([ids, again], 1)}
    longer["attention_mask"] = torch.ones_like(longer["input_ids"])
    psi = []
    for layer in attentions(model, longer):
        heads = layer[..., :N].unflatten(1, (2, 4))
        question, echo = heads[:, :, :, N - 10 : N].sum(3), heads[:, :, :, N:].amax(3)
        own, most = (x.mean(2) if groups == "mean" else x.amax(2) for x in (question, echo))
        psi.append(own + 3 * most)
    plans = madakv.allocate(psi, (ids == tiny.IMAGE_TOKEN).long(), method)
    assert run.last is not None
    for plan, kept in zip(plans, run.last.plans, strict=True):
        assert torch.equal(plan.positions, kept.positions)
    assert run.last.kv_bytes <= 0.2 * run.last.kv_bytes_full * 1.01


@pytest.mark.parametrize("options", [{}, {"draft": 3}, {"lookahead": 2}])
def test_at_budget_one_nothing_changes(options: dict[str, int]) -> None:
    model, inputs = tiny.llava(), tiny.document()
    plain = tiny.greedy(model, inputs)
    with madakv.evict(model, budget=1.0, echo=20, **options) as run:
        assert torch.equal(tiny.greedy(model, inputs), plain)
    assert run.last is not None
    assert run.last.kv_bytes == run.last.kv_bytes_full


def test_it_changes_what_is_kept() -> None:
    model, inputs = tiny.llava(), tiny.document()
    kept = []
    for echo in (0, 64):
        with madakv.evict(model, budget=0.2, echo=echo) as run:
            tiny.greedy(model, inputs, 1)
        assert run.last is not None
        kept.append(torch.cat([plan.positions for plan in run.last.plans]))
    assert not torch.equal(*kept)


@pytest.mark.parametrize("draft", [0, 3])
def test_a_padded_row_keeps_what_it_keeps_alone(draft: int) -> None:
    model = tiny.llama()
    tokens, mask = tiny.ids(40, 23)
    with madakv.evict(model, budget=0.3, safeguard=0.2, echo=16, draft=draft) as run:
        both = tiny.greedy(model, {"input_ids": tokens, "attention_mask": mask})
        assert run.last is not None
        plans = run.last.plans
        alone = tiny.greedy(model, {"input_ids": tokens[1:, 17:], "attention_mask": mask[1:, 17:]})
    assert torch.equal(both[1:], alone)
    for plan, lone in zip(plans, run.last.plans, strict=True):
        for kept, own in zip(plan.indices[1], lone.indices[0], strict=True):
            assert (kept - 17).tolist() == own.tolist()


def test_what_fills_up_a_draft_that_ended_is_not_heard() -> None:
    """A row whose draft is over after three tokens keeps in a batch what it keeps alone."""
    model = tiny.llama()
    tokens, mask = tiny.ids(40, 23)
    batch = {"input_ids": tokens, "attention_mask": mask}
    single = {"input_ids": tokens[1:, 17:], "attention_mask": mask[1:, 17:]}
    with madakv.evict(model, budget=0.35, echo=16, context=0):
        draft = tiny.greedy(model, batch, 6)
    end = {"eos_token_id": int(draft[1, 2]), "pad_token_id": 0}
    assert end["eos_token_id"] not in [*draft[0].tolist(), *draft[1, :2].tolist()]
    with madakv.evict(model, budget=0.35, echo=16, draft=6, context=0) as run:
        tiny.greedy(model, batch, 6, **end)
        assert run.last is not None
        plans = run.last.plans
        tiny.greedy(model, single, 6, **end)
    for plan, alone in zip(plans, run.last.plans, strict=True):
        for kept, own in zip(plan.indices[1], alone.indices[0], strict=True):
            assert (kept - 17).tolist() == own.tolist()


def test_hidden_states_are_those_of_the_prompt() -> None:
    model, inputs = tiny.llava(), tiny.document()
    N = inputs["input_ids"].shape[1]
    plain = model(**inputs, output_hidden_states=True)
    with madakv.evict(model, budget=0.5, echo=8):
        out = model(**inputs, output_hidden_states=True)
    assert [states.shape[1] for states in out.hidden_states] == [N] * len(plain.hidden_states)
    torch.testing.assert_close(out.logits, plain.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("echo", [8, "all"])
def test_hidden_states_of_one_layer_alone_may_be_asked_for(echo: Any) -> None:
    model, inputs = tiny.llava(), tiny.document()
    plain = model(**inputs, output_hidden_states=[1])
    with madakv.evict(model, budget=0.5, echo=echo):
        out = model(**inputs, output_hidden_states=[1])
    for got, want in zip(out.hidden_states, plain.hidden_states, strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_a_prompt_without_text_has_no_echo() -> None:
    model, plans = tiny.llava(), []
    inputs = {"input_ids": torch.full((1, 8), tiny.IMAGE_TOKEN), "pixel_values": torch.randn(2, 3, 8, 8)}
    for echo in (0, 8):
        with madakv.evict(model, budget=0.5, echo=echo, context=0) as run:
            tiny.greedy(model, inputs | {"attention_mask": torch.ones(1, 8, dtype=torch.int64)}, 2)
        assert run.last is not None
        plans.append(torch.cat([plan.positions for plan in run.last.plans]))
    assert torch.equal(*plans)


@pytest.mark.parametrize("with_count", [False, True])
def test_text_goes_on_behind_the_farthest_axis(with_count: bool) -> None:
    """The axes of a picture that ends the prompt end apart; a plain count before them goes on by itself."""
    axes = torch.tensor([[[0, 1, 2, 2]], [[0, 1, 2, 3]], [[0, 1, 2, 2]]])
    positions = torch.cat([torch.arange(7, 11).view(1, 1, 4), axes]) if with_count else axes
    method = resolve("madakv", echo=2)
    cache = RaggedCache(tiny.llava().config, method)
    cache.begin(torch.tensor([[0, 0, 1, 1]]))
    kwargs = {"past_key_values": cache, "inputs_embeds": torch.zeros(1, 4, 2), "position_ids": positions}
    config = SimpleNamespace(get_text_config=lambda **_: SimpleNamespace())
    found = Echo(config).before(torch.nn.Identity(), (), kwargs)
    assert found is not None
    changed = found[1]["position_ids"]
    assert torch.equal(changed[..., :4], positions)
    assert changed[-3:, 0, 4:].tolist() == [[4, 5]] * 3
    if with_count:
        assert changed[0, 0, 4:].tolist() == [11, 12]


def test_a_failed_prefill_leaves_nothing_behind() -> None:
    model, inputs = tiny.llava(), tiny.document()
    turn = torch.randint(5, 97, (1, 19))
    with madakv.evict(model, budget=0.5, echo=8):
        cache = model(**inputs).past_key_values
        fails = model.get_decoder().layers[-1].register_forward_pre_hook(_stop)
        with pytest.raises(KeyboardInterrupt):
            model(**tiny.document(text=1, images=1))
        fails.remove()
        assert model(input_ids=turn, past_key_values=cache).logits.shape[1] == 19


def _stop(*_: Any) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_cache_can_be_used_again() -> None:
    model = tiny.llava()
    cache = RaggedCache(model.config, resolve("madakv", budget=0.5, echo=8))
    with madakv.evict(model, budget=0.5, echo=8):
        fails = model.get_decoder().layers[-1].register_forward_pre_hook(_stop)
        with pytest.raises(KeyboardInterrupt):
            model(**tiny.document(), past_key_values=cache)
        fails.remove()
        cache.reset()
        again = tiny.document(text=2, images=2)
        assert model(**again, past_key_values=cache).logits.shape[1] == again["input_ids"].shape[1]


def test_an_echo_that_was_interrupted_is_not_built_upon() -> None:
    """What some layers have heard of it, and hold in their tails, is no prompt that was read."""
    model, ids = tiny.llama(), torch.randint(5, 97, (1, 40))
    passes = []

    def stop(*_: Any) -> None:
        passes.append(1)
        if len(passes) == 2:
            raise KeyboardInterrupt

    with madakv.evict(model, budget=0.5, echo=5) as run:
        wanted = tiny.greedy(model, {"input_ids": ids}, 4)
        cache = RaggedCache(model.config, resolve("madakv", budget=0.5, echo=5))
        fails = model.get_decoder().layers[1].register_forward_pre_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            model(input_ids=ids, past_key_values=cache)
        fails.remove()
        run.last = None
        with pytest.raises(UnsupportedOptionError, match="interrupted"):
            model(input_ids=ids[:, :1], past_key_values=cache)
        assert run.last is None
        cache.reset()
        assert torch.equal(tiny.greedy(model, {"input_ids": ids}, 4, past_key_values=cache), wanted)


def test_a_draft_is_refused_where_positions_depend_on_length() -> None:
    model = LlamaForCausalLM(tiny.text_config(rope_parameters=DYNAMIC)).eval()
    inputs = torch.randint(5, 97, (1, 12))
    with pytest.raises(UnsupportedOptionError, match="behind 48 positions"), madakv.evict(model, budget=0.5, draft=4):
        model.generate(inputs, max_new_tokens=2)


def test_an_echo_ends_where_positions_would_be_those_of_a_longer_text(caplog: pytest.LogCaptureFixture) -> None:
    """40 of 48 positions are taken: 8 are left, behind which the model would go on as in another text."""
    model = LlamaForCausalLM(tiny.text_config(rope_parameters=DYNAMIC)).eval()
    inputs = {"input_ids": torch.randint(5, 97, (1, 40))}
    assert kept_of(model, inputs, "all") == kept_of(model, inputs, 8)
    assert "an echo of 8 tokens instead of 40" in caplog.text
    assert kept_of(model, inputs, 8) != kept_of(model, inputs, 0)


def test_what_is_said_of_every_token_is_said_of_those_that_are_read_again() -> None:
    model, inputs = tiny.llama(), {"input_ids": torch.randint(5, 97, (1, 12))}
    told = []

    def note(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        told.append(kwargs["weights"])

    weights = torch.arange(12.0).view(1, 12, 1)
    with madakv.evict(model, budget=0.5, echo="all"):
        watch = model.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
        model(**inputs, weights=weights)
        watch.remove()
    assert [x.flatten().tolist() for x in told] == [[*range(12)]] * 2


def test_padding_is_hidden_from_what_is_read_again() -> None:
    """Layers with windows of their own know it from the mask alone."""
    model, told = tiny.llama(), []
    tokens, mask = tiny.ids(40, 23)

    def note(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        told.append(kwargs["attention_mask"])

    with madakv.evict(model, budget=0.3, echo=30):
        watch = model.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
        model(input_ids=tokens, attention_mask=mask)
        watch.remove()
    heard = torch.arange(30) < torch.tensor([[30], [23]])
    assert torch.equal(told[1], torch.cat([mask, heard.long()], 1))


def test_a_decoder_without_a_named_output_is_read_again_apart() -> None:
    model, inputs = tiny.llama(), {"input_ids": torch.randint(5, 97, (1, 12))}
    with madakv.evict(model, budget=0.5, echo="all") as run:
        model(**inputs)
        assert run.last is not None
        wanted = run.last.plans[0].positions
        cache = RaggedCache(model.config, resolve("madakv", budget=0.5, echo="all"))
        cache.begin(torch.zeros(1, 12, dtype=torch.int64))
        model.get_decoder()(**inputs, return_dict=False, past_key_values=cache)
        assert torch.equal(cache.decide()[0].positions, wanted)


def test_a_mask_of_its_own_hides_from_an_echo_what_it_hides_from_all() -> None:
    """The first three tokens are seen by nobody: as padding."""
    model, ids = tiny.llama(), torch.randint(5, 97, (1, 12))
    mask = torch.ones(1, 1, 12, 12, dtype=torch.bool).tril()
    mask[..., :3] = False
    padded = torch.tensor([[0] * 3 + [1] * 9])
    for echo in (8, "all"):
        found = []
        for seen in (mask, padded):
            positions = torch.arange(12)[None]
            with madakv.evict(model, budget=0.5, echo=echo) as run:
                model(input_ids=ids, attention_mask=seen, position_ids=positions)
            assert run.last is not None
            found.append([plan.positions.tolist() for plan in run.last.plans])
        assert found[0] == found[1]


@pytest.mark.parametrize("draft", [0, 3])
def test_it_is_heard_the_same_with_the_prompt_and_after_it(draft: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = tiny.llava(), tiny.document(text=20)
    found = []
    for together in (True, False):
        monkeypatch.setattr("madakv.hf.echo._can_go_along", lambda *_, together=together: together)
        with madakv.evict(model, budget=0.3, echo="all", draft=draft) as run:
            tiny.greedy(model, inputs, 4)
        assert run.last is not None
        found.append([plan.positions.tolist() for plan in run.last.plans])
    assert found[0] == found[1]


def test_it_is_heard_the_same_with_and_without_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = tiny.llava(), tiny.document(text=20)
    padded = {name: torch.cat([rows, rows]) for name, rows in inputs.items()}
    padded["attention_mask"][0, :7] = 0
    found = []
    for backend in ("native", "torch"):
        monkeypatch.setattr("madakv.scoring.most.native.chosen", lambda _device, backend=backend: backend)
        with madakv.evict(model, budget=0.3) as run:
            answer = model.generate(**padded, max_new_tokens=4, do_sample=False)
        assert run.last is not None
        found.append(([plan.positions.tolist() for plan in run.last.plans], answer.tolist()))
    assert found[0] == found[1]


def kept_of(model: Any, inputs: dict[str, Any], echo: Any) -> list[list[int]]:
    with madakv.evict(model, budget=0.3, echo=echo) as run:
        model(**inputs)
    assert run.last is not None
    return [plan.positions.tolist() for plan in run.last.plans]


def test_by_default_a_sixth_of_the_prompt_is_read_again() -> None:
    model, inputs = tiny.llava(), tiny.document(text=20)
    N = inputs["input_ids"].shape[1]
    assert kept_of(model, inputs, "auto") == kept_of(model, inputs, int(N * AUTOMATIC_ECHO))
    assert kept_of(model, inputs, "auto") != kept_of(model, inputs, 0)
    rows = torch.tensor([10, 99, 102])
    assert resolve("madakv").most_echoed(rows).tolist() == [1, 16, 17]
    assert resolve("madakv", echo="all").most_echoed(rows).tolist() == [10, 99, 102]
    assert resolve("madakv", echo=7).most_echoed(rows).tolist() == [7, 7, 7]


@pytest.mark.parametrize("value", [-1, 1.5, True, "always"])
def test_not_a_count(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="echo"):
        resolve("madakv", echo=value)


def test_methods_that_do_not_score_by_attention_have_no_echo() -> None:
    with pytest.raises(ConfigurationError, match="echo"):
        resolve("streaming_llm", echo=8)


def test_no_echo_beyond_the_positions_that_the_model_knows() -> None:
    """A prompt of 60 tokens leaves room for 4 more of 64, and one of 64 for none."""
    model = LlamaForCausalLM(tiny.text_config(max_position_embeddings=64)).eval()
    for tokens, echo in ((60, 4), (64, 0)):
        inputs = {"input_ids": torch.randint(5, 97, (1, tokens))}
        assert kept_of(model, inputs, 40) == kept_of(model, inputs, echo)


def test_router_logits_are_those_of_the_prompt() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}
    model = MixtralForCausalLM(MixtralConfig(**sizes, **heads)).eval()
    inputs = {"input_ids": torch.randint(5, 97, (2, 30)), "attention_mask": torch.ones(2, 30, dtype=torch.int64)}
    plain = model(**inputs, output_router_logits=True)
    with madakv.evict(model, budget=0.5, echo=8):
        out = model(**inputs, output_router_logits=True)
    for got, want in zip(out.router_logits, plain.router_logits, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_what_was_heard_at_one_budget_is_not_taken_for_another() -> None:
    """At a budget of 1.0 nothing is scored, and the next budget must not take that for its own scores."""
    model, inputs = tiny.llava(), tiny.document(text=20)
    wanted = kept_of(model, inputs, "auto")
    read = ReadPrompt.of(model, inputs)
    for budget in (1.0, 0.3):
        with madakv.evict(model, budget=budget) as run:
            read.evicted(model, run)
    assert run.last is not None
    assert [plan.positions.tolist() for plan in run.last.plans] == wanted


def test_one_entry_per_head_is_no_full_budget() -> None:
    assert resolve("madakv", budget=1).echoes
    assert not resolve("madakv", budget=1.0).echoes
