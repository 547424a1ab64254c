"""A live server, asked through the official client: `make test-vllm`."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integrations.vllm.engines import BLOCK, IN_VLLM, TOKENS, engine
from tests.integrations.vllm.server import (
    NAME,
    Server,
    madakv_serve,
    server,
    token_ids,
    vllm_serve,
    with_tokenizer,
    written,
)

pytestmark = IN_VLLM

HEADS = 3 * 2
"""Of all layers of the model."""
BUDGETS = (0.2, 0.5, 1.0)
LONGEST = 704
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": TOKENS}
IDS: dict[str, Any] = {"ignore_eos": True, "return_token_ids": True}


@pytest.fixture(scope="module")
def served(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_tokenizer(folder, tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def live(served: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    words = madakv_serve(
        served, "--dtype", "float32", "--enforce-eager", "--block-size", str(BLOCK), "--max-model-len", str(LONGEST),
        "--max-num-seqs", "8", "--num-gpu-blocks-override", "100", "--served-model-name", NAME,
    )  # fmt: skip
    with server(words, tmp_path_factory.mktemp("log") / "server.log") as made:
        yield made


@pytest.fixture(scope="module")
def texts(prompts: list[list[int]]) -> list[str]:
    return [written(prompt) for prompt in prompts]


@pytest.fixture(scope="module")
def offline(folder: Path, texts: list[str]) -> Any:
    """What the same model says in this process, by budget, and what was kept by the server's own."""
    with engine(folder, {"budget": 0.2, "method": "madakv"}) as ours:
        return {
            budget: ours.says([token_ids(text) for text in texts], [{"madakv_budget": budget}] * len(texts))
            for budget in BUDGETS
        }


def complete(live: Server, text: Any, budget: float | None = None, **options: Any) -> Any:
    own = {} if budget is None else {"madakv": {"budget": budget}}
    return live.client.completions.create(model=NAME, prompt=text, **GREEDY | {"extra_body": IDS | own} | options)


def idle(live: Server) -> None:
    """Nobody holds a block: what the engine says of it, it says with an answer."""
    until = time.monotonic() + 60
    while True:
        complete(live, "short", max_tokens=2)
        found = live.metrics()
        running = found["vllm:num_requests_running"] + found["vllm:num_requests_waiting"]
        if found["vllm:kv_cache_usage_perc"] == 0 and running == 0:
            return
        assert time.monotonic() < until, found
        time.sleep(0.5)


def test_it_says_once_what_is_evicted_and_what_fits(live: Server) -> None:
    lines = [line for line in live.log.read_text().splitlines() if "madakv keeps" in line]
    assert len(lines) == 1
    # Of 98 blocks, a prompt of 22 and its answer take 23; once read (140 + 7) / 32, rounded up 5, and that one stay.
    assert "keeps 20% of each prompt by madakv: of prompts of 704 tokens, 13 fit at once, where 4 would" in lines[0]


def test_answers_are_those_of_the_engine_alone_and_say_what_was_kept(
    live: Server, texts: list[str], offline: Any
) -> None:
    before = live.metrics()
    total: dict[str, int] = {}
    for budget in BUDGETS:
        for number, text in enumerate(texts):
            answer = complete(live, text, None if budget == 0.2 else budget)
            assert answer.choices[0].token_ids == offline[budget].tokens[number]
            usage = answer.usage.madakv
            plans = offline[budget].plans.get(tuple(token_ids(text)))
            kept = len(text) * HEADS if plans is None else sum(len(plan.positions) for plan in plans)
            assert (usage["prompt_entries"], usage["kept_entries"]) == (len(text) * HEADS, kept)
            # Keys and values of 32 numbers of 4 bytes.
            assert usage["saved_bytes"] == usage["freed_blocks"] * BLOCK * HEADS * 2 * 32 * 4
            assert (usage["freed_blocks"] > 0) == (plans is not None)
            if plans is not None:
                for name in usage:
                    total[name] = total.get(name, 0) + usage[name]
    after = live.metrics()
    counted = {name: after[f"madakv_{name}_total"] - before[f"madakv_{name}_total"] for name in total}
    assert counted == total
    assert after["madakv_plans_total"] - before["madakv_plans_total"] == sum(len(s.plans) for s in offline.values())
    idle(live)


