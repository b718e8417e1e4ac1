"""The only gateway killed under hundreds of streams: nothing is left running, and all is whole again without a hand.

What clients hear when this or another part is killed, and who is answered all the same: `test_elastic_cluster.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest

from tests.system.observed import IDLE, WINDOW_SECONDS, parts_of
from tests.system.stack import TINY, Stack

STREAMS = 500
TOKENS = 900
DONE = "data: [DONE]"
ENGINE_STOPS_SECONDS = 5.0
WHOLE_AGAIN_SECONDS = 180.0


@pytest.fixture
def whole_again(stack: Stack) -> Iterator[None]:
    """Whatever a test kills has been replaced, and answers, before the next test begins; until then clients hear it in the API's shape."""
    yield
    _wait_until_whole(stack)


async def test_killed_gateway_leaves_no_request_running_in_the_engine(stack: Stack, whole_again: None) -> None:
    parts = parts_of(stack, TINY)
    async with stack.async_client() as client:
        begun = [asyncio.Event() for _ in range(STREAMS)]
        streams = [asyncio.create_task(_last_event(client, number, event)) for number, event in enumerate(begun)]
        await asyncio.wait_for(asyncio.gather(*(event.wait() for event in begun)), 60.0)
        assert await asyncio.to_thread(parts.engine_load) > IDLE, "the engine rests while hundreds of clients wait"
        parts.gateway.kill()
        took = await asyncio.to_thread(parts.seconds_until_idle, ENGINE_STOPS_SECONDS + WINDOW_SECONDS)
        assert took <= ENGINE_STOPS_SECONDS
        ends = await asyncio.wait_for(asyncio.gather(*streams, return_exceptions=True), 30.0)
    assert all(isinstance(end, httpx.HTTPError) or (isinstance(end, str) and end != DONE) for end in ends), (
        "a stream ended as if it were whole"
    )


async def _last_event(client: httpx.AsyncClient, number: int, begun: asyncio.Event) -> str:
    """Read a long stream to its end, which raises where the connection breaks; sets `begun` at its first token."""
    body = {"model": TINY, "messages": [{"role": "user", "content": f"Go on, {number}."}], "max_tokens": TOKENS, "ignore_eos": True}
    async with client.stream("POST", "chat/completions", json={**body, "stream": True}) as response:
        assert response.status_code == 200, await response.aread()
        events, last = 0, ""
        async for line in response.aiter_lines():
            if line:
                events, last = events + 1, line
            if events == 2:
                begun.set()
        return last


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
