"""Calls beside Serve arrive as they were sent, at the replica that they are for; what cannot be read harms nobody."""

from __future__ import annotations

import secrets
import struct
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from adapters_store.adapter import Adapter, AdapterFile, version_of
from deployments.calls import CALL, CANCEL, WARM, AdapterEncoder, CallSender, ReplicaAddress
from deployments.messages import ChatCall, WarmCall
from tests.deployments.direct import DirectReplica, hangs, until
from tests.deployments.wire import packed, raw_push

FILES = (AdapterFile("adapter_config.json", 3, "a" * 64), AdapterFile("adapter_model.safetensors", 5, "b" * 64))
ADAPTER = Adapter("acme", "support", version_of(FILES), "tiny", 8, FILES, 12.5, "key")
GATEWAY = "tcp://127.0.0.1:1"  # nobody answers to it


class Line:
    """A gateway's connection to one replica."""

    def __init__(self, to: ReplicaAddress) -> None:
        self.lost = 0
        self.sender = CallSender(to, GATEWAY, AdapterEncoder(), self._lose)

    def _lose(self) -> None:
        self.lost += 1

    def close(self) -> None:
        self.sender.close()


@pytest.fixture
async def replica() -> AsyncIterator[DirectReplica]:
    replica = DirectReplica("r1", hangs)
    yield replica
    replica.die()


@pytest.fixture
async def line(replica: DirectReplica) -> AsyncIterator[Line]:
    line = Line(replica.address)
    yield line
    line.close()


def a_call(adapter: Adapter | None = ADAPTER, body: bytes = b'{"messages":[]}') -> ChatCall:
    return ChatCall("request-1", secrets.token_bytes(16), GATEWAY, "acme/support", adapter, body, True, 64)


async def test_a_call_arrives_as_it_was_sent(replica: DirectReplica, line: Line) -> None:
    calls = [a_call(), a_call(None), a_call(body="a \u2028 b \0".encode() * 50_000), replace(a_call(), stream=False, most=0)]
    for call in calls:
        assert line.sender.call(call)
    await until(lambda: len(replica.calls) == len(calls))
    assert replica.calls == calls
    assert replica.calls[0].adapter is replica.calls[3].adapter, "an adapter is decoded once"


async def test_a_warm_arrives_as_it_was_sent(replica: DirectReplica, line: Line) -> None:
    old = f"acme/support@{'0' * 64}"
    warms = [WarmCall(secrets.token_bytes(16), GATEWAY, ADAPTER, instead_of) for instead_of in ((), (old,), (old, "acme/other@1"))]
    for warm in warms:
        assert line.sender.warm(warm)
    await until(lambda: len(replica.warms) == len(warms))
    assert replica.warms == warms and not replica.calls


async def test_a_connection_begins_with_who_calls(replica: DirectReplica, line: Line) -> None:
    """So that what it asked over an earlier connection, and cannot hear of any more, does not run on."""
    await until(lambda: replica.forgotten)
    assert replica.forgotten == [GATEWAY]


async def test_a_cancel_comes_after_its_call(replica: DirectReplica, line: Line) -> None:
    call = a_call()
    line.sender.call(call)
    line.sender.cancel(call.stream_id)
    await until(lambda: replica.cancelled)
    assert replica.cancelled == [call.stream_id] and replica.calls == [call]


async def test_a_cancel_still_leaves_when_its_connection_closes(replica: DirectReplica, line: Line) -> None:
    call = a_call()
    line.sender.call(call)
    line.sender.cancel(call.stream_id)
    line.sender.close()
    await until(lambda: replica.cancelled)


async def test_a_call_for_another_replica_is_not_answered(replica: DirectReplica) -> None:
    """As when an address is somebody else's by now."""
    stranger = Line(replace(replica.address, token=secrets.token_bytes(16)))
    known = Line(replica.address)
    stranger.sender.call(a_call())
    known.sender.call(a_call(None))
    await until(lambda: replica.calls)
    assert [call.adapter for call in replica.calls] == [None]
    stranger.close()
    known.close()


@pytest.mark.parametrize(
    "rest",
    [
        b"",
        b"short",
        struct.pack("!16scII", b"s" * 16, b"?", 0, 0),
        struct.pack("!16scII", b"s" * 16, CALL, 4, 0) + b"null",
        struct.pack("!16scII", b"s" * 16, CALL, 2, 0) + b"{}",
        struct.pack("!16scII", b"s" * 16, CALL, 2**32 - 1, 2**32 - 1) + b"{}",
        struct.pack("!16scII", b"s" * 16, CALL, 0, 7) + b"no json",
        struct.pack("!16scII", b"s" * 16, CANCEL, 0, 0)[:-3],
        struct.pack("!16scII", b"s" * 16, WARM, 2, 0) + b"{}",
        struct.pack("!16scII", b"s" * 16, WARM, 27, 2) + b'{"to": "tcp://127.0.0.1:1"}' + b"{}",
    ],
)
async def test_a_message_that_cannot_be_read_harms_nobody(replica: DirectReplica, line: Line, rest: bytes) -> None:
    with raw_push(replica.address.address) as raw:
        raw.sendall(packed(replica.address.token + rest))
    call = a_call()
    line.sender.call(call)
    await until(lambda: replica.calls)
    assert replica.calls == [call]


async def test_an_adapter_whose_files_are_not_its_versions_is_refused(replica: DirectReplica, line: Line) -> None:
    damaged = a_call(replace(ADAPTER, files=FILES[:1]))
    line.sender.call(damaged)
    await until(lambda: replica.refused)
    warm = WarmCall(secrets.token_bytes(16), GATEWAY, replace(ADAPTER, files=FILES[:1]))
    line.sender.warm(warm)
    await until(lambda: len(replica.refused) == 2)
    assert replica.refused == [damaged.stream_id, warm.stream_id] and not replica.calls and not replica.warms


async def test_a_replica_that_dies_is_noticed_once(replica: DirectReplica, line: Line) -> None:
    await until(lambda: replica.forgotten)
    replica.die()
    await until(lambda: line.lost)
    assert line.lost == 1
    assert not line.sender.call(a_call())


async def test_a_replica_that_is_not_there_is_noticed() -> None:
    gone = DirectReplica("r1", hangs)
    gone.die()
    line = Line(gone.address)
    await until(lambda: line.lost)
    line.close()


@pytest.mark.parametrize(
    "metadata", [{}, {"calls": "x"}, {"calls": "x", "name": "zz", "token": "00"}, {"calls": "x", "name": 1, "token": ""}]
)
def test_a_replica_that_takes_no_direct_calls_has_no_address(metadata: dict[str, object]) -> None:
    assert ReplicaAddress.of("r1", metadata, 64) is None
