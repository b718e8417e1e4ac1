"""What crosses between a gateway and a replica: the call, the frames that answer it, and errors in flight.

A `ChatCall` travels once per request, straight to a replica (`calls.py`) or through Ray Serve. The frames that answer it travel beside
Serve in any case (`stream.py`): each is one kind byte and a payload. A `WarmCall` is answered likewise, without DATA.

    HEAD      JSON {"cold": …}      where the adapter was found; sent with or before the first DATA
    DATA      bytes                 server-sent events, or (not streamed) the whole JSON answer
    END       empty                 the answer is complete
    ERROR     JSON, `error_payload` the answer failed; nothing follows
    REFUSED   empty                 this replica does not take the call: it is full, or about to stop

Two kinds are about the replica that sends them:

    GREETING  `greeting_payload`    the first frame of each connection; not the first one means that frames may have been lost
    LOAD      `load_payload`        requests that it has now, its waiting ones included
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass

from adapters_store import errors
from adapters_store.adapter import Adapter
from adapters_store.errors import InternalError, InvalidRequest, LorikeetError, Unavailable

HEAD, DATA, END, ERROR, REFUSED, GREETING, LOAD = b"H", b"D", b"E", b"X", b"R", b"G", b"L"
REQUEST_ID_BYTES = 16
PREFIX_BYTES = 512  # of a base model's request: what is equal so far probably shares a prefix in the KV cache
_LOAD = struct.Struct("!I")


class ReplicaGone(Unavailable):
    """The replica died; whether the request can be made again depends on what the client has seen."""


class Refused(LorikeetError):
    """The replica did not take the call. Never told to a client: the call goes elsewhere."""


@dataclass(frozen=True, slots=True)
class ChatCall:
    """One chat completion for a replica to answer.

    `body` is the validated request as JSON, in the fields that vLLM reads; `model` is the name the client asked for, echoed back.
    `frames_to` is the gateway's side-channel address, `stream_id` the random id that its frames carry. `most` is how many requests the
    replica may hold at once, 0 where the gateway does not know.
    """

    request_id: str
    stream_id: bytes
    frames_to: str
    model: str
    adapter: Adapter | None
    body: bytes
    stream: bool
    most: int = 0

    @property
    def placement_key(self) -> bytes:
        """What decides which replica the call prefers: its adapter's version, or the beginning of its prompt."""
        return adapter_key(self.adapter) if self.adapter else self.body[:PREFIX_BYTES]


@dataclass(frozen=True, slots=True)
class WarmCall:
    """An adapter for a replica to load before anybody asks for it.

    Answered by a HEAD that says where it was found, and END. With `instead_of`, exact names, a replica that holds none of them loads
    nothing, and answers END alone. `frames_to` and `stream_id` as of a chat.
    """

    stream_id: bytes
    frames_to: str
    adapter: Adapter
    instead_of: tuple[str, ...] = ()


def adapter_key(adapter: Adapter) -> bytes:
    """The placement key of what asks for `adapter`."""
    return adapter.exact_name.encode()


def greeting_payload(epoch: bytes, *, again: bool) -> bytes:
    """The payload of a GREETING: which connection this is, and whether there was one before."""
    return epoch + (b"\1" if again else b"\0")


def load_payload(requests: int) -> bytes:
    return _LOAD.pack(requests)


def load_from_payload(payload: bytes) -> int:
    """Raises struct.error for what is none."""
    requests: int = _LOAD.unpack(payload)[0]
    return requests


def head_payload(cold: str, wait_seconds: float) -> bytes:
    """The payload of a HEAD frame: where the adapter was found, and how long the request waited for it."""
    return json.dumps({"cold": cold, "wait_ms": round(wait_seconds * 1e3, 1)}).encode()


_CARRIED: dict[str, type[LorikeetError]] = {
    cls.__name__: cls
    for cls in (errors.InvalidRequest, errors.NotFound, errors.Overloaded, errors.Unavailable, errors.StoreUnavailable, errors.TooLarge)
}


def error_payload(error: LorikeetError) -> bytes:
    """`error` as the payload of an ERROR frame."""
    name = type(error).__name__ if type(error).__name__ in _CARRIED else _nearest(error)
    retry_after_seconds = getattr(error, "retry_after_seconds", None)
    return json.dumps({"class": name, "message": error.message, "param": error.param, "retry_after": retry_after_seconds}).encode()


def error_from_payload(payload: bytes) -> LorikeetError:
    """The error that an ERROR frame carries; what cannot be read is an InternalError."""
    try:
        fields = json.loads(payload)
        cls = _CARRIED.get(fields["class"], InternalError)
        error = cls(fields["message"], param=fields["param"])
        if isinstance(error, errors.Overloaded | errors.Unavailable):
            error.retry_after_seconds = float(fields["retry_after"])
        return error
    except (ValueError, KeyError, TypeError):
        return InternalError("the model's replica sent an answer that could not be read")


def _nearest(error: LorikeetError) -> str:
    if isinstance(error, InvalidRequest):
        return InvalidRequest.__name__
    return InternalError.__name__
