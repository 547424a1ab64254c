"""The OpenAI protocol: what a request asks of madakv beside its own fields, and what its response says in `usage`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

from madakv.errors import InputError
from madakv.integrations.vllm.metrics import Account
from madakv.integrations.vllm.settings import ACCOUNT, KEY, Settings

_USAGE = '"usage":{'


def ask(request: Any, settings: Settings) -> Account:
    """Hand on what a request asks for, by vLLM's own way for extra arguments.

    Args:
        request: of the protocol; what it has under `madakv` is put into its `vllm_xargs`.
        settings: of the server.

    Returns:
        Where its prompts will be accounted for.

    Raises:
        MadaKVError: it asks for what cannot be meant.
    """
    extra = dict(request.vllm_xargs or {})
    if (own := (request.model_extra or {}).get(KEY)) is not None:
        extra[KEY] = own
    account = Account()
    budget = settings.budget_of(extra)
    if getattr(request, "use_beam_search", False):
        if budget != settings.budget:
            raise InputError("beam search reads prompts anew for each token, and evicts nothing: leave out madakv")
        return account
    request.vllm_xargs = extra | {ACCOUNT: account}
    return account


def ask_nothing(request: Any) -> None:
    """Where several conversations come as one request, it has no say: vLLM makes new requests of it.

    Raises:
        MadaKVError: it asks for something.
    """
    extra = request.model_extra or {}
    if KEY in extra or any(key.startswith(KEY) for key in extra.get("vllm_xargs") or ()):
        raise InputError("a batch of chats has the server's budget: leave out madakv, or send each chat by itself")


def with_usage(response: Any, account: Account) -> Any:
    """A response whose usage says what stayed: an object of the protocol, or the lines of a stream."""
    if hasattr(response, "__aiter__"):
        return _lines_with_usage(response, account)
    if account and getattr(response, "usage", None) is not None:
        setattr(response.usage, KEY, asdict(account.kept))
    return response


async def _lines_with_usage(lines: AsyncIterator[Any], account: Account) -> AsyncIterator[Any]:
    """Usage comes in a chunk of its own, or in each chunk, if it was asked for; of the Responses API in an event."""
    async for line in lines:
        # In texts, quotes are escaped.
        if account and isinstance(line, str) and line.startswith("data: {") and _USAGE in line:
            chunk = json.loads(line.removeprefix("data: "))
            if isinstance(chunk.get("usage"), dict):
                chunk["usage"][KEY] = asdict(account.kept)
                line = f"data: {json.dumps(chunk, ensure_ascii=False, separators=(',', ':'))}\n\n"
        elif (response := getattr(line, "response", None)) is not None:
            with_usage(response, account)
        yield line
