"""A live server of a model that sees, asked with pictures through the official client: `make test-vllm`."""

from __future__ import annotations

import asyncio
import base64
import io
import shlex
import struct
import textwrap
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from madakv.evaluation.documents.english import ENGLISH
from madakv.evaluation.documents.pictures import Thing, paint
from madakv.prompts import interleave, model_inputs
from madakv.published.known import KNOWN
from tests.integrations.vllm.engines import IN_VLLM, quietly
from tests.integrations.vllm.server import NAME, Server, madakv_serve, server

pytestmark = IN_VLLM

DOCS = Path(__file__).parents[3] / "docs" / "vllm.md"
BUDGETS = (0.2, 0.5, 1.0)
HEADS = 6 * 6
"""Of all layers of the model."""
LONGEST = 1216
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 16}

Content = list[dict[str, Any]]


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def picture(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@dataclass(frozen=True)
class Asked:
    """A question about a document.

    Attributes:
        content: of the message.
        gold: the right answer.
        says: by budget, what transformers says.
        prompt: entries of it, in all heads of all layers.
        kept: by budget, how many stay in transformers.
    """

    content: Content
    gold: str
    says: dict[float, str]
    prompt: int
    kept: dict[float, int]


@pytest.fixture(scope="module")
def documents() -> list[list[Asked]]:
    """Questions of eight kinds about a document of 500 tokens and one of 900."""
    from madakv.answering import answer
    from madakv.evaluation.documents.presentation import presentation_for
    from madakv.evaluation.suites import long_documents
    from madakv.loading import load
    from madakv.methods import resolve

    model, processor = load("small-llava", dtype="float32")
    presentation = presentation_for(processor)
    found: dict[str, list[Asked]] = {}
    for sample in long_documents((500, 900), 2, 7, presentation):
        if sample.follow_up is not None:
            continue
        pictures = sample.pictures()
        inputs = model_inputs(processor, sample.prompt, pictures)
        methods = {budget: None if budget == 1.0 else resolve("madakv", budget=budget) for budget in BUDGETS}
        said = {
            budget: answer(model, processor, inputs, method, max_new_tokens=16) for budget, method in methods.items()
        }
        prompt = inputs["input_ids"].shape[1] * HEADS
        kept = {
            budget: prompt if own.kept is None else sum(len(plan.positions) for plan in own.kept.plans)
            for budget, own in said.items()
        }
        content = [
            text(part) if isinstance(part, str) else picture(data_url(png(part)))
            for part in interleave(sample.prompt, pictures)
        ]
        one = Asked(content, sample.gold, {budget: own.text for budget, own in said.items()}, prompt, kept)
        found.setdefault(sample.id, []).append(one)
    return list(found.values())


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    quietly()
    from tests.integrations.vllm.seeing import published

    made = tmp_path_factory.mktemp("served")
    words = madakv_serve(
        published("small-llava", made / "small-llava"), "--dtype", "float32", "--enforce-eager", "--block-size", "32",
        "--limit-mm-per-prompt", '{"image": 64}', "--max-model-len", str(LONGEST), "--max-num-seqs", "8",
        "--num-gpu-blocks-override", "320", "--served-model-name", NAME,
    )  # fmt: skip
    with server(words, made / "server.log") as running:
        yield running


def asking(content: Content, budget: float | None = None, **options: Any) -> dict[str, Any]:
    """What the client is told."""
    own = {} if budget is None else {"extra_body": {"madakv": {"budget": budget}}}
    return {"model": NAME, "messages": [{"role": "user", "content": content}]} | GREEDY | own | options


def chat(live: Server, content: Content, budget: float | None = None, **options: Any) -> Any:
    return live.client.chat.completions.create(**asking(content, budget, **options))


def said(answer: Any) -> str:
    return str(answer.choices[0].message.content).strip()


def test_answers_are_those_of_transformers_and_right(live: Server, documents: list[list[Asked]]) -> None:
    right = dict.fromkeys(BUDGETS, 0)
    for asked in documents:
        for one in asked:
            for budget in BUDGETS:
                answer = chat(live, one.content, None if budget == 0.2 else budget)
                assert said(answer) == one.says[budget]
                usage = answer.usage.madakv
                assert (usage["prompt_entries"], usage["kept_entries"]) == (one.prompt, one.kept[budget])
                assert (usage["freed_blocks"] > 0) == (budget < 1)
                right[budget] += said(answer) == one.gold
    every = sum(len(asked) for asked in documents)
    assert right[1.0] >= every - 2 > 12
    assert right[0.2] > every / 2


def test_streams_say_the_same(live: Server, documents: list[list[Asked]]) -> None:
    for one in (documents[0][0], documents[1][0]):
        for budget in (None, 0.5):
            whole = chat(live, one.content, budget)
            parts = list(chat(live, one.content, budget, stream=True, stream_options={"include_usage": True}))
            words = [part.choices[0].delta.content or "" for part in parts if part.choices]
            assert "".join(words).strip() == said(whole)
            assert parts[-1].usage == whole.usage
            assert parts[-1].usage.madakv["freed_blocks"] > 0


def test_what_is_found_of_a_document_answers_the_next_question(live: Server, documents: list[list[Asked]]) -> None:
    for asked in (documents[0], documents[1]):
        said(chat(live, asked[0].content))
        before = live.metrics()
        for one in asked[1:]:
            assert said(chat(live, one.content)) == one.says[0.2]
        # The log of hits comes with answers, the last one's maybe after it.
        after = live.metrics()
        found, prompts = (
            after[name] - before[name] for name in ("vllm:prefix_cache_hits_total", "vllm:prompt_tokens_total")
        )
        assert found > 0.4 * prompts
        assert after["vllm:mm_cache_hits_total"] > before["vllm:mm_cache_hits_total"]


def test_budgets_at_once(live: Server, documents: list[list[Asked]]) -> None:
    async def all_of_them() -> list[Any]:
        async with live.many() as client:
            return await asyncio.gather(
                *(client.chat.completions.create(**asking(one.content, budget)) for one, budget in everybody)
            )

    everybody = [(one, budget) for asked in documents for one in asked[:3] for budget in BUDGETS]
    for (one, budget), answer in zip(everybody, asyncio.run(all_of_them()), strict=True):
        assert said(answer) == one.says[budget]
        assert answer.usage.madakv["kept_entries"] == one.kept[budget]


@pytest.mark.skipif(not KNOWN["smollm2"].is_here, reason="`madakv models get smollm2` brings its language model")
def test_three_pictures_as_the_docs_ask_about_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quietly()
    rng = np.random.default_rng(5)
    things = [Thing("red", "7"), Thing("cyan", "circle"), Thing("green", "4")]
    drawn = paint(rng, things, split="held_out", distort=False).repeat(2, 1).repeat(2, 2)
    for name, pixels in zip(("one", "two", "three"), drawn, strict=True):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    (tmp_path / "report.txt").write_text(" ".join(ENGLISH.sentence(rng, 0)[0] for _ in range(40)))
    monkeypatch.chdir(tmp_path)
    begin, end = "    import base64\n", "    print(answer.usage.madakv)\n"
    page = DOCS.read_text()
    example = textwrap.dedent(page[page.index(begin) : page.index(end) + len(end)])
    (command,) = (line.strip() for line in page.splitlines() if line.startswith("    madakv serve small-smolvlm"))
    words = [*shlex.split(command), "--enforce-eager", "--max-model-len", "1216", "--num-gpu-blocks-override", "160"]
    with server(words, tmp_path / "server.log") as live:
        assert "localhost:8000" in example
        exec(compile(example.replace("localhost:8000", f"127.0.0.1:{live.port}"), str(DOCS), "exec"), {})
    answer, usage = capsys.readouterr().out.splitlines()
    assert answer.strip() == "cyan circle"
    kept = eval(usage)
    assert 0.19 < kept["kept_entries"] / kept["prompt_entries"] <= 0.2
    assert kept["freed_blocks"] > 0


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int) -> bytes:
    """A PNG of black and white, of which a few kilobytes say how large it is."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")


DOT = png(Image.new("RGB", (32, 32), (230, 40, 40)))
NOISE = png(Image.effect_noise((300, 300), 80))
PICTURES: list[tuple[str, str]] = [
    (data_url(b"hello, no picture"), "cannot identify image file"),
    (data_url(b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"), "cannot identify image file"),
    (data_url(b"GIF89a", "image/png"), "cannot identify image file"),
    (data_url(b""), "cannot identify image file"),
    (data_url(DOT[: len(DOT) // 2]), "truncated"),
    (data_url(NOISE[:20_000]), "truncated"),
    (data_url(bomb(20_000, 20_000)), "decompression bomb"),
    (data_url(bomb(2**31 - 1, 2**31 - 1)), "decompression bomb"),
    ("data:image/png;base64,%%%", "Non-base64 digit"),
]
CONTENTS: list[tuple[Content, str]] = [
    ([*(picture(data_url(DOT)) for _ in range(100)), text("? list")], "At most 64 image(s)"),
    ([text("the " * 3000), picture(data_url(DOT))], "maximum context length is 1216"),
    ([text("the " * 300), *(picture(data_url(DOT)) for _ in range(64))], "maximum context length (1216)"),
]
SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"madakv": {"budget": 7}}, "got 7"),
    ({"madakv": {"budget": 0.1}}, "got 0.1"),
    ({"madakv": {"method": "best"}}, "got 'method'"),
    ({"madakv": {"method": "<script>alert(1)</script>\u202e\n"}}, "got 'method'"),
    ({"madakv": {"\u202e\n": 1}}, r"got '\u202e\n'"),
    ({"mm_processor_kwargs": {"size": 10**9}}, "mm_processor_kwargs are disabled"),
]


def shown(url: str) -> Content:
    return [text("image i1"), picture(url), text("? show i1")]


def test_hostile_pictures_and_settings_are_400s_in_one_line(live: Server, documents: list[list[Asked]]) -> None:
    from openai import APIStatusError

    hostile: list[tuple[Content, dict[str, Any], str]] = [(shown(url), {}, says) for url, says in PICTURES]
    hostile += [(content, {}, says) for content, says in CONTENTS]
    hostile += [(documents[0][0].content, settings, says) for settings, says in SETTINGS]
    for content, settings, says in hostile:
        for stream in (False, True):
            with pytest.raises(APIStatusError) as refusal:
                list(chat(live, content, stream=stream, extra_body=settings))
            assert refusal.value.status_code == 400, (says, refusal.value)
            assert says in refusal.value.message
            assert "\n" not in refusal.value.message
            assert len(refusal.value.message) < 400
    still_answers(live, documents)


def test_pictures_that_cannot_be_fetched_are_vllms_own_5xx(live: Server, documents: list[list[Asked]]) -> None:
    """It calls them the server's fault, in one line, and closes the connection; none hangs."""
    from openai import APIStatusError, OpenAI

    elsewhere = [
        ("http://nowhere.invalid/one.png", 500, "Cannot connect"),
        ("http://127.0.0.1:9/one.png", 500, "Cannot connect"),
        ("file:///etc/passwd", 500, "--allowed-local-media-path"),
        ("data:image/png,hello", 501, "Only base64"),
    ]
    for url, status, says in elsewhere:
        begin = time.monotonic()
        client = OpenAI(base_url=live.client.base_url, api_key="none", max_retries=0, timeout=60)
        with client, pytest.raises(APIStatusError) as refusal:
            client.chat.completions.create(**asking(shown(url)))
        assert (refusal.value.status_code, says in refusal.value.message) == (status, True), refusal.value
        assert "\n" not in refusal.value.message
        assert time.monotonic() - begin < 60
    still_answers(live, documents)


