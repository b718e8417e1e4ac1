"""The side channel: frames arrive in order, to the request they are for, one message for each turn of the loop, and nothing grows."""

from __future__ import annotations

import asyncio
import secrets
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from functools import partial

import pytest
import uvloop

from adapters_store.errors import Overloaded, Unavailable
from deployments.messages import DATA, END, HEAD, LOAD, load_from_payload
from deployments.sockets import HELLO, UNSENT_BYTES
from deployments.stream import FrameReceiver, FrameSender
from tests.deployments.reading import SECONDS, read_all
from tests.deployments.wire import RawPull, packed, raw_push

LIMIT_BYTES = 1000

SLACK_SECONDS = 2.0  # that a busy machine may keep this process waiting


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    """uvloop is what gateways and replicas run on."""
    return uvloop.EventLoopPolicy() if request.param == "uvloop" else asyncio.DefaultEventLoopPolicy()


@pytest.fixture
async def receiver() -> AsyncIterator[FrameReceiver]:
    receiver = FrameReceiver("127.0.0.1")
    yield receiver
    receiver.close()


@pytest.fixture
async def sender() -> AsyncIterator[FrameSender]:
    sender = FrameSender(lambda gateway: pytest.fail(f"{gateway} was given up"))
    yield sender
    sender.close()


def frame(stream_id: bytes, kind: bytes, payload: bytes = b"") -> bytes:
    return struct.pack("!16sIc", stream_id, len(payload), kind) + payload


def new_id() -> bytes:
    return secrets.token_bytes(16)


async def until(condition: Callable[[], object], seconds: float = SECONDS) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  (the condition has no event of its own)
            await asyncio.sleep(0.005)


def closed_by_peer(connection: socket.socket) -> bool:
    try:
        while connection.recv(1000):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True


async def test_frames_arrive_in_order_at_their_own_request(receiver: FrameReceiver, sender: FrameSender) -> None:
    ids = [new_id() for _ in range(50)]
    inboxes = [receiver.open(stream_id, 1 << 20) for stream_id in ids]
    for step in range(100):
        for stream_id in ids:
            sender.send(receiver.address, stream_id, DATA, stream_id + step.to_bytes(2, "big"))
        if step % 7 == 0:
            await asyncio.sleep(0)
    for stream_id in ids:
        sender.send(receiver.address, stream_id, END)
    for stream_id, inbox in zip(ids, inboxes, strict=True):
        assert await read_all(inbox) == b"".join(stream_id + step.to_bytes(2, "big") for step in range(100))


async def test_all_frames_of_a_turn_leave_as_one_message(sender: FrameSender) -> None:
    """Also those of tasks that became ready in that turn: the cost is per engine step, not per token."""
    async with RawPull() as gateway:
        address = gateway.address
        sender.send(address, b"0" * 16, DATA, b"connect")
        await gateway.message()

        async def request(stream_id: bytes) -> None:
            await done  # as a request's task wakes for the engine's step
            sender.send(address, stream_id, DATA, b"token")

        done = asyncio.get_running_loop().create_future()
        tasks = [asyncio.create_task(request(i.to_bytes(16, "big"))) for i in range(40)]
        await asyncio.sleep(0)
        sender.send(address, b"1" * 16, DATA, b"tapped in the step itself")
        done.set_result(None)
        await asyncio.gather(*tasks)
        message = await gateway.message()
        with pytest.raises(TimeoutError):
            await gateway.message(0.2)
        assert message.count(b"token") == 40 and b"tapped" in message


