"""The token side channel: frames go from a replica to the gateway that asked, beside Ray instead of through it.

Each gateway binds one port (`FrameReceiver`); each replica keeps one connection per gateway (`FrameSender`). All frames
that one engine step produced for one gateway leave as ONE message, so the cost is per step and not per token, and nothing waits for a
timer: a flush is scheduled behind the tasks that are ready now. A message is a run of `stream id (16) | length (4) | kind (1) | payload`.
The gateway says of each when it has taken it; text that can wait until the last text was taken is not made into a frame before
(`send_later`).

Stream ids are random, so a frame for a request that is gone is dropped. Both sides are bounded: a gateway that does not read gets no
more text, and loses its requests over whatever else is too much (`FrameSender` gives it up); a client that does not read loses its own
(`Inbox` overflows).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import struct
from collections.abc import Callable
from typing import Protocol

from adapters_store.errors import Unavailable
from deployments.inbox import Inbox
from deployments.messages import (
    DATA,
    GREETING,
    HEAD,
    LOAD,
    REQUEST_ID_BYTES,
    greeting_payload,
    load_payload,
)
from deployments.sockets import Pull, Push

logger = logging.getLogger(__name__)

_HEADER = struct.Struct("!16sIc")
_EPOCH_BYTES = 8
_LINGER_MILLISECONDS = 500


class FrameSender:
    """A replica's side: one outgoing queue per gateway.

    `name` is what the replica is known by to gateways; frames about itself, not about one request, carry it in place of a stream's id.
    `on_gateway_lost` is called with the address of a gateway that closed its socket or stopped reading; its requests are then
    nobody's. Runs on the asyncio loop that builds it.
    """

    def __init__(self, on_gateway_lost: Callable[[str], None], name: bytes = bytes(REQUEST_ID_BYTES)) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_gateway_lost = on_gateway_lost
        self._name = name
        self._lines: dict[str, _Line] = {}

    def send(self, gateway: str, stream_id: bytes, kind: bytes, payload: bytes = b"") -> None:
        """Queue one frame; it leaves after the tasks that are ready now have run."""
        line = self._lines.get(gateway) or self._open(gateway)
        line.carries = True
        line.append(stream_id, kind, payload)

    def send_later(self, gateway: str, stream_id: bytes, make: Callable[[], bytes]) -> None:
        """Queue a DATA frame of what `make` gives when the gateway has taken the last that was queued so; none where that is empty."""
        line = self._lines.get(gateway) or self._open(gateway)
        line.carries = True
        line.append_later(stream_id, make)

    def reach(self, gateway: str) -> None:
        """Connect to a gateway now, so that its loss is noticed before there is anything to send."""
        line = self._lines.get(gateway) or self._open(gateway)
        line.carries = True

    def tell_load(self, requests: int) -> None:
        """Tell every gateway that is known how many requests this replica has; of none, once.

        Also when it is as many as it was told last: each gateway takes its own from it as it arrives, and whose they are may have changed.
        """
        for line in self._lines.values():
            if requests or line.told_load:
                line.told_load = requests
                line.append(self._name, LOAD, load_payload(requests))

    def close(self) -> None:
        """What was sent before still leaves, if that takes not long."""
        for line in list(self._lines.values()):
            line.close(_LINGER_MILLISECONDS)
        self._lines.clear()

    def _open(self, gateway: str, *, again: bool = False) -> _Line:
        line = self._lines[gateway] = _Line(gateway, self._loop, lambda: self._lose(gateway))
        line.append(self._name, GREETING, greeting_payload(secrets.token_bytes(_EPOCH_BYTES), again=again))
        return line

    def _lose(self, gateway: str) -> None:
        line = self._lines.pop(gateway, None)
        if line is None:
            return
        line.close()
        if line.carries:
            logger.warning("gateway_lost", extra={"gateway": gateway})
            self._on_gateway_lost(gateway)
        if line.reached:
            # If it lives, it has to hear that frames were lost; if not, this second line is lost in its turn, and that is the end.
            self._open(gateway, again=True)


class _Line:
    """One gateway's socket and the frames not yet handed to it."""

    def __init__(self, gateway: str, loop: asyncio.AbstractEventLoop, lose: Callable[[], None]) -> None:
        self.carries = False  # anything that a request waits for
        self.told_load = 0
        self._loop = loop
        self._lose = lose
        self._parts: list[bytes] = []
        self._later: list[tuple[bytes, Callable[[], bytes]]] = []
        self._scheduled = False
        self._sent = self._taken = 0  # messages
        self._awaited = 0  # of them, those up to the last that held anything of `_later`
        self._push = Push(gateway, lose, self._took)

    @property
    def reached(self) -> bool:
        return self._push.reached

    def append(self, stream_id: bytes, kind: bytes, payload: bytes) -> None:
        self._add(stream_id, kind, payload)
        self._schedule()

    def append_later(self, stream_id: bytes, make: Callable[[], bytes]) -> None:
        self._later.append((stream_id, make))
        if self._keeps_up:
            self._schedule()

    @property
    def _keeps_up(self) -> bool:
        """Whether the gateway has taken all that held anything of `_later`."""
        return self._taken >= self._awaited

    def _add(self, stream_id: bytes, kind: bytes, payload: bytes) -> None:
        self._parts.append(_HEADER.pack(stream_id, len(payload), kind))
        self._parts.append(payload)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            # Twice: the first runs behind what is ready now, the second behind what those tasks made ready.
            self._loop.call_soon(self._loop.call_soon, self._flush)

    def _took(self, messages: int) -> None:
        self._taken += messages
        if self._later and self._keeps_up:
            self._flush()

    def _flush(self) -> None:
        self._scheduled = False
        if self._push.closed:
            return
        if self._later and self._keeps_up:
            self._make()
        if not self._parts:
            return
        message = b"".join(self._parts)
        self._parts.clear()
        self._sent += 1
        if not self._push.send(message):
            self._lose()

    def _make(self) -> None:
        """Turn what waits for the gateway into frames."""
        later, self._later = self._later, []
        for stream_id, make in later:
            payload = make()
            if payload:
                self._add(stream_id, DATA, payload)
                self._awaited = self._sent + 1

    def close(self, linger_milliseconds: int = 0) -> None:
        self._push.close(linger_milliseconds)


