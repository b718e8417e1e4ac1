"""A client that goes away takes its work with it: the engine stops, nothing is held, nothing grows."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from tests.system.observed import IDLE, WINDOW_SECONDS, Parts, chats_running, parts_of
from tests.system.stack import BASE, TINY, Stack

STREAMS = 200
ROUNDS = 10
TOKENS = 900
SLACK_SECONDS = 2.0  # for a machine that does other things too; without cancellation it would be tens of seconds


def long_chat(model: str, *, stream: bool, say: str = "Tell me everything.") -> dict[str, Any]:
    """A request that keeps its engine busy for long."""
    messages = [{"role": "user", "content": say}]
    return {"model": model, "messages": messages, "max_tokens": TOKENS, "ignore_eos": True, "temperature": 0, "stream": stream}


async def begin_and_leave(client: httpx.AsyncClient, body: dict[str, Any], chunks: int) -> None:
    """Read so many events of a stream, then close the connection."""
    async with client.stream("POST", "chat/completions", json=body) as response:
        assert response.status_code == 200, await response.aread()
        seen = 0
        async for line in response.aiter_lines():
            seen += line.startswith("data: ")
            assert line != "data: [DONE]", "it ended before it could be left"
            if seen >= chunks:
                return
    raise AssertionError("the stream ended early")


async def test_two_hundred_cancelled_streams_leave_nothing_behind(stack: Stack) -> None:
    """Again and again: what is kept for reuse (pools, caches) fills in the first rounds, a leak would go on growing."""
    parts = parts_of(stack, TINY)
    memory: list[dict[str, int]] = []
    for _ in range(ROUNDS):
        async with stack.async_client() as client:
            bodies = [long_chat(TINY, stream=True, say=f"Question {number}.") for number in range(STREAMS)]
            await asyncio.gather(*(begin_and_leave(client, body, 2 + number % 5) for number, body in enumerate(bodies)))
        await asyncio.to_thread(parts.seconds_until_idle, 2.0 + 4 * SLACK_SECONDS)
        await _until_no_chat_runs(stack)
        memory.append(parts.rss_bytes)
        if len(memory) > 2 and _settled(memory[-3], memory[-1]):
            return
    raise AssertionError(f"memory still grows after {ROUNDS} times {STREAMS} cancelled streams: {memory}")


def _settled(before: Mapping[str, int], after: Mapping[str, int]) -> bool:
    return all(after[part] <= held * 1.03 for part, held in before.items())


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_engine_stops_within_a_second_of_its_client_leaving(stack: Stack, stream: bool) -> None:
    parts = parts_of(stack, BASE)
    await asyncio.to_thread(parts.seconds_until_idle, 60.0)
    async with stack.async_client() as client:
        if stream:
            await begin_and_leave(client, long_chat(BASE, stream=True), 5)
        else:
            await _leave_once_busy(client, parts, long_chat(BASE, stream=False))
    took = await asyncio.to_thread(parts.seconds_until_idle, 1.0 + WINDOW_SECONDS + SLACK_SECONDS)
    assert took <= 1.0 + WINDOW_SECONDS + SLACK_SECONDS
    await _until_no_chat_runs(stack)


async def test_the_control_an_engine_is_busy_while_its_client_stays(stack: Stack) -> None:
    """Otherwise the tests above would pass for any engine."""
    parts = parts_of(stack, BASE)
    async with stack.async_client() as client, client.stream("POST", "chat/completions", json=long_chat(BASE, stream=True)) as response:
        lines = response.aiter_lines()
        await anext(lines)
        deadline = time.monotonic() + 3.0
        while time.monotonic() < deadline:
            load = await asyncio.to_thread(parts.engine_load, 0.5)
            assert load > IDLE, "the engine rests while a client waits"


async def test_a_client_that_leaves_before_the_first_token_is_noticed(stack: Stack) -> None:
    """Forty at once, closed while most are still on their way to the engine."""
    parts = parts_of(stack, TINY)
    async with stack.async_client() as client:
        tasks = [asyncio.create_task(client.post("chat/completions", json=long_chat(TINY, stream=True))) for _ in range(40)]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.to_thread(parts.seconds_until_idle, 2.0 + 2 * SLACK_SECONDS)
    await _until_no_chat_runs(stack)


async def _leave_once_busy(client: httpx.AsyncClient, parts: Parts, body: dict[str, Any]) -> None:
    asking = asyncio.create_task(client.post("chat/completions", json=body))
    deadline = time.monotonic() + 60.0
    while await asyncio.to_thread(parts.engine_load) < 2 * IDLE:
        assert not asking.done() and time.monotonic() < deadline, "the engine never began"
    asking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asking


async def _until_no_chat_runs(stack: Stack) -> None:
    async with asyncio.timeout(10.0):
        while await asyncio.to_thread(chats_running, stack):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