def test_what_ends_with_its_first_token_evicts_nothing(live: Server, texts: list[str]) -> None:
    before = live.metrics()
    usage = complete(live, texts[4], max_tokens=1).usage.madakv
    assert usage == {
        "prompt_entries": 600 * HEADS, "kept_entries": 600 * HEADS, "freed_blocks": 0, "saved_bytes": 0
    }  # fmt: skip
    assert live.metrics()["madakv_plans_total"] == before["madakv_plans_total"]


def test_streams_say_the_same(live: Server, texts: list[str]) -> None:
    for budget in (None, 0.5):
        whole = complete(live, texts[3], budget)
        parts = list(complete(live, texts[3], budget, stream=True, stream_options={"include_usage": True}))
        assert len(parts) > TOKENS // 2
        assert "".join(part.choices[0].text for part in parts if part.choices) == whole.choices[0].text != ""
        assert parts[-1].usage == whole.usage
        assert parts[-1].usage.madakv["freed_blocks"] > 0
        assert all(part.usage is None for part in parts[:-1])


def test_chat_streamed_and_not(live: Server, texts: list[str]) -> None:
    messages = [{"role": "user", "content": texts[3]}]
    said = {}
    for budget in BUDGETS:
        options: dict[str, Any] = {"extra_body": IDS | {"madakv": {"budget": budget}}}
        whole = live.client.chat.completions.create(model=NAME, messages=messages, **GREEDY | options)
        stream = live.client.chat.completions.create(
            model=NAME, messages=messages, stream=True, stream_options={"include_usage": True}, **GREEDY | options
        )
        parts = list(stream)
        said[budget] = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
        assert said[budget] == whole.choices[0].message.content
        assert parts[-1].usage == whole.usage
        rendered = f"user: {texts[3]} "
        assert whole.usage.prompt_tokens == len(rendered)
        assert complete(live, rendered, budget).choices[0].text == said[budget]
    # The control: what was compared differs where other entries are kept.
    assert len(set(said.values())) == len(BUDGETS)


def test_several_prompts_and_choices_in_one_request(live: Server, texts: list[str], offline: Any) -> None:
    answer = complete(live, texts)
    assert [choice.token_ids for choice in answer.choices] == offline[0.2].tokens
    alone = [complete(live, text).usage.madakv for text in texts]
    assert answer.usage.madakv == {name: sum(usage[name] for usage in alone) for name in alone[0]}
    twice = complete(live, texts[3], n=2, temperature=1)
    # Read twice, it counts once, as among `prompt_tokens`.
    assert (len(twice.choices), twice.usage.madakv) == (2, alone[3])


def test_the_other_names_of_a_request(live: Server, texts: list[str]) -> None:
    half = complete(live, texts[3], 0.5)
    flat = complete(live, texts[3], extra_body=IDS | {"vllm_xargs": {"madakv_budget": 0.5}})
    assert flat.choices == half.choices
    said = live.client.responses.create(
        model=NAME, input=texts[3], max_output_tokens=TOKENS, temperature=0, extra_body={"madakv": {"budget": 0.5}}
    )
    kept = said.usage.madakv["kept_entries"] / said.usage.madakv["prompt_entries"]
    assert 0.49 < kept <= 0.5
    events = live.client.responses.create(
        model=NAME, input=texts[3], max_output_tokens=TOKENS, temperature=0, stream=True,
        extra_body={"madakv": {"budget": 0.5}},
    )  # fmt: skip
    last = list(events)[-1]
    assert last.response.output_text == said.output_text
    assert last.response.usage.madakv == said.usage.madakv


