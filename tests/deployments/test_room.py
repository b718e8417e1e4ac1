"""A replica holds as many requests as it may, whichever way they come, and whoever waits goes first."""

from __future__ import annotations

import asyncio

import pytest

from deployments.room import Room


async def wait_in(room: Room, most: int = 0) -> asyncio.Task[None]:
    """Somebody who waits for a place; has begun to when this returns."""
    waiting = asyncio.create_task(room.wait(most))
    await asyncio.sleep(0)
    return waiting


async def test_what_is_too_much_is_refused_until_a_place_is_given_back() -> None:
    room = Room()
    assert room.take(2) and room.take(2)
    assert not room.take(2)
    room.give()
    assert room.take(2)
    assert room.load == 2


async def test_without_a_bound_nobody_is_refused() -> None:
    room = Room()
    assert all(room.take(0) for _ in range(1000))


async def test_who_waits_is_counted_and_goes_before_who_comes_later() -> None:
    room = Room()
    assert room.take(1)
    first, second = await wait_in(room), await wait_in(room)
    assert room.load == 3
    room.give()
    assert not room.take(1), "it came after those who wait"
    await asyncio.wait_for(first, 1.0)
    assert not second.done()
    room.give()
    await asyncio.wait_for(second, 1.0)
    assert (room.held, room.load) == (1, 1)


async def test_who_waited_and_left_takes_no_place() -> None:
    room = Room()
    assert room.take(1)
    leaving, staying = await wait_in(room), await wait_in(room)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    room.give()
    await asyncio.wait_for(staying, 1.0)
    assert room.load == 1


async def test_who_leaves_just_as_its_turn_comes_gives_it_to_the_next() -> None:
    room = Room()
    assert room.take(1)
    leaving, staying = await wait_in(room), await wait_in(room)
    room.give()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    await asyncio.wait_for(staying, 1.0)
    assert room.load == 1


async def test_more_room_lets_in_who_waits() -> None:
    room = Room()
    assert room.take(1)
    waiting = await wait_in(room)
    assert room.take(3)
    await asyncio.wait_for(waiting, 1.0)
    assert room.load == 3
