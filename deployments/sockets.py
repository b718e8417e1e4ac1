"""ZeroMQ sockets on the asyncio loop: `Pull` takes messages from anybody, `Push` sends to one address and hears when that is gone.

Both side channels are made of them: frames from replicas to gateways (`stream.py`), calls from gateways to replicas (`calls.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import zmq
from zmq.utils.monitor import recv_monitor_message

QUEUED_MESSAGES = 4096  # unsent or unread messages on either side before a peer that does not read is given up
_DRAIN_MESSAGES = 256  # messages read in one go before other tasks get a turn
_CONNECT_MILLISECONDS = 3000
_SILENT_MILLISECONDS = 10_000  # a machine that went away without a word is noticed within this
_LOST = (zmq.Event.DISCONNECTED, zmq.Event.CONNECT_RETRIED, zmq.Event.HANDSHAKE_FAILED_NO_DETAIL)

Context = zmq.Context[zmq.Socket[bytes]]


class Pull:
    """Binds a random port of `host` and hands every message to `on_message`, in order for each sender."""

    def __init__(self, context: Context, host: str, on_message: Callable[[bytes], None]) -> None:
        self._on_message = on_message
        self._socket = context.socket(zmq.PULL)
        self._socket.setsockopt(zmq.RCVHWM, QUEUED_MESSAGES)
        self._socket.setsockopt(zmq.LINGER, 0)
        _notice_silence(self._socket)
        port = self._socket.bind_to_random_port(f"tcp://{host}")
        self.address = f"tcp://{host}:{port}"
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(_descriptor(self._socket), self._on_readable)
        self._on_readable()  # ZeroMQ signals a socket's first event only after its state has been read once

    @property
    def closed(self) -> bool:
        return bool(self._socket.closed)

    def close(self) -> None:
        if not self._socket.closed:
            self._loop.remove_reader(_descriptor(self._socket))
            self._socket.close(linger=0)

    def _on_readable(self) -> None:
        # ZeroMQ's descriptor signals edges, not levels: read until nothing is left, or come back by ourselves.
        for _ in range(_DRAIN_MESSAGES):
            if self._socket.closed:
                return
            try:
                message = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._on_message(message)
        self._loop.call_soon(self._on_readable)


class Push:
    """A connection to the `Pull` at `address`. `on_lost` is called once it broke, or could not be made; what it held is lost then.

    Addresses are never used again, so a connection that broke is not made again by itself.
    """

    def __init__(self, context: Context, address: str, on_lost: Callable[[], None]) -> None:
        self._on_lost = on_lost
        self.reached = False  # whether the other side has ever answered
        self._loop = asyncio.get_running_loop()
        self._socket = context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.SNDHWM, QUEUED_MESSAGES)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.CONNECT_TIMEOUT, _CONNECT_MILLISECONDS)
        _notice_silence(self._socket)
        events = zmq.Event.HANDSHAKE_SUCCEEDED
        for event in _LOST:
            events |= event
        self._monitor = self._socket.get_monitor_socket(events)
        self._loop.add_reader(_descriptor(self._monitor), self._on_monitor)
        self._on_monitor()  # ZeroMQ signals a socket's first event only after its state has been read once
        self._socket.connect(address)

    @property
    def closed(self) -> bool:
        return bool(self._socket.closed)

    def send(self, message: bytes) -> bool:
        """Whether it was taken; not when the other side has stopped reading, or is gone."""
        if self._socket.closed:
            return False
        try:
            self._socket.send(message, zmq.NOBLOCK, copy=len(message) < 65536)
        except zmq.ZMQError:
            return False
        return True

    def close(self, linger_milliseconds: int = 0) -> None:
        """What was sent last may still leave for so long, in the background."""
        if self._socket.closed:
            return
        self._loop.remove_reader(_descriptor(self._monitor))
        self._socket.disable_monitor()
        self._socket.close(linger=linger_milliseconds)

    def _on_monitor(self) -> None:
        while not self._monitor.closed and int(self._monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            event = recv_monitor_message(self._monitor)["event"]
            if event in _LOST:
                self.close()
                self._on_lost()
                return
            self.reached = True


def _notice_silence(socket: zmq.Socket[bytes]) -> None:
    """Have the system end connections to a machine that answers no more; a process that is only busy or paused keeps its own."""
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 4)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 2)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
    socket.setsockopt(zmq.TCP_MAXRT, _SILENT_MILLISECONDS)


def _descriptor(socket: zmq.Socket[bytes]) -> int:
    """What to watch for a socket's events."""
    return int(socket.getsockopt(zmq.FD))