def test_a_batch_of_chats_has_the_servers_budget(live: Server, texts: list[str]) -> None:
    from openai import BadRequestError
    from openai.types.chat import ChatCompletion

    chats = [[{"role": "user", "content": text}] for text in texts[:2]]
    asked: dict[str, Any] = {"model": NAME, "messages": chats, "max_tokens": TOKENS, "temperature": 0}
    alone = [live.client.chat.completions.create(**asked | {"messages": chat}) for chat in chats]
    said = live.client.post("/chat/completions/batch", body=asked, cast_to=ChatCompletion)
    assert [choice.message.content for choice in said.choices] == [one.choices[0].message.content for one in alone]
    with pytest.raises(BadRequestError, match="each chat by itself"):
        live.client.post("/chat/completions/batch", body=asked | {"madakv": {"budget": 0.5}}, cast_to=ChatCompletion)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"extra_body": {"madakv": {"budget": 7}}}, "between the server's, 0.2, and 1; got 7"),
    ({"extra_body": {"madakv": {"budget": 0.1}}}, "between the server's, 0.2, and 1; got 0.1"),
    ({"extra_body": {"madakv": {"budget": True}}}, "got True"),
    ({"extra_body": {"madakv": {"budget": "half\n" * 1000}}}, "got 'half"),
    ({"extra_body": {"madakv": {"method": "best"}}}, "sets madakv's budget, and nothing else; got 'method'"),
    ({"extra_body": {"madakv": {"budjet": 0.5}}}, "got 'budjet'"),
    ({"extra_body": {"madakv": [0.5]}}, "a request sets madakv as"),
    ({"extra_body": {"vllm_xargs": {"madakv_budget": 7}}}, "got 7"),
    ({"extra_body": {"vllm_xargs": {"madakv_method": "best"}}}, "got 'method'"),
    ({"extra_body": {"use_beam_search": True, "n": 2, "madakv": {"budget": 0.5}}}, "beam search"),
    ({"prompt": "x" * (LONGEST + 1)}, "maximum context length is 704"),
    ({"prompt": [3] * (LONGEST + 1)}, "maximum context length is 704"),
    ({"prompt": [10**6]}, "out of vocabulary"),
    ({"max_tokens": 0}, "max_tokens must be at least 1"),
    ({"max_tokens": 10**9}, "cannot be greater than max_model_len"),
]
TYPES: list[dict[str, Any]] = [
    {"max_tokens": "many"}, {"temperature": "hot"}, {"prompt": {"no": 1}}, {"n": -1}, {"stop": 5},
    {"extra_body": {"vllm_xargs": {"madakv": {"budget": 0.5}}}}, {"extra_body": {"vllm_xargs": 3}},
]  # fmt: skip


def test_what_cannot_be_meant_is_refused_in_one_line(live: Server, texts: list[str]) -> None:
    from openai import APIError, APIStatusError

    good = complete(live, texts[0]).choices
    for options, says in BAD:
        for stream in (False, True):
            if stream and "use_beam_search" in options.get("extra_body", ()):
                continue
            with pytest.raises(APIError) as refusal:
                list(complete(live, options.get("prompt", texts[0]), stream=stream, **without(options)))
            assert (says in refusal.value.message) is True, (options, stream, refusal.value)
            assert "\n" not in refusal.value.message
            assert len(refusal.value.message) < 400
            # A few things of its own vLLM finds out behind the beginning of a stream.
            if not stream or "madakv" in str(options):
                assert isinstance(refusal.value, APIStatusError)
                assert refusal.value.status_code == 400
    for options in TYPES:
        # What is no type of the protocol, vLLM says in several lines.
        with pytest.raises(APIStatusError) as refusal:
            complete(live, options.get("prompt", texts[0]), **without(options))
        assert 400 <= refusal.value.status_code < 500, options
    for stream in (False, True):
        with pytest.raises(APIStatusError) as refusal:
            live.client.chat.completions.create(
                model=NAME, messages=[{"role": "user", "content": texts[0]}], stream=stream,
                extra_body={"madakv": {"budget": 7}},
            )  # fmt: skip
        assert (refusal.value.status_code, "got 7" in refusal.value.message) == (400, True)
    assert complete(live, texts[0]).choices == good
    idle(live)