async def test_frame_of_an_unknown_request_is_dropped(receiver: FrameReceiver, sender: FrameSender) -> None:
    known, forgotten = new_id(), new_id()
    inbox, gone = receiver.open(known, LIMIT_BYTES), receiver.open(forgotten, LIMIT_BYTES)
    receiver.forget(forgotten)
    for stream_id in (new_id(), known, forgotten):
        sender.send(receiver.address, stream_id, DATA, stream_id)
        sender.send(receiver.address, stream_id, END)
    assert await read_all(inbox) == known
    assert not gone.ended
    assert receiver.open_count == 1


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"x",
        b"\0" * 20,
        b"\xff" * 1000,
        frame(b"?" * 16, b"?", b"an unknown kind"),
        frame(b"?" * 16, DATA, b"cut")[:-2],
        frame(b"?" * 16, DATA, b"trailed by") + b"half a header",
        struct.pack("!16sIc", b"?" * 16, 2**32 - 1, DATA) + b"a length beyond the message",
    ],
)
async def test_malformed_message_harms_nobody(receiver: FrameReceiver, message: bytes) -> None:
    stream_id = new_id()
    inbox = receiver.open(stream_id, LIMIT_BYTES)
    with raw_push(receiver.address) as push:
        push.sendall(packed(message, message))
        push.sendall(packed(frame(stream_id, DATA, b"here") + frame(stream_id, END)))
        assert (await read_all(inbox)).endswith(b"here")


async def test_what_is_sent_later_waits_until_what_went_before_was_taken(sender: FrameSender) -> None:
    """So the text of several steps becomes one part where the gateway lags, and leaves at once where it does not."""
    one, other, text = new_id(), new_id(), ["a"]

    def told() -> bytes:
        taken = "".join(text)
        text.clear()
        return taken.encode()

    async with RawPull() as gateway:
        sender.send_later(gateway.address, one, told)
        assert (await gateway.message()).endswith(frame(one, DATA, b"a"))
        text.append("b")
        sender.send_later(gateway.address, one, told)
        sender.send_later(gateway.address, other, lambda: b"")
        with pytest.raises(TimeoutError):
            await gateway.message(0.2)
        text.append("c")
        sender.send(gateway.address, other, DATA, b"at once")
        assert await gateway.message() == frame(other, DATA, b"at once"), "only what is sent later waits"
        text.append("d")
        gateway.take(1)
        assert await gateway.message() == frame(one, DATA, b"bcd"), "of what turned out to be empty there is no frame"
        gateway.take(2)


async def test_what_is_sent_later_arrives_in_order(receiver: FrameReceiver, sender: FrameSender) -> None:
    ids = [new_id() for _ in range(20)]
    inboxes = [receiver.open(stream_id, 1 << 20) for stream_id in ids]
    for step in range(200):
        for stream_id in ids:
            sender.send_later(receiver.address, stream_id, partial(bytes, [step]))
        if step % 3 == 0:
            await asyncio.sleep(0)
    for inbox in inboxes:
        async with asyncio.timeout(SECONDS):
            told = b""
            while len(told) < 200:
                told += await inbox.get()
        assert told == bytes(range(200))


async def test_nothing_waits_for_a_message_that_was_empty(sender: FrameSender) -> None:
    """All that was to be sent later turned out to be told already: there is no message then, and nobody takes it."""
    one = new_id()
    async with RawPull() as gateway:
        sender.send(gateway.address, one, DATA, b"connect")
        await gateway.message()
        sender.send_later(gateway.address, one, lambda: b"")
        with pytest.raises(TimeoutError):
            await gateway.message(0.1)
        sender.send_later(gateway.address, one, lambda: b"next")
        assert await gateway.message() == frame(one, DATA, b"next")


class Loads:
    """A gateway's ear for the load of one replica."""

    def __init__(self) -> None:
        self.heard: list[int] = []

    def put(self, kind: bytes, payload: bytes) -> None:
        if kind == LOAD:
            self.heard.append(load_from_payload(payload))


async def test_load_is_told_as_long_as_there_is_any_and_none_once(receiver: FrameReceiver, sender: FrameSender) -> None:
    loads = Loads()
    receiver.listen(bytes(16), loads)
    sender.reach(receiver.address)
    for requests in (0, 32, 32, 0, 0, 0, 1):
        sender.tell_load(requests)
    await until(lambda: 1 in loads.heard)
    assert loads.heard == [32, 32, 0, 1]