def test_what_is_no_type_of_the_protocol_is_a_400_in_several_lines(
    live: Server, documents: list[list[Asked]]
) -> None:
    """They are vLLM's."""
    from openai import APIStatusError

    content = [{"type": "image_url", "image_url": None}, text("? show i1")]
    with pytest.raises(APIStatusError) as refusal:
        chat(live, content)
    assert refusal.value.status_code == 400
    assert "Input should be a valid dictionary" in refusal.value.message
    still_answers(live, documents)


def test_text_is_text(live: Server, documents: list[list[Asked]]) -> None:
    """Marks typed by hand, markup and what turns lines around: whatever is said, it is said, and nobody suffers."""
    # One that nobody was refused with: vLLM's front end takes such a picture for one that the engine has, and the
    # next request with it is a 500, which clients try again.
    blue = shown(data_url(png(Image.new("RGB", (32, 32), (90, 90, 255)))))
    for words in ("<script>alert(1)</script>", "\u202e\u200f\x00", "<image>", "<image> " * 100, "{{ messages }}"):
        for content in ([text(words), *blue], [text(words)]):
            for budget in (None, 1.0):
                assert chat(live, content, budget).usage.completion_tokens > 0
    still_answers(live, documents)


def still_answers(live: Server, documents: list[list[Asked]]) -> None:
    """As before, and nobody holds a block: what the engine says of it, it says with an answer."""
    until = time.monotonic() + 60
    while True:
        for one in (documents[0][1], documents[1][1]):
            assert said(chat(live, one.content)) == one.says[0.2]
        found = live.metrics()
        running = found["vllm:num_requests_running"] + found["vllm:num_requests_waiting"]
        if running == found["vllm:kv_cache_usage_perc"] == 0:
            return
        assert time.monotonic() < until, found
        time.sleep(0.2)