def without(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "prompt"}


def test_none_of_200_is_lost_or_mixed_up(live: Server, texts: list[str]) -> None:
    """16 at once, of which a quarter hangs up."""
    alone = {
        (text, budget): complete(live, text, budget).choices[0].token_ids for text in texts for budget in BUDGETS
    }
    chance = random.Random(0)
    asked = [(*chance.choice(list(alone)), number % 4 == 3, chance.random()) for number in range(200)]
    answered: list[Any] = []

    async def one(
        client: Any, turn: asyncio.Semaphore, text: str, budget: float, hangs_up: bool, patience: float
    ) -> None:
        async with turn:
            options: dict[str, Any] = {"extra_body": IDS | {"madakv": {"budget": budget}}}
            ask = client.completions.create(model=NAME, prompt=text, stream=hangs_up, **GREEDY | options)
            if not hangs_up:
                answer = await ask
                answered.append((text, budget, answer.choices[0].token_ids))
                return
            stream = await ask
            # Some while they wait or are read, some in the middle of their answer.
            if patience < 0.5:
                await asyncio.sleep(patience)
            else:
                # Tokens that wait to be sent come as one piece: there may be fewer pieces than tokens.
                for _ in range(int(patience * TOKENS)):
                    await anext(stream, None)
            await stream.close()

    async def all_of_them() -> None:
        turn = asyncio.Semaphore(16)
        async with live.many() as client:
            await asyncio.gather(*(one(client, turn, *own) for own in asked))

    asyncio.run(all_of_them())
    assert len(answered) == 150
    assert all(said == alone[text, budget] for text, budget, said in answered)
    idle(live)


def test_blocks_come_back_after_1000_requests(live: Server) -> None:
    generator = torch.Generator().manual_seed(2)
    texts = [
        written(torch.randint(0, 95, (60 + number % 100,), generator=generator).tolist()) for number in range(1000)
    ]
    before = live.metrics()

    async def all_of_them() -> list[Any]:
        turn = asyncio.Semaphore(32)

        async def one(client: Any, text: str) -> Any:
            async with turn:
                return await client.completions.create(model=NAME, prompt=text, **GREEDY | {"max_tokens": 3})

        async with live.many() as client:
            return await asyncio.gather(*(one(client, text) for text in texts))

    said = asyncio.run(all_of_them())
    evicted = sum(answer.usage.madakv["freed_blocks"] > 0 for answer in said)
    assert evicted > 300
    assert live.metrics()["madakv_plans_total"] - before["madakv_plans_total"] == evicted
    idle(live)


def test_a_killed_engine_ends_a_plain_server_and_another_one_answers(
    served: Path, texts: list[str], tmp_path: Path
) -> None:
    """`vllm serve` with nothing but the settings."""
    from openai import APIError

    words = vllm_serve(served)
    said = []
    for attempt in range(2):
        with server(words, tmp_path / f"{attempt}.log") as made:
            asked = {"model": str(served), "prompt": texts[4], "max_tokens": 8, "temperature": 0}
            answer = made.client.completions.create(**asked)
            said.append(answer.choices[0].text)
            # Blocks are of 128 tokens here: of 600, 4 blocks less (120 + 7) / 128, rounded up, go.
            assert answer.usage.madakv["freed_blocks"] == 3
            if attempt == 0:
                stream = made.client.completions.create(**asked | {"max_tokens": 1000, "stream": True})
                next(stream)
                os.kill(made.engine(), signal.SIGKILL)
                with pytest.raises(APIError):
                    list(stream)
                # vLLM says what happened, and ends with a status of 0.
                made.process.wait(120)
                assert "EngineDeadError" in made.log.read_text()
    assert said[0] == said[1] != ""
