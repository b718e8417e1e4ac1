"""What a gateway holds of one request: in order, to whoever waits for it, and never more than so much."""

from __future__ import annotations

import asyncio

import pytest

from adapters_store.errors import InternalError, LorikeetError, NotFound, Overloaded, Unavailable
from deployments.inbox import Inbox
from deployments.messages import DATA, END, ERROR, HEAD, error_payload
from tests.deployments.reading import SECONDS, read_all

LIMIT_BYTES = 1000


async def test_a_read_makes_room_again() -> None:
    inbox = Inbox(LIMIT_BYTES)
    for _ in range(5):
        inbox.put(DATA, b"x" * LIMIT_BYTES)
        assert await inbox.get() == b"x" * LIMIT_BYTES
    assert not inbox.ended


async def test_an_overflown_request_holds_no_more() -> None:
    inbox = Inbox(LIMIT_BYTES)
    for _ in range(10_000):
        inbox.put(DATA, b"x" * 100)
    assert len(await inbox.get()) == LIMIT_BYTES


async def test_head_alone_wakes_nobody() -> None:
    inbox = Inbox(LIMIT_BYTES)
    reading = asyncio.create_task(inbox.get())
    await asyncio.sleep(0)
    inbox.put(HEAD, b"head")
    await asyncio.sleep(0.01)
    assert not reading.done()
    inbox.put(END, b"")
    assert await reading == b""


async def test_error_reaches_the_reader_after_what_came_before() -> None:
    inbox = Inbox(LIMIT_BYTES)
    inbox.put(DATA, b"begun")
    inbox.put(ERROR, error_payload(Unavailable("away", retry_after_seconds=7.0)))
    assert await inbox.get() == b"begun"
    for _ in range(2):  # and stays
        with pytest.raises(Unavailable, match="away") as raised:
            await inbox.get()
        assert raised.value.retry_after_seconds == 7.0


@pytest.mark.parametrize("ending", [(END, b""), (ERROR, error_payload(NotFound("none")))])
async def test_nothing_follows_the_end(ending: tuple[bytes, bytes]) -> None:
    inbox = Inbox(LIMIT_BYTES)
    inbox.put(DATA, b"all")
    inbox.put(*ending)
    inbox.put(DATA, b"late")
    inbox.put(END, b"")
    inbox.put(ERROR, error_payload(InternalError("late")))
    inbox.fail(InternalError("late"))
    assert await inbox.get() == b"all"
    if ending[0] == END:
        assert await inbox.get() == b""
    else:
        with pytest.raises(NotFound):
            await inbox.get()


async def test_what_comes_while_a_reader_waits_is_offered_first() -> None:
    taken: list[bytes] = []
    inbox = Inbox(LIMIT_BYTES)

    def take(part: bytes) -> bool:
        taken.append(part)
        return part != b"too much"

    inbox.offer_to(take)
    inbox.put(DATA, b"before anybody waits")
    assert await inbox.get() == b"before anybody waits"
    inbox.put(DATA, b"the reader is busy with the first")
    assert not taken
    assert await inbox.get() == b"the reader is busy with the first"
    reading = asyncio.create_task(inbox.get())
    await asyncio.sleep(0)
    inbox.put(DATA, b"one")
    inbox.put(DATA, b"two")
    await asyncio.sleep(0)
    assert not reading.done()
    for part in (b"too much", b"and what follows it"):
        inbox.put(DATA, part)
    assert taken == [b"one", b"two", b"too much"]
    assert await reading == b"too muchand what follows it"


async def test_nothing_is_offered_once_its_reader_has_gone() -> None:
    inbox = Inbox(LIMIT_BYTES)
    inbox.offer_to(lambda part: pytest.fail("nobody waits for it"))
    reading = asyncio.create_task(inbox.get())
    await asyncio.sleep(0)
    reading.cancel()
    inbox.put(DATA, b"late")
    await asyncio.sleep(0)
    inbox.put(DATA, b"later")


async def test_a_reader_that_waits_is_woken_by_an_error() -> None:
    inbox = Inbox(LIMIT_BYTES)
    reading = asyncio.create_task(inbox.get())
    await asyncio.sleep(0)
    inbox.fail(Overloaded("full"))
    with pytest.raises(Overloaded):
        await asyncio.wait_for(reading, SECONDS)


async def test_an_empty_part_does_not_end_the_answer() -> None:
    inbox = Inbox(LIMIT_BYTES)
    inbox.put(DATA, b"")
    reading = asyncio.create_task(read_all(inbox))
    await asyncio.sleep(0)
    inbox.put(DATA, b"after it")
    inbox.put(END, b"")
    assert await reading == b"after it"


@pytest.mark.parametrize("error", [NotFound("no", param="model"), Overloaded("full", retry_after_seconds=3.0), InternalError("ours")])
def test_errors_cross_as_they_are(error: LorikeetError) -> None:
    inbox = Inbox(LIMIT_BYTES)
    inbox.put(ERROR, error_payload(error))
    with pytest.raises(type(error)) as raised:
        asyncio.run(inbox.get())
    assert raised.value.message == error.message and raised.value.param == error.param