async def test_an_unknown_kind_of_frame_is_ignored(receiver: FrameReceiver) -> None:
    stream_id = new_id()
    inbox = receiver.open(stream_id, LIMIT_BYTES)
    with raw_push(receiver.address) as push:
        push.sendall(packed(frame(stream_id, b"?", b"from a later version") + frame(stream_id, DATA, b"answer") + frame(stream_id, END)))
        assert await read_all(inbox) == b"answer"


async def test_overflow_of_one_request_fails_it_alone(receiver: FrameReceiver, sender: FrameSender) -> None:
    slow_id, quick_id = new_id(), new_id()
    slow, quick = receiver.open(slow_id, LIMIT_BYTES), receiver.open(quick_id, LIMIT_BYTES)
    reading = asyncio.create_task(read_all(quick))
    for _ in range(11):
        sender.send(receiver.address, slow_id, DATA, b"s" * 100)
        sender.send(receiver.address, quick_id, DATA, b"q" * 100)
        await asyncio.sleep(0.005)
    sender.send(receiver.address, quick_id, END)
    assert await reading == b"q" * 1100
    taken = b""
    with pytest.raises(Overloaded, match="1000 bytes"):
        while True:
            taken += await asyncio.wait_for(slow.get(), SECONDS)
    assert taken == b"s" * 1000, "what came before the overflow is still the client's"


async def test_head_comes_before_the_data_it_is_for(receiver: FrameReceiver, sender: FrameSender) -> None:
    stream_id = new_id()
    inbox = receiver.open(stream_id, LIMIT_BYTES)
    sender.send(receiver.address, stream_id, HEAD, b"head")
    sender.send(receiver.address, stream_id, DATA, b"data")
    assert await asyncio.wait_for(inbox.get(), SECONDS) == b"data"
    assert inbox.head is not None and inbox.head.payload == b"head"


async def test_a_gateway_that_closes_is_lost_once_and_within_a_second() -> None:
    lost: list[str] = []
    sender = FrameSender(lost.append)
    receiver, other = FrameReceiver("127.0.0.1"), FrameReceiver("127.0.0.1")
    try:
        stream_id = new_id()
        here, there = receiver.open(stream_id, LIMIT_BYTES), other.open(stream_id, LIMIT_BYTES)
        for gateway in (receiver, other):
            sender.send(gateway.address, stream_id, DATA, b"hello")
        assert await asyncio.wait_for(here.get(), SECONDS) == await asyncio.wait_for(there.get(), SECONDS) == b"hello"
        closed_at = time.monotonic()
        receiver.close()
        await until(lambda: lost)
        assert time.monotonic() - closed_at < 1.0 + SLACK_SECONDS
        sender.send(other.address, stream_id, DATA, b"you live")
        assert await asyncio.wait_for(there.get(), SECONDS) == b"you live"
        await asyncio.sleep(0.3)
        assert lost == [receiver.address]
    finally:
        sender.close()
        other.close()


async def test_a_gateway_that_is_not_there_is_lost() -> None:
    lost: list[str] = []
    sender = FrameSender(lost.append)
    try:
        gone = FrameReceiver("127.0.0.1")
        gone.close()
        sender.send(gone.address, new_id(), DATA, b"anyone?")
        await until(lambda: lost)
        assert lost == [gone.address]
    finally:
        sender.close()


async def test_a_gateway_that_does_not_read_is_given_up_and_memory_stays() -> None:
    """It is connected and takes nothing: the replica keeps so much for it and no more."""
    lost: list[str] = []
    sender = FrameSender(lost.append)
    async with RawPull() as gateway:
        sender.send(gateway.address, b"i" * 16, DATA, b"x")
        await gateway.connected()
        sent = 0
        while not lost and sent < 4 * UNSENT_BYTES:
            sender.send(gateway.address, b"i" * 16, DATA, b"x" * 100_000)
            sent += 100_000
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert lost == [gateway.address]
        assert sent > UNSENT_BYTES
    sender.close()


