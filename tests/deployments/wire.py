"""The two ends of a side channel by hand, with the system's own sockets: for what our own would never send, and to see what they do."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Iterator

from deployments.sockets import HELLO, TAKEN

SECONDS = 10.0


def host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return host, int(port)


def packed(*messages: bytes) -> bytes:
    return b"".join(struct.pack("!I", len(message)) + message for message in messages)


@contextlib.contextmanager
def raw_push(address: str, hello: bytes = HELLO) -> Iterator[socket.socket]:
    """A connection that has said hello; `packed` is what it may send."""
    with socket.create_connection(host_and_port(address), timeout=SECONDS) as raw:
        raw.sendall(hello)
        yield raw


class RawPull:
    """Says hello to who connects, and reads messages when it is asked to: of the rest, the system holds some and then no more."""

    def __init__(self) -> None:
        self._connected: asyncio.Future[asyncio.StreamReader] = asyncio.get_running_loop().create_future()
        self.address = ""

    async def __aenter__(self) -> RawPull:
        self._server = await asyncio.start_server(self._welcome, "127.0.0.1", 0)
        self.address = f"tcp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        if self._connected.done():
            self._writer.transport.abort()

    async def connected(self) -> asyncio.StreamReader:
        """What is read of the one connection, after its hello."""
        return await asyncio.wait_for(asyncio.shield(self._connected), SECONDS)

    async def message(self, seconds: float = SECONDS) -> bytes:
        """The next message. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            reader = await self.connected()
            (length,) = struct.unpack("!I", await reader.readexactly(4))
            return await reader.readexactly(length)

    def take(self, messages: int) -> None:
        """Say that so many messages were taken."""
        self._writer.write(TAKEN * messages)

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        writer.write(HELLO)
        assert await reader.readexactly(len(HELLO)) == HELLO
        self._connected.set_result(reader)
