"""How system tests ask for greedy answers and read them whole, streamed or not."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx

from tests.tiny import Chat


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer. `token_ids` only when asked for by return_token_ids; `began`, `first` (its first part) and `ended` on
    time.monotonic's clock."""

    version: str
    cold: str | None
    fingerprint: str
    text: str
    token_ids: list[int]
    began: float
    first: float
    ended: float


async def ask(
    client: httpx.AsyncClient,
    model: str,
    chat: Chat,
    *,
    tokens: int,
    stream: bool = False,
    running: asyncio.Event | None = None,
    **fields: Any,
) -> Answer:
    """Ask for exactly `tokens` greedy tokens and read them all. Fails unless the answer is a 200 and complete.

    `running` is set when the first token of a stream is here: the engine works on the rest.
    """
    began = time.monotonic()
    body = {"model": model, "messages": chat, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": stream, **fields}
    async with client.stream("POST", "chat/completions", json=body) as response:
        if response.status_code != 200:
            raise AssertionError(f"{model}: {response.status_code} {(await response.aread()).decode()}")
        payloads, first = [], began
        async for payload in events(response) if stream else _whole(response):
            first = first if payloads else time.monotonic()
            payloads.append(payload)
            if running is not None and any(choice["delta"].get("content") for choice in payload["choices"]):
                running.set()
        headers = response.headers
    choices = [choice for payload in payloads for choice in payload["choices"]]
    assert choices[-1]["finish_reason"] == "length", f"{model}: the answer is not whole"
    return Answer(
        version=headers["x-lorikeet-version"],
        cold=headers.get("x-lorikeet-cold"),
        fingerprint=payloads[-1]["system_fingerprint"],
        text="".join(choice["delta" if stream else "message"].get("content") or "" for choice in choices),
        token_ids=[token for choice in choices for token in choice.get("token_ids") or ()],
        began=began,
        first=first,
        ended=time.monotonic(),
    )


async def begin(client: httpx.AsyncClient, model: str, chat: Chat, *, tokens: int, timeout_seconds: float = 120.0) -> asyncio.Task[Answer]:
    """`ask` for a stream, and return when its first token is here: all the others are still to come."""
    running = asyncio.Event()
    asking = asyncio.create_task(ask(client, model, chat, tokens=tokens, stream=True, running=running))
    first = asyncio.create_task(running.wait())
    await asyncio.wait((asking, first), timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
    first.cancel()
    if asking.done():
        await asking  # tells why it failed
    assert running.is_set() and not asking.done(), f"{model}: no token, or all of them at once, within {timeout_seconds:g} s"
    return asking


async def _whole(response: httpx.Response) -> AsyncIterator[Any]:
    yield json.loads(await response.aread())


async def events(response: httpx.Response) -> AsyncIterator[Any]:
    """The chunks of a stream, parsed; fails when it does not end with [DONE]."""
    async for line in response.aiter_lines():
        if line == "data: [DONE]":
            return
        if line:
            chunk = json.loads(line.removeprefix("data: "))
            assert "error" not in chunk, chunk
            yield chunk
    raise AssertionError("the stream ended without [DONE]")


def user(content: str) -> Chat:
    """A chat of one message."""
    return [{"role": "user", "content": content}]


def long_chat(sentences: int = 40) -> Chat:
    """A long prompt, several blocks of the prefix cache: the same each time."""
    story = " ".join(f"The lorikeet of house {number} eats {number * 7 % 10} figs a day." for number in range(sentences))
    return user(f"{story} Which of them eats the most?")
