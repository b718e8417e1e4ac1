"""Calls beside Ray Serve: a gateway sends a chat straight to a replica that Serve has told it of, as frames come back (`stream.py`).

    CALL      token | stream id | head, adapter, body    the replica answers with frames, or with REFUSED
    WARM      token | stream id | head, adapter          likewise, when it holds the adapter (`warms.py`)
    CANCEL    token | stream id                          nobody waits for that answer any more
    GREETING  token | gateway                            the first message of a connection: what was asked over an earlier one is forgotten

A replica's address and token reach gateways with what Serve tells its routers of every running replica (`router.py`). The token keeps out
what was meant for another process; the network has to be private all the same. Messages are JSON and bytes, never pickles.
"""

from __future__ import annotations

import json
import logging
import secrets
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from adapters_store.adapter import Adapter
from adapters_store.errors import LorikeetError
from adapters_store.manifest import read_manifest, write_manifest
from deployments.messages import REQUEST_ID_BYTES, ChatCall, WarmCall
from deployments.sockets import Pull, Push

logger = logging.getLogger(__name__)

CALL, WARM, CANCEL, GREETING = b"C", b"W", b"X", b"G"
_HEADER = struct.Struct("!16s16scII")  # token, stream id, kind, bytes of the head and of the adapter
_TOKEN_BYTES = 16
_NOBODY = bytes(REQUEST_ID_BYTES)
_LINGER_MILLISECONDS = 500  # a CANCEL just before the end still leaves
_KEPT_ADAPTERS = 4096  # encoded, or decoded, so that it is done once for each


@dataclass(frozen=True, slots=True)
class ReplicaAddress:
    """How to call one running replica. `id` is Serve's, `name` what its frames about itself carry; it holds `most` requests at once."""

    id: str
    name: bytes
    address: str
    token: bytes
    most: int

    @property
    def machine(self) -> str:
        """What the replicas of one machine have in common, and are lost with."""
        return self.address.rpartition(":")[0]

    @classmethod
    def of(cls, id: str, metadata: Mapping[str, Any], most: int) -> ReplicaAddress | None:
        """From what the replica said of itself to Serve (`CallReceiver.metadata`); None where that is no address."""
        try:
            return cls(id, bytes.fromhex(metadata["name"]), str(metadata["calls"]), bytes.fromhex(metadata["token"]), most)
        except (KeyError, ValueError, TypeError):
            return None


class CallHandler(Protocol):
    """What a replica does with what gateways ask."""

    def begin(self, call: ChatCall) -> None: ...

    def warm(self, call: WarmCall) -> None: ...

    def refuse(self, gateway: str, stream_id: bytes) -> None: ...

    def cancel(self, stream_id: bytes) -> None: ...

    def forget(self, gateway: str) -> None: ...


