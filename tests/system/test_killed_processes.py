"""Processes killed under load: what a client sees at once, what is left running, and that all is whole again without a hand."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import httpx
import psutil
import pytest

from tests.system.observed import IDLE, WINDOW_SECONDS, parts_of
from tests.system.stack import TINY, Stack

STREAMS_OF_GATEWAY = 500
STREAMS_OF_REPLICA = 40
TOKENS = 900
NOTICED_SECONDS = 2.0
ENGINE_STOPS_SECONDS = 5.0
WHOLE_AGAIN_SECONDS = 180.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a stream ended: its last event, and when on time.monotonic's clock."""

    events: int
    last: str
    at: float


@pytest.fixture
def whole_again(stack: Stack) -> Iterator[None]:
    """Whatever a test kills has been replaced, and answers, before the next test begins; until then clients hear it in the API's shape."""
    yield
    _wait_until_whole(stack)


async def test_killed_replica_ends_each_of_its_streams_with_an_error_at_once(stack: Stack, whole_again: None) -> None:
    parts = parts_of(stack, TINY)
    async with stack.async_client() as client:
        begun = [asyncio.Event() for _ in range(STREAMS_OF_REPLICA)]
        streams = [asyncio.create_task(_read_to_its_end(client, number, event)) for number, event in enumerate(begun)]
        await asyncio.wait_for(asyncio.gather(*(event.wait() for event in begun)), 60.0)
        killed_at = time.monotonic()
        parts.replica.kill()
        ends = await asyncio.wait_for(asyncio.gather(*streams), 30.0)
    for end in ends:
        error = json.loads(end.last.removeprefix("data: "))["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["code"] == "unavailable", error
        assert end.at - killed_at < NOTICED_SECONDS, f"told after {end.at - killed_at:.1f} s"
    _check_gone(parts.engine)


async def test_killed_gateway_leaves_no_request_running_in_the_engine(stack: Stack, whole_again: None) -> None:
    parts = parts_of(stack, TINY)
    async with stack.async_client() as client:
        begun = [asyncio.Event() for _ in range(STREAMS_OF_GATEWAY)]
        streams = [asyncio.create_task(_read_to_its_end(client, number, event)) for number, event in enumerate(begun)]
        await asyncio.wait_for(asyncio.gather(*(event.wait() for event in begun)), 60.0)
        assert await asyncio.to_thread(parts.engine_load) > IDLE, "the engine rests while hundreds of clients wait"
        parts.gateway.kill()
        took = await asyncio.to_thread(parts.seconds_until_idle, ENGINE_STOPS_SECONDS + WINDOW_SECONDS)
        assert took <= ENGINE_STOPS_SECONDS
        ends = await asyncio.wait_for(asyncio.gather(*streams, return_exceptions=True), 30.0)
    assert all(isinstance(end, httpx.HTTPError | AssertionError) for end in ends), "a stream ended as if it were complete"


async def _read_to_its_end(client: httpx.AsyncClient, number: int, begun: asyncio.Event) -> Ended:
    """Read a long stream; sets `begun` at its first token. Fails unless its last event is an error."""
    body = {"model": TINY, "messages": [{"role": "user", "content": f"Go on, {number}."}], "max_tokens": TOKENS, "ignore_eos": True}
    async with client.stream("POST", "chat/completions", json={**body, "stream": True}) as response:
        assert response.status_code == 200, await response.aread()
        events, last = 0, ""
        async for line in _events(response):
            events, last = events + 1, line
            if events == 2:
                begun.set()
        assert '"error"' in last and last != "data: [DONE]", last
        return Ended(events, last, time.monotonic())


async def _events(response: httpx.Response) -> AsyncIterator[str]:
    async for line in response.aiter_lines():
        if line:
            yield line


def _check_gone(processes: tuple[psutil.Process, ...]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=10.0)
    assert not alive, f"the killed replica's engine lives on: {alive}"


def _wait_until_whole(stack: Stack) -> None:
    deadline = time.monotonic() + WHOLE_AGAIN_SECONDS
    while True:
        try:
            with stack.client(timeout_seconds=30.0) as client:
                body = {"model": TINY, "messages": "hi", "max_tokens": 2}
                answer = client.post("chat/completions", json=body)
                _check_told(answer)
                if answer.status_code == 200 and client.get(f"{stack.url}/readyz").status_code == 200 and _has_its_parts(stack):
                    return
        except httpx.HTTPError:
            pass  # cut: it was on its way through what was killed
        assert time.monotonic() < deadline, f"not whole again after {WHOLE_AGAIN_SECONDS:.0f} s"
        time.sleep(0.25)


def _has_its_parts(stack: Stack) -> bool:
    try:
        return bool(parts_of(stack, TINY))
    except (ValueError, AssertionError, psutil.Error):  # no process under the name just now, or two
        return False


def _check_told(answer: httpx.Response) -> None:
    """An answer, or an error of the API's that says to try again."""
    assert answer.headers.get("x-request-id"), answer.headers
    if answer.status_code == 200:
        return
    assert answer.status_code in (429, 502, 503), answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"} and error["code"] in ("unavailable", "overloaded"), error
    assert int(answer.headers["retry-after"]) > 0
