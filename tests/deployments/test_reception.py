"""A replica's requests, over real sockets: who is answered, who is refused, and what ends them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator

import pytest

from adapters_store.errors import InternalError, InvalidRequest, LorikeetError, Overloaded, StoreUnavailable
from deployments import reception as reception_module
from deployments.calls import AdapterEncoder, CallSender, ReplicaAddress
from deployments.engine.adapters import UsedAdapter
from deployments.inbox import Inbox
from deployments.messages import DATA, LOAD, ChatCall, Refused, WarmCall, load_from_payload
from deployments.reception import Reception
from deployments.stream import FrameReceiver
from tests.deployments.direct import SECONDS, until
from tests.deployments.test_calls import ADAPTER


class Bench:
    """One replica, whose answers begin and then wait for `finish`, and one gateway."""

    def __init__(self) -> None:
        self.finish = asyncio.Event()
        self.running: set[str] = set()
        self.error: Exception | None = None
        self.warming = 0
        self.reception = Reception("127.0.0.1", self._answer, self._load)
        self.gateway = FrameReceiver("127.0.0.1")
        address = ReplicaAddress.of("r1", self.reception.metadata, 0)
        assert address is not None
        self.address = address
        self.sender = self.connect()

    def connect(self) -> CallSender:
        return CallSender(self.address, self.gateway.address, AdapterEncoder(), lambda: None)

    def call(self, name: str, most: int = 0) -> tuple[ChatCall, Inbox]:
        call = ChatCall(name, secrets.token_bytes(16), self.gateway.address, "tiny", None, b"{}", True, most)
        return call, self.gateway.open(call.stream_id, 1 << 20)

    async def warm(self, instead_of: tuple[str, ...] = ()) -> tuple[WarmCall, Inbox]:
        """A warm that runs when this returns; with `instead_of`, the replica finds that it holds none of that."""
        call = WarmCall(secrets.token_bytes(16), self.gateway.address, ADAPTER, instead_of)
        inbox, before = self.gateway.open(call.stream_id, 0), self.warming
        self.sender.warm(call)
        await until(lambda: self.warming == before + 1 or inbox.ended)
        return call, inbox

    async def _load(self, call: WarmCall) -> UsedAdapter | None:
        self.warming += 1
        try:
            await self.finish.wait()
            if self.error is not None:
                raise self.error
            return None if call.instead_of else UsedAdapter(call.adapter.exact_name, 1, "/nowhere", "store", 1.5)
        finally:
            self.warming -= 1

    async def begin(self, name: str, most: int = 0) -> tuple[ChatCall, Inbox]:
        """A direct call that runs when this returns."""
        call, inbox = self.call(name, most)
        self.sender.call(call)
        await until(lambda: name in self.running)
        return call, inbox

    async def _answer(self, call: ChatCall) -> None:
        self.running.add(call.request_id)
        try:
            self.reception.frames.send(call.frames_to, call.stream_id, DATA, b"begun ")
            await self.finish.wait()
            if self.error is not None:
                raise self.error
            self.reception.frames.send(call.frames_to, call.stream_id, DATA, b"ended")
        finally:
            self.running.discard(call.request_id)

    async def close(self) -> None:
        self.finish.set()
        await asyncio.wait_for(self.reception.close(), SECONDS)
        self.gateway.close()


async def read(inbox: Inbox) -> bytes:
    seen = b""
    async with asyncio.timeout(SECONDS):
        while part := await inbox.get():
            seen += part
    return seen


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    await bench.close()


async def test_calls_are_answered_whichever_way_they_come(bench: Bench) -> None:
    _, direct = await bench.begin("direct")
    call, by_serve = bench.call("by Serve")
    serving = asyncio.create_task(bench.reception.chat(call))
    await until(lambda: len(bench.running) == 2)
    assert bench.reception.load == 2
    bench.finish.set()
    assert await read(direct) == await read(by_serve) == b"begun ended"
    await asyncio.wait_for(serving, SECONDS)
    await until(lambda: bench.reception.load == 0)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (InvalidRequest("n is 0", param="n"), InvalidRequest("n is 0", param="n")),
        (ValueError("a secret"), LorikeetError("the model failed to answer this request")),
    ],
)
async def test_what_goes_wrong_is_told(bench: Bench, error: Exception, told: LorikeetError) -> None:
    bench.error = error
    _, inbox = await bench.begin("direct")
    bench.finish.set()
    with pytest.raises(type(told)) as raised:
        await read(inbox)
    assert (raised.value.message, raised.value.param) == (told.message, told.param)


async def test_a_full_replica_refuses_direct_calls_and_lets_serves_wait(bench: Bench) -> None:
    _, first = await bench.begin("first", most=1)
    call, waits = bench.call("waits", most=1)
    serving = asyncio.create_task(bench.reception.chat(call))
    await until(lambda: bench.reception.load == 2)
    too_much, refused = bench.call("too much", most=1)
    bench.sender.call(too_much)
    with pytest.raises(Refused):
        await read(refused)
    assert bench.running == {"first"}
    bench.finish.set()
    assert await read(first) == await read(waits) == b"begun ended"
    await asyncio.wait_for(serving, SECONDS)


async def test_a_cancelled_call_stops(bench: Bench) -> None:
    call, _ = await bench.begin("direct")
    bench.sender.cancel(secrets.token_bytes(16))  # one that nobody knows
    bench.sender.cancel(call.stream_id)
    await until(lambda: not bench.running and bench.reception.load == 0)


async def test_a_cancelled_call_of_serves_stops_also_while_it_waits(bench: Bench) -> None:
    await bench.begin("first", most=1)
    call, _ = bench.call("waits", most=1)
    serving = asyncio.create_task(bench.reception.chat(call))
    await until(lambda: bench.reception.load == 2)
    serving.cancel()
    await until(lambda: bench.reception.load == 1)


async def test_a_gateway_that_dies_takes_its_calls_with_it(bench: Bench) -> None:
    await bench.begin("direct")
    call, _ = bench.call("by Serve")
    serving = asyncio.create_task(bench.reception.chat(call))
    await until(lambda: len(bench.running) == 2)
    bench.gateway.close()
    await until(lambda: not bench.running and bench.reception.load == 0)
    assert serving.cancelled()


async def test_a_gateway_that_connects_anew_has_lost_its_direct_calls(bench: Bench) -> None:
    """It cannot cancel them any more; Serve's are another connection's."""
    await bench.begin("direct")
    call, by_serve = bench.call("by Serve")
    serving = asyncio.create_task(bench.reception.chat(call))
    await until(lambda: len(bench.running) == 2)
    bench.sender = bench.connect()
    await until(lambda: bench.running == {"by Serve"})
    bench.finish.set()
    assert await read(by_serve) == b"begun ended"
    await asyncio.wait_for(serving, SECONDS)


async def test_a_replica_that_stops_ends_what_runs_and_takes_no_more(bench: Bench) -> None:
    _, inbox = await bench.begin("direct")
    closing = asyncio.create_task(bench.reception.close())
    await asyncio.sleep(0)
    late, refused = bench.call("late")
    bench.sender.call(late)
    with pytest.raises(Refused):
        await read(refused)
    assert not closing.done()
    bench.finish.set()
    assert await read(inbox) == b"begun ended"
    await asyncio.wait_for(closing, SECONDS)


async def test_gateways_are_told_of_the_load_as_it_changes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    class Told:
        def __init__(self) -> None:
            self.loads: list[int] = []

        def put(self, kind: bytes, payload: bytes) -> None:
            if kind == LOAD:
                self.loads.append(load_from_payload(payload))

    monkeypatch.setattr(reception_module, "TELL_SECONDS", 0.01)
    told = Told()
    bench.gateway.listen(bench.address.name, told)
    await bench.begin("one")
    await bench.begin("two")
    await until(lambda: told.loads[-1:] == [2])
    bench.finish.set()
    await until(lambda: told.loads[-1:] == [0])
    assert len(told.loads) == len([load for load, before in zip(told.loads, [0, *told.loads], strict=False) if load != before])


async def test_an_answer_too_large_for_its_reader_is_only_that_requests_fault(bench: Bench) -> None:
    call = ChatCall("small", secrets.token_bytes(16), bench.gateway.address, "tiny", None, b"{}", True)
    inbox = bench.gateway.open(call.stream_id, 3)
    bench.sender.call(call)
    _, other = await bench.begin("other")
    bench.finish.set()
    with pytest.raises(Overloaded):
        await read(inbox)
    assert await read(other) == b"begun ended"


async def test_a_warm_is_told_where_its_adapter_was_found(bench: Bench) -> None:
    _, loads = await bench.warm()
    _, has_nothing_to_do = await bench.warm(("acme/support@old",))
    bench.finish.set()
    assert await read(loads) == await read(has_nothing_to_do) == b""
    assert loads.head is not None and b'"store"' in loads.head.payload and b"1500" in loads.head.payload
    assert has_nothing_to_do.head is None


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (StoreUnavailable("away"), StoreUnavailable("away")),
        (ValueError("a secret"), InternalError(f"{ADAPTER.exact_name} could not be loaded")),
    ],
)
async def test_what_goes_wrong_with_a_warm_is_told(bench: Bench, error: Exception, told: LorikeetError) -> None:
    bench.error = error
    _, inbox = await bench.warm()
    bench.finish.set()
    with pytest.raises(type(told)) as raised:
        await read(inbox)
    assert raised.value.message == told.message


async def test_warms_take_no_room_and_are_no_load(bench: Bench) -> None:
    """Neither may a replica refuse a chat because it loads something, nor may another replica be started for it."""
    for _ in range(3):
        await bench.warm()
    assert bench.reception.load == 0
    await bench.begin("chat", most=1)
    assert bench.reception.load == 1


async def test_a_replica_lets_only_so_many_warms_wait(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reception_module, "WARMS_MOST", 2)
    held = [(await bench.warm())[1] for _ in range(2)]
    _, refused = await bench.warm()
    with pytest.raises(Refused):
        await read(refused)
    bench.finish.set()
    for inbox in held:
        await read(inbox)
    _, again = await bench.warm()
    assert await read(again) == b""


async def test_a_warm_stops_when_it_is_cancelled_or_its_gateway_is_gone(bench: Bench) -> None:
    call, _ = await bench.warm()
    await bench.warm()
    bench.sender.cancel(call.stream_id)
    await until(lambda: bench.warming == 1)
    bench.gateway.close()
    await until(lambda: bench.warming == 0)


async def test_a_replica_that_stops_ends_its_warms_and_takes_no_more(bench: Bench) -> None:
    _, inbox = await bench.warm()
    closing = asyncio.create_task(bench.reception.close())
    await asyncio.sleep(0)
    _, refused = await bench.warm()
    with pytest.raises(Refused):
        await read(refused)
    assert not closing.done()
    bench.finish.set()
    assert await read(inbox) == b""
    await asyncio.wait_for(closing, SECONDS)