async def test_what_listens_there_and_does_not_speak_gets_nothing() -> None:
    """A port may have been given to somebody else. Nor does the replica keep more for it than for one that does not read."""
    lost: list[str] = []
    sender = FrameSender(lost.append)
    taken: list[bytes] = []

    async def stranger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.append(await reader.read(1 << 20))
        await asyncio.sleep(3600)

    listener = await asyncio.start_server(stranger, "127.0.0.1", 0)
    try:
        address = f"tcp://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        sender.send(address, b"i" * 16, DATA, b"a secret")
        await until(lambda: taken)
        assert b"secret" not in taken[0]
        for _ in range(2 * UNSENT_BYTES // 1_000_000):
            sender.send(address, b"i" * 16, DATA, b"x" * 1_000_000)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert lost == [address]
    finally:
        sender.close()
        listener.close()


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n", b"lorikeet/1\n", b"lorikeet/2\nand more"])
async def test_what_says_another_hello_is_lost(said: bytes) -> None:
    lost: list[str] = []
    sender = FrameSender(lost.append)

    async def stranger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)

    listener = await asyncio.start_server(stranger, "127.0.0.1", 0)
    try:
        address = f"tcp://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        sender.send(address, b"i" * 16, DATA, b"hello?")
        await until(lambda: lost)
        assert lost == [address]
    finally:
        sender.close()
        listener.close()


@pytest.mark.parametrize("hello", [b"GET / HTTP/1.1\r\n\r\n", b"lorikeet/1\n", struct.pack("!I", 2**31)])
async def test_who_says_another_hello_is_sent_away(receiver: FrameReceiver, hello: bytes) -> None:
    stream_id = new_id()
    inbox = receiver.open(stream_id, LIMIT_BYTES)
    with raw_push(receiver.address, hello) as push:
        push.sendall(packed(frame(stream_id, DATA, b"not from us")))
        push.setblocking(False)
        await until(lambda: closed_by_peer(push))
    assert not inbox.started


async def test_a_message_that_is_too_long_to_be_true_ends_its_connection(receiver: FrameReceiver) -> None:
    with raw_push(receiver.address) as push:
        push.sendall(struct.pack("!I", 2**31))
        push.setblocking(False)
        await until(lambda: closed_by_peer(push))


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
async def test_messages_arrive_however_they_are_cut(receiver: FrameReceiver, size: int) -> None:
    stream_id = new_id()
    inbox = receiver.open(stream_id, 1 << 20)
    parts = [b"", b"a", b"b" * 300, b"c" * 2000, b"d"]
    wire = HELLO + packed(*(frame(stream_id, DATA, part) for part in parts), frame(stream_id, END))
    with raw_push(receiver.address, b"") as push:
        for at in range(0, len(wire), size):
            push.sendall(wire[at : at + size])
            await asyncio.sleep(0)
        assert await read_all(inbox) == b"".join(parts)


async def test_closing_a_gateway_answers_its_requests(receiver: FrameReceiver) -> None:
    inbox = receiver.open(new_id(), LIMIT_BYTES)
    reading = asyncio.create_task(inbox.get())
    await asyncio.sleep(0)
    receiver.close()
    with pytest.raises(Unavailable):
        await asyncio.wait_for(reading, SECONDS)


async def test_a_flood_leaves_turns_to_other_tasks(receiver: FrameReceiver) -> None:
    """Other requests are served while frames keep coming."""
    stream_id = new_id()
    inbox = receiver.open(stream_id, 1 << 30)
    flood = packed(*[frame(stream_id, DATA, b"x" * 1000)] * 8000, frame(stream_id, END))
    with raw_push(receiver.address) as push:
        sending = asyncio.create_task(asyncio.to_thread(push.sendall, flood))
        taken_in_a_turn: list[int] = []
        async with asyncio.timeout(SECONDS):
            while part := await inbox.get():
                taken_in_a_turn.append(len(part))
        await sending
    assert sum(taken_in_a_turn) == 8_000_000
    assert max(taken_in_a_turn) <= 1 << 20
