"""Clients that read, or write, a byte at a time cost their own request at most: no one else's, and bounded memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.system.observed import chats_running, parts_of
from tests.system.stack import KEY, TINY, Stack

SLOW_READERS = 16
GROWTH_BYTES = 64 << 20
FACTOR, SLACK_SECONDS = 5.0, 5.0  # what others may take longer: for noise, not for waiting on a slow reader


def raw_request(body: bytes, *, declared: int | None = None) -> bytes:
    head = (
        "POST /api/v1/chat/completions HTTP/1.1\r\nhost: lorikeet\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {KEY}\r\ncontent-length: {len(body) if declared is None else declared}\r\n\r\n"
    )
    return head.encode() + body


def chat(tokens: int, *, stream: bool) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Count."}]
    return {"model": TINY, "messages": messages, "max_tokens": tokens, "ignore_eos": True, "temperature": 0, "stream": stream}


def connect(stack: Stack) -> socket.socket:
    """A connection that takes as little ahead of its reader as the system allows."""
    address = urlsplit(stack.url)
    assert address.hostname is not None and address.port is not None
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.settimeout(60)
    connection.connect((address.hostname, address.port))
    return connection


@contextlib.contextmanager
def slow_readers(stack: Stack, count: int) -> Iterator[list[socket.socket]]:
    """So many clients with a long stream each, reading one byte a second."""
    stop = threading.Event()
    with contextlib.ExitStack() as stack_of:
        connections = [stack_of.enter_context(connect(stack)) for _ in range(count)]
        for connection in connections:
            connection.sendall(raw_request(json.dumps(chat(900, stream=True)).encode()))
        for connection in connections:
            assert connection.recv(12) == b"HTTP/1.1 200"

        def read() -> None:
            while not stop.wait(1.0):
                for connection in connections:
                    assert connection.recv(1)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        stack_of.callback(reader.join, 60)
        stack_of.callback(stop.set)
        yield connections


async def quick_chats(stack: Stack, count: int) -> float:
    """Seconds that so many well-behaved streams take, all at once."""
    began = time.monotonic()
    async with stack.async_client() as client:

        async def ask() -> None:
            response = await client.post("chat/completions", json=chat(32, stream=True))
            assert response.status_code == 200 and response.text.endswith("data: [DONE]\n\n")

        await asyncio.gather(*(ask() for _ in range(count)))
    return time.monotonic() - began


async def test_slow_readers_delay_nobody_and_hold_bounded_memory(stack: Stack) -> None:
    parts = parts_of(stack, TINY)
    await quick_chats(stack, 16)
    alone = max([await quick_chats(stack, 16) for _ in range(2)])
    before = parts.rss_bytes["gateway"]
    with slow_readers(stack, SLOW_READERS):
        # Their answers are generated meanwhile; afterwards they are only held.
        await asyncio.to_thread(parts.seconds_until_idle, 120.0)
        beside = await quick_chats(stack, 16)
        grown = parts.rss_bytes["gateway"] - before
    assert beside < FACTOR * alone + SLACK_SECONDS
    assert grown < GROWTH_BYTES
    await _until_none_is_held(stack)


async def test_a_client_that_stalls_in_its_body_delays_nobody(stack: Stack) -> None:
    body = json.dumps(chat(8, stream=False)).encode()
    stalled = []
    try:
        for _ in range(SLOW_READERS):
            stalled.append(connect(stack))
            stalled[-1].sendall(raw_request(body[: len(body) // 2], declared=len(body)))
        assert await quick_chats(stack, 4) < 60.0
        assert chats_running(stack) == 0, "half a request was sent on"
        stalled[0].sendall(body[len(body) // 2 :])  # it may still go on
        assert stalled[0].recv(12) == b"HTTP/1.1 200"
    finally:
        for connection in stalled:
            connection.close()


@pytest.mark.parametrize(
    "sent", [b"GET / HT", b"\x16\x03\x01\x02\x00", b"POST /api/v1/chat/completions HTTP/1.1\r\ncontent-length: -1\r\n\r\n"]
)
def test_what_is_no_request_harms_nobody(stack: Stack, sent: bytes) -> None:
    with connect(stack) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            assert b"Traceback" not in connection.recv(65536)
    assert httpx.get(f"{stack.url}/healthz", timeout=30).status_code == 200


async def _until_none_is_held(stack: Stack) -> None:
    async with asyncio.timeout(10.0):
        while await asyncio.to_thread(chats_running, stack):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
