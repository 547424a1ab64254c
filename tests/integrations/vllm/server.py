"""A live server in processes of its own, asked through the official client."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

NAME = "tiny"
START, SIZE = 3, 512


def with_tokenizer(folder: Path, made: Path) -> Path:
    """The same model with a tokenizer: each printable character is a token, and all that it can say is printable."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", "<pad>", *(chr(code) for code in range(32, 127))]
    pieces += [f"{a}{b}" for a in "abcdefghijklmnopqrstu" for b in "aeiouklmnrstvwxyzAEI"][: SIZE - len(pieces)]
    assert len(set(pieces)) == SIZE
    words = Tokenizer(models.WordLevel({piece: number for number, piece in enumerate(pieces)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    words.decoder = decoders.Fuse()
    template = "{% for one in messages %}{{ one.role }}: {{ one.content }} {% endfor %}"
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<s>", pad_token="<pad>", chat_template=template
    ).save_pretrained(made)
    for file in folder.iterdir():
        (made / file.name).symlink_to(file)
    return made


def written(ids: Sequence[int]) -> str:
    """A prompt of as many tokens."""
    return "".join(chr(32 + number % 95) for number in ids)


def token_ids(text: str) -> list[int]:
    """Of a prompt."""
    return [ord(letter) - 32 + START for letter in text]


@dataclass
class Server:
    """One that runs.

    Attributes:
        process: that answers; the engine's is its child.
        port: where.
        log: all that it said.
    """

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @cached_property
    def client(self) -> Any:
        from openai import OpenAI

        return OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0, timeout=300)

    def many(self) -> Any:
        """A client for many requests at once, within one event loop."""
        from openai import AsyncOpenAI

        return AsyncOpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0, timeout=300)

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return str(answer.read().decode())

    def metrics(self) -> dict[str, float]:
        """All without labels, and those of vLLM summed over theirs."""
        found: dict[str, float] = {}
        for line in self.get("/metrics").splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                name = name.partition("{")[0]
                found[name] = found.get(name, 0.0) + float(value)
        return found

    def engine(self) -> int:
        """The process id of the engine's core."""
        listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], check=True, capture_output=True, text=True).stdout
        (found,) = [
            int(pid)
            for pid, parent, name in (line.split(None, 2) for line in listed.splitlines()[1:])
            if int(parent) == self.process.pid and name.startswith("VLLM::EngineCore")
        ]
        return found


def free_port() -> int:
    """That nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def running(words: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command in a process group of its own; behind the block it is gone with all its children.

    Args:
        words: the command line behind `python -m`.
        log: where what it says is written.
    """
    # Set for engines in the process of the tests.
    env = {name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    env |= {"VLLM_LOGGING_LEVEL": "INFO", "VLLM_NO_USAGE_STATS": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", *words], stdout=out, stderr=subprocess.STDOUT, env=env, start_new_session=True
        )
    try:
        yield process
    finally:
        # Its group outlives it.
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def server(words: Sequence[str], log: Path, seconds: int = 600) -> Iterator[Server]:
    """Start one, and wait until it answers.

    Args:
        words: the command line, but for the port.
        log: where what it says is written.
        seconds: to wait at most.
    """
    pytest.importorskip("openai")
    port = free_port()
    with running([*words, "--host", "127.0.0.1", "--port", str(port)], log) as process:
        made = Server(process, port, log)
        until = time.monotonic() + seconds
        while True:
            try:
                made.get("/health")
                break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                if process.poll() is not None or time.monotonic() > until:
                    raise AssertionError(f"it did not start:\n{log.read_text()[-4000:]}") from None
                time.sleep(1)
        yield made


def madakv_serve(folder: Path, *words: str, budget: float = 0.2, method: str = "madakv") -> list[str]:
    """Our command."""
    return ["madakv", "serve", str(folder), "--budget", str(budget), "--method", method, *words]


def vllm_serve(folder: Path, *words: str, budget: float = 0.2) -> list[str]:
    """vLLM's own, with nothing but the settings."""
    config = json.dumps({"madakv": {"budget": budget}})
    return ["vllm.entrypoints.cli.main", "serve", str(folder), "--additional-config", config, *words]
