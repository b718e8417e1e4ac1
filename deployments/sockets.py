"""Messages over TCP on the asyncio loop: `Pull` takes them from anybody, `Push` sends to one address and hears when that is gone.

Both side channels are made of them: frames from replicas to gateways (`stream.py`), calls from gateways to replicas (`calls.py`).

    Push   hello | length (4) | message | length | message | …
    Pull   hello | taken (1) | taken | …          a byte for each message, where it tells

The hello tells that the other side is one of ours before anything is entrusted to it: ports are given out again. Reads and writes are the
loop's own, so on its way a message wakes nobody but the two loops. docs/decisions/0018 has why that is not ZeroMQ.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable
from typing import cast

logger = logging.getLogger(__name__)

HELLO = b"lorikeet/2\n"
TAKEN = b"."  # what a `Pull` that tells says of each message
UNSENT_BYTES = 32 << 20  # before a peer that does not read is given up
MAX_MESSAGE_BYTES = 1 << 30  # what claims to be longer is none of ours
_LENGTH = struct.Struct("!I")
_BACKLOG = 1024
_LONG_READ_BYTES = 64 << 10  # who sends so much at once waits a turn before more is read: uvloop would go on to 8 MB
_CONNECT_SECONDS = 3.0
_HELLO_SECONDS = 30.0  # one that is paused, or starts, takes connections before it speaks
_SILENT_MILLISECONDS = 10_000  # a machine that went away without a word is noticed within this


class Pull:
    """Binds a random port of `host` and hands every message to `on_message`, in order for each sender.

    With `tells`, senders are told when a message was taken: behind the tasks that it woke.
    """

    def __init__(self, host: str, on_message: Callable[[bytes], None], *, tells: bool = False) -> None:
        self._on_message = on_message
        self._tells = tells
        self._peers: set[_Incoming] = set()
        self._server: asyncio.Server | None = None
        self.closed = False
        listener = _set_up(socket.create_server((host, 0), backlog=_BACKLOG))  # its connections inherit it
        self.address = f"tcp://{host}:{listener.getsockname()[1]}"
        self._opening = asyncio.get_running_loop().create_task(self._open(listener))

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        if self._server is not None:
            self._server.close()
        for peer in list(self._peers):
            peer.abort()

    async def _open(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Incoming(self._on_message, self._peers, self._tells), sock=listener)
        if self.closed:
            self._server.close()


class _Incoming(asyncio.Protocol):
    """The connection of one `Push`."""

    def __init__(self, on_message: Callable[[bytes], None], peers: set[_Incoming], tells: bool) -> None:
        self._on_message = on_message
        self._peers = peers
        self._tells = tells
        self._taken = 0  # messages that the other side has not been told of
        self._transport: asyncio.Transport | None = None
        self._greeted = False
        self._loop = asyncio.get_running_loop()
        self._held = bytearray()  # what came of the hello, or a message, that is not whole yet
        self._needed = len(HELLO)  # bytes until it is

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        self._peers.add(self)
        self._transport.write(HELLO)

    def connection_lost(self, exc: Exception | None) -> None:
        self._peers.discard(self)
        self._transport = None

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def data_received(self, data: bytes) -> None:
        if len(data) >= _LONG_READ_BYTES and self._transport is not None:
            self._transport.pause_reading()
            self._loop.call_soon(self._read_on)
        if self._held or len(data) < self._needed:
            self._held += data
            if len(self._held) < self._needed:
                return
            data = bytes(self._held)
            self._held.clear()
        at = 0
        if not self._greeted:
            at = len(HELLO)
            if data[:at] != HELLO:
                self.abort()
                return
            self._greeted = True
        at, self._needed = self._take(data, at)
        if at < len(data):
            self._held += data[at:]

    def _read_on(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _tell(self) -> None:
        """What was taken; behind the tasks that it woke."""
        if self._transport is not None:
            self._transport.write(TAKEN * self._taken)
        self._taken = 0

    def _take(self, data: bytes, at: int) -> tuple[int, int]:
        """Hand on the messages that are whole; where the next begins, and how many bytes it needs as far as is known."""
        while self._transport is not None:
            begin = at + _LENGTH.size
            if begin > len(data):
                return at, _LENGTH.size
            (length,) = _LENGTH.unpack_from(data, at)
            if length > MAX_MESSAGE_BYTES:
                self.abort()
                break
            if begin + length > len(data):
                return at, _LENGTH.size + length
            at = begin + length
            try:
                self._on_message(data[begin:at])
            except Exception:  # one message's: the connection carries those of others
                logger.exception("message_failed")
            if self._tells:
                if not self._taken:
                    self._loop.call_soon(self._tell)
                self._taken += 1
        return len(data), _LENGTH.size


class Push(asyncio.Protocol):
    """A connection to the `Pull` at `address`. `on_lost` is called once it broke, or could not be made; what it held is lost then.

    `on_taken` is called with how many more messages the other side has taken, if that tells.

    Addresses are never used again, so a connection that broke is not made again by itself.
    """

    def __init__(self, address: str, on_lost: Callable[[], None], on_taken: Callable[[int], None] | None = None) -> None:
        self._on_lost = on_lost
        self._on_taken = on_taken
        self.reached = False  # whether the other side has ever answered
        self.closed = False
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._hello = b""  # what came of the other side's
        self._early: list[bytes] = []  # messages from before it
        self._early_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        self._connecting = self._loop.create_task(self._connect(host, int(port)))

    def send(self, message: bytes) -> bool:
        """Whether it was taken; not when the other side has stopped reading, or is gone."""
        if self.closed:
            return False
        packed = _LENGTH.pack(len(message)) + message
        if self._transport is not None and self.reached:
            if self._transport.get_write_buffer_size() > UNSENT_BYTES:
                return False
            self._transport.write(packed)
            return True
        if self._early_bytes > UNSENT_BYTES:
            return False
        self._early.append(packed)
        self._early_bytes += len(packed)
        return True

    def close(self, linger_milliseconds: int = 0) -> None:
        """What was sent last may still leave for so long, in the background."""
        if self.closed:
            return
        self.closed = True
        if not linger_milliseconds:
            self._end()
            return
        self._set_timer(linger_milliseconds / 1e3, self._end)
        if self._transport is not None and self.reached:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        self._transport.write(HELLO)

    def data_received(self, data: bytes) -> None:
        if self.reached:
            if self._on_taken is not None:
                self._on_taken(len(data))
            return
        self._hello += data
        if not HELLO.startswith(self._hello):
            self._lose()
        elif self._hello == HELLO:
            self._greeted()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self.closed:
            self._end()
        else:
            self._lose()

    async def _connect(self, host: str, port: int) -> None:
        sock = _set_up(socket.socket())
        sock.setblocking(False)
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await self._loop.sock_connect(sock, (host, port))
                await self._loop.create_connection(lambda: self, sock=sock)
        except OSError:  # TimeoutError is one
            sock.close()
            self._lose()
            return
        except BaseException:
            sock.close()
            raise
        if not self.reached and not self.closed:
            self._set_timer(_HELLO_SECONDS, self._lose)

    def _greeted(self) -> None:
        assert self._transport is not None
        self.reached = True
        self._transport.write(b"".join(self._early))
        self._early.clear()
        if self.closed:
            self._transport.close()
        elif self._timer is not None:
            self._timer.cancel()

    def _lose(self) -> None:
        if not self.closed:
            self.closed = True
            self._on_lost()
        self._end()

    def _end(self) -> None:
        self._early.clear()
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        else:
            self._connecting.cancel()

    def _set_timer(self, seconds: float, call: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, call)


def _set_up(sock: socket.socket) -> socket.socket:
    """Have nothing wait for more, and the system end connections to a machine that answers no more; one that is only busy keeps its own."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 4)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENT_MILLISECONDS)
    return sock
