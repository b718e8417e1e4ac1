"""Parts are written in the turn that they come while the connection takes them, in order, and wait in a task while it does not."""

from __future__ import annotations

import asyncio

import pytest
import uvloop
from starlette.types import Message

from adapters_store.errors import Unavailable
from deployments.api.events import EventStream, PartWriter
from deployments.api.metrics import Metrics
from deployments.api.trials import Watch
from deployments.dispatch import Answer
from deployments.inbox import Inbox
from deployments.messages import DATA, END

SECONDS = 10.0


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    return uvloop.EventLoopPolicy() if request.param == "uvloop" else asyncio.DefaultEventLoopPolicy()


class Connection:
    """An ASGI server's side: `send` waits while there is no room, as uvicorn's does."""

    def __init__(self) -> None:
        self.room = asyncio.Event()
        self.room.set()
        self.body: list[bytes] = []
        self.ended = False

    async def send(self, message: Message) -> None:
        if not self.room.is_set():
            await self.room.wait()
        if message["type"] == "http.response.body":
            self.body += filter(None, [message["body"]])
            self.ended |= not message["more_body"]


class Running:
    """One answer on its way to one connection."""

    def __init__(self, connection: Connection) -> None:
        self.inbox = Inbox(1000)
        self.closed = False
        answer = Answer(self.inbox, b"first ", self._close, "direct")
        response = EventStream(answer, {}, "request-1", Watch(Metrics(lambda: 0, lambda: 0), ()))
        self.task = asyncio.ensure_future(response({}, None, connection.send))  # type: ignore[arg-type]

    def _close(self) -> None:
        self.closed = True

    def put(self, *parts: bytes) -> None:
        for part in parts:
            self.inbox.put(DATA, part)


async def begun() -> tuple[Connection, Running]:
    """An answer whose first part is written, and whose task waits for more."""
    connection = Connection()
    running = Running(connection)
    await asyncio.sleep(0.01)
    return connection, running


async def test_a_part_is_written_in_the_turn_that_it_comes() -> None:
    connection, running = await begun()
    running.put(b"second ", b"third ")
    assert connection.body == [b"first ", b"second ", b"third "], "without a turn of the request's own task"
    running.inbox.put(END, b"")
    await asyncio.wait_for(running.task, SECONDS)
    assert connection.ended and running.closed


async def test_parts_keep_their_order_while_the_connection_has_no_room() -> None:
    connection, running = await begun()
    for _ in range(3):
        running.put(b"1")
        connection.room.clear()
        running.put(b"2", b"3")
        await asyncio.sleep(0.01)
        running.put(b"4")
        connection.room.set()
        running.put(b"5")  # there is room, but what came before has not been written yet
        await asyncio.sleep(0.01)
        running.put(b"6")
    running.inbox.put(END, b"")
    await asyncio.wait_for(running.task, SECONDS)
    assert b"".join(connection.body) == b"first " + b"123456" * 3
    assert connection.ended


async def test_the_last_part_is_written_when_there_is_room_though_none_follows() -> None:
    connection, running = await begun()
    connection.room.clear()
    running.put(b"last so far")
    await asyncio.sleep(0.01)
    assert connection.body == [b"first "]
    connection.room.set()
    async with asyncio.timeout(SECONDS):
        while len(connection.body) < 2:  # noqa: ASYNC110  (the connection has no event for it)
            await asyncio.sleep(0.001)
    running.task.cancel()


async def test_a_client_that_does_not_read_overflows_its_own_inbox() -> None:
    connection, running = await begun()
    connection.room.clear()
    for _ in range(20):
        running.put(b"x" * 100)
        await asyncio.sleep(0)
    assert running.inbox.ended
    connection.room.set()
    await asyncio.wait_for(running.task, SECONDS)
    assert b"left more than 1000 bytes" in connection.body[-1], "told as an event"
    assert connection.ended and running.closed


async def test_an_error_follows_what_was_written() -> None:
    connection, running = await begun()
    running.put(b"second")
    running.inbox.fail(Unavailable("away"))
    await asyncio.wait_for(running.task, SECONDS)
    assert connection.body[:2] == [b"first ", b"second"] and b"away" in connection.body[2]


async def assert_cancelling_leaves_nothing(connection: Connection, running: Running) -> None:
    running.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running.task
    await asyncio.sleep(0.01)
    connection.room.set()
    await asyncio.sleep(0.01)
    assert connection.body == [b"first "] and running.closed
    assert len(asyncio.all_tasks()) == 1


async def test_cancelling_lets_go_of_what_waits_for_room() -> None:
    connection, running = await begun()
    connection.room.clear()
    running.put(b"held")
    await assert_cancelling_leaves_nothing(connection, running)


async def test_cancelling_lets_go_of_what_is_waited_for_to_be_written() -> None:
    connection, running = await begun()
    connection.room.clear()
    running.put(b"held", b"behind it")
    await asyncio.sleep(0.01)  # both tasks wait now, one for the other
    await assert_cancelling_leaves_nothing(connection, running)


async def test_a_send_is_told_that_its_task_was_cancelled() -> None:
    """As if it had been awaited from its beginning."""
    cleaned: list[str] = []

    async def send(message: Message) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cleaned.append("cancelled")
            raise

    writer = PartWriter(send)
    assert writer.now(b"part")
    await asyncio.sleep(0)
    writer.close()
    await asyncio.sleep(0.01)
    assert cleaned == ["cancelled"]


async def test_a_connection_that_fails_is_met_by_who_awaits_it() -> None:
    class Failed(RuntimeError):
        pass

    async def send(message: Message) -> None:
        raise Failed

    writer = PartWriter(send)
    assert writer.now(b"part") is False
    with pytest.raises(Failed):
        await writer.write(b"part")
