"""What a request of the protocol asks for, and what its response says was kept: parts that need no vLLM."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from madakv.errors import ConfigurationError, InputError
from madakv.integrations.vllm.metrics import Account, Cache, Kept, Prompt
from madakv.integrations.vllm.protocol import ask, ask_nothing, with_usage
from madakv.integrations.vllm.settings import ACCOUNT, Settings

CACHE = Cache(heads=6, block_size=32, block_bytes=1000)


def test_a_cache_is_that_of_the_config() -> None:
    model = SimpleNamespace(
        get_num_layers=lambda parallel: 3, get_total_num_kv_heads=lambda: 2, get_head_size=lambda: 64
    )
    config = SimpleNamespace(model_config=model, parallel_config=None, cache_config=SimpleNamespace(block_size=32))
    assert Cache.of(config, itemsize=2) == Cache(heads=6, block_size=32, block_bytes=2 * 6 * 32 * 64 * 2)


def test_what_stays_of_a_prompt() -> None:
    # (40 + 7) / 32, rounded up 2, of 6 full blocks stay, and the eight tokens behind them.
    assert CACHE.kept(200, 0.2) == Kept(1200, 240, 4, 4000)
    assert CACHE.kept(200, 1.0) == Kept(1200, 1200, 0, 0)
    # Too short to free a block, it stays whole.
    assert CACHE.kept(60, 0.2) == Kept(360, 360, 0, 0)


def test_a_prompt_stays_whole_until_its_second_token() -> None:
    account = Account()
    account += [Prompt(CACHE.kept(200, 1.0), CACHE.kept(200, 0.2)), Prompt(CACHE.kept(60, 1.0), CACHE.kept(60, 0.2))]
    assert account.kept == Kept(1560, 1560, 0, 0)
    assert account[0].settle()
    assert not account[1].settle()
    assert account.kept == Kept(1560, 600, 4, 4000)


def request(xargs: dict[str, Any] | None = None, **extra: Any) -> Any:
    beams = extra.pop("use_beam_search", False)
    return SimpleNamespace(vllm_xargs=xargs, model_extra=extra, use_beam_search=beams)


def test_what_a_request_asks_for_goes_on_beside_what_it_asks_others_for() -> None:
    made = request({"other": 1}, madakv={"budget": 0.5}, unknown=3)
    account = ask(made, Settings())
    assert made.vllm_xargs == {"other": 1, "madakv": {"budget": 0.5}, ACCOUNT: account}
    assert made.vllm_xargs[ACCOUNT] is account
    assert Settings().budget_of(made.vllm_xargs) == 0.5


def test_a_request_cannot_bring_an_account() -> None:
    made = request({ACCOUNT: "mine"})
    account = ask(made, Settings())
    assert made.vllm_xargs[ACCOUNT] is account


@pytest.mark.parametrize(
    ("xargs", "own", "says"),
    [
        (None, {"budget": 7}, "and 1; got 7"),
        (None, {"budget": "x" * 1000}, "got 'xxx"),
        (None, {"method": "snapkv"}, "and nothing else; got 'method'"),
        (None, {"a\nb" * 500: 1}, "and nothing else; got 'a"),
        (None, [1], "sets madakv as"),
        (None, "no\n" * 500, "sets madakv as"),
        ({"madakv_budget": 0.1}, None, "and 1; got 0.1"),
        ({"madakv_method": "snapkv"}, None, "and nothing else; got 'method'"),
        ({"madakv_budget": 0.5}, {"budget": 7}, "and 1; got 7"),
    ],
)
def test_requests_are_refused_in_one_short_line(xargs: Any, own: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as refusal:
        ask(request(xargs, madakv=own), Settings())
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 200


def test_beam_search_evicts_nothing_and_says_so_if_asked() -> None:
    made = request(use_beam_search=True)
    assert not ask(made, Settings())
    assert made.vllm_xargs is None
    with pytest.raises(InputError, match="beam search"):
        ask(request(madakv={"budget": 0.5}, use_beam_search=True), Settings())


def test_a_batch_of_chats_has_no_say() -> None:
    ask_nothing(SimpleNamespace(model_extra=None))
    ask_nothing(SimpleNamespace(model_extra={"vllm_xargs": {"other": 1}}))
    for extra in ({"madakv": {"budget": 0.5}}, {"vllm_xargs": {"madakv_budget": 0.5}}):
        with pytest.raises(InputError, match="each chat by itself"):
            ask_nothing(SimpleNamespace(model_extra=extra))


def account_of_one() -> Account:
    account = Account([Prompt(CACHE.kept(200, 1.0), CACHE.kept(200, 0.2))])
    account[0].settle()
    return account


SAID = {"prompt_entries": 1200, "kept_entries": 240, "freed_blocks": 4, "saved_bytes": 4000}


def test_usage_says_what_was_kept() -> None:
    response = SimpleNamespace(usage=SimpleNamespace(prompt_tokens=200))
    assert with_usage(response, account_of_one()) is response
    assert response.usage.madakv == SAID
    refused = SimpleNamespace(error="no")
    assert with_usage(refused, account_of_one()) is refused
    nothing = SimpleNamespace(usage=SimpleNamespace())
    assert vars(with_usage(nothing, Account()).usage) == {}


def test_of_a_stream_only_usage_changes() -> None:
    text = 'data: {"choices":[{"text":"say \\"usage\\":{\\"a\\":1}"}]}\n\n'
    nested = 'data: {"choices":[{"delta":{"usage":{"a":1}}}]}\n\n'
    usage = 'data: {"id":"é","usage":{"prompt_tokens":200}}\n\n'
    event = SimpleNamespace(type="response.created", response=SimpleNamespace(usage=None))
    last = SimpleNamespace(type="response.completed", response=SimpleNamespace(usage=SimpleNamespace()))

    async def lines() -> AsyncIterator[Any]:
        for line in (text, nested, usage, "data: [DONE]\n\n", event, last):
            yield line

    async def read() -> list[Any]:
        return [line async for line in with_usage(lines(), account_of_one())]

    said = asyncio.run(read())
    assert [*said[:2], *said[3:]] == [text, nested, "data: [DONE]\n\n", event, last]
    assert event.response.usage is None
    assert last.response.usage.madakv == SAID
    assert said[2].endswith("}\n\n")
    assert json.loads(said[2].removeprefix("data: ")) == {"id": "é", "usage": {"prompt_tokens": 200, "madakv": SAID}}