class CallReceiver:
    """A replica's side: one socket for the calls of all gateways."""

    def __init__(self, host: str, handler: CallHandler) -> None:
        self.name = secrets.token_bytes(REQUEST_ID_BYTES)
        self._token = secrets.token_bytes(_TOKEN_BYTES)
        self._handler = handler
        self._adapters: dict[bytes, Adapter] = {}
        self._pull = Pull(host, self._take)

    @property
    def metadata(self) -> dict[str, Any]:
        """What gateways have to know; through Serve."""
        return {"calls": self._pull.address, "name": self.name.hex(), "token": self._token.hex()}

    def close(self) -> None:
        self._pull.close()

    def _take(self, message: bytes) -> None:
        try:
            token, stream_id, kind, head_bytes, adapter_bytes = _HEADER.unpack_from(message)
            head, rest = message[_HEADER.size :][:head_bytes], message[_HEADER.size + head_bytes :]
            if not secrets.compare_digest(token, self._token):
                logger.warning("call_for_another")
            elif kind == CALL:
                self._begin(stream_id, json.loads(head), rest[:adapter_bytes], rest[adapter_bytes:])
            elif kind == WARM:
                self._warm(stream_id, json.loads(head), rest[:adapter_bytes])
            elif kind == CANCEL:
                self._handler.cancel(stream_id)
            elif kind == GREETING:
                self._handler.forget(head.decode())
        except (struct.error, ValueError, KeyError, TypeError):
            logger.warning("call_unreadable", exc_info=True)

    def _begin(self, stream_id: bytes, fields: dict[str, Any], adapter: bytes, body: bytes) -> None:
        to = fields["to"]
        try:
            known = self._adapter(adapter) if adapter else None
            call = ChatCall(fields["id"], stream_id, to, fields["model"], known, body, fields["stream"], fields["most"])
        except (ValueError, KeyError, LorikeetError):
            logger.warning("call_unreadable", exc_info=True)
            self._handler.refuse(to, stream_id)  # it goes through Serve then: as from a gateway of another release
            return
        self._handler.begin(call)

    def _warm(self, stream_id: bytes, fields: dict[str, Any], adapter: bytes) -> None:
        to = fields["to"]
        try:
            call = WarmCall(stream_id, to, self._adapter(adapter), tuple(map(str, fields["instead_of"])))
        except (ValueError, KeyError, TypeError, LorikeetError):
            logger.warning("call_unreadable", exc_info=True)
            self._handler.refuse(to, stream_id)
            return
        self._handler.warm(call)

    def _adapter(self, data: bytes) -> Adapter:
        adapter = self._adapters.get(data)
        if adapter is None:
            exact_name, _, manifest = data.partition(b"\n")
            adapter_name, _, version = exact_name.decode().partition("@")
            owner, _, name = adapter_name.partition("/")
            if len(self._adapters) >= _KEPT_ADAPTERS:
                self._adapters.clear()
            adapter = self._adapters[data] = read_manifest(manifest, owner, name, version)
        return adapter


class AdapterEncoder:
    """Adapters as they travel with calls."""

    def __init__(self) -> None:
        self._encoded: dict[str, bytes] = {}

    def __call__(self, adapter: Adapter) -> bytes:
        encoded = self._encoded.get(adapter.exact_name)
        if encoded is None:
            if len(self._encoded) >= _KEPT_ADAPTERS:
                self._encoded.clear()
            encoded = self._encoded[adapter.exact_name] = adapter.exact_name.encode() + b"\n" + write_manifest(adapter)
        return encoded


class CallSender:
    """A gateway's connection to one replica. `on_lost` is called once when it broke or could not be made."""

    def __init__(self, to: ReplicaAddress, gateway: str, encode: AdapterEncoder, on_lost: Callable[[], None]) -> None:
        self._token = to.token
        self._encode = encode
        self._push = Push(to.address, on_lost)
        head = gateway.encode()
        self._push.send(_HEADER.pack(self._token, _NOBODY, GREETING, len(head), 0) + head)

    def call(self, call: ChatCall) -> bool:
        """Whether it is on its way."""
        fields = {"id": call.request_id, "to": call.frames_to, "model": call.model, "stream": call.stream, "most": call.most}
        head = json.dumps(fields).encode()
        adapter = self._encode(call.adapter) if call.adapter is not None else b""
        header = _HEADER.pack(self._token, call.stream_id, CALL, len(head), len(adapter))
        return self._push.send(b"".join((header, head, adapter, call.body)))

    def warm(self, call: WarmCall) -> bool:
        """Whether it is on its way."""
        head = json.dumps({"to": call.frames_to, "instead_of": call.instead_of}).encode()
        adapter = self._encode(call.adapter)
        return self._push.send(b"".join((_HEADER.pack(self._token, call.stream_id, WARM, len(head), len(adapter)), head, adapter)))

    def cancel(self, stream_id: bytes) -> None:
        self._push.send(_HEADER.pack(self._token, stream_id, CANCEL, 0, 0))

    def close(self) -> None:
        self._push.close(_LINGER_MILLISECONDS)