class AnswerFrames:
    """The frames of one answer; `head` is the payload of the HEAD that leaves with the first part, if there is one."""

    def __init__(self, frames: FrameSender, gateway: str, stream_id: bytes, head: bytes | None) -> None:
        self._frames = frames
        self._gateway = gateway
        self._stream_id = stream_id
        self._head = head

    def emit(self, part: bytes) -> None:
        if self._head is not None:
            self._frames.send(self._gateway, self._stream_id, HEAD, self._head)
            self._head = None
        self._frames.send(self._gateway, self._stream_id, DATA, part)

    def emit_later(self, make: Callable[[], bytes]) -> None:
        """Not before the first part has been emitted."""
        self._frames.send_later(self._gateway, self._stream_id, make)


class Listener(Protocol):
    """Hears the frames that a replica sends about itself."""

    def put(self, kind: bytes, payload: bytes) -> None: ...


class FrameReceiver:
    """A gateway's side: one port, frames sorted into the inboxes of the requests in flight."""

    def __init__(self, host: str) -> None:
        self._inboxes: dict[bytes, Inbox] = {}
        self._listeners: dict[bytes, Listener] = {}
        self._pull = Pull(host, self._sort, tells=True)
        self.address = self._pull.address

    def open(self, stream_id: bytes, limit_bytes: int, on_overflow: Callable[[], None] | None = None) -> Inbox:
        inbox = self._inboxes[stream_id] = Inbox(limit_bytes, on_overflow)
        return inbox

    def forget(self, stream_id: bytes) -> None:
        self._inboxes.pop(stream_id, None)

    def listen(self, name: bytes, listener: Listener) -> None:
        """Have what the replica of this name says about itself told to `listener`, until `ignore`."""
        self._listeners[name] = listener

    def ignore(self, name: bytes) -> None:
        self._listeners.pop(name, None)

    @property
    def open_count(self) -> int:
        return len(self._inboxes)

    def close(self) -> None:
        if self._pull.closed:
            return
        self._pull.close()
        for inbox in list(self._inboxes.values()):
            inbox.fail(Unavailable("the gateway is shutting down: send the request again"))

    def _sort(self, message: bytes) -> None:
        inboxes, unpack, header = self._inboxes, _HEADER.unpack_from, _HEADER.size
        at, end = 0, len(message)
        while at + header <= end:
            stream_id, length, kind = unpack(message, at)
            at += header
            to = inboxes.get(stream_id) or self._listeners.get(stream_id)
            if to is not None:
                to.put(kind, message[at : at + length])
            at += length
