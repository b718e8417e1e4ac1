"""Orders to read adapters, over real Unix sockets: every worker's answer counts, and none is waited for in vain."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from deployments.engine.read_orders import OrderDesk, ReadOrders

BOUND_SECONDS = 10.0


class Worker:
    """A worker that reads when the test says so."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.reads: dict[int, Future[Any]] = {}
        self.paths: dict[int, tuple[str, str]] = {}
        self.desk = OrderDesk(str(folder), self._read)

    def _read(self, name: str, number: int, path: str) -> Future[Any]:
        if path == "/no/thread":
            raise RuntimeError("can't start new thread")
        self.paths[number] = name, path
        self.reads[number] = Future()
        return self.reads[number]


@pytest.fixture
def workers(tmp_path: Path) -> list[Worker]:
    return [Worker(tmp_path / name) for name in ("first", "second")]


@pytest.fixture
async def orders(workers: list[Worker]) -> AsyncIterator[ReadOrders]:
    orders = await ReadOrders.connect([worker.desk.path for worker in workers])
    yield orders
    orders.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(BOUND_SECONDS):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def read_by_all(read: asyncio.Task[bool], workers: list[Worker], number: int) -> bool:
    """What an order is told when all workers have read what it asks for."""
    await ordered(workers, number)
    for worker in workers:
        worker.reads[number].set_result(None)
    async with asyncio.timeout(BOUND_SECONDS):
        return await read


async def ordered(workers: list[Worker], *numbers: int) -> None:
    await until(lambda: all(set(numbers) <= set(worker.reads) for worker in workers))


async def test_order_is_read_by_every_worker_and_done_with_the_last(orders: ReadOrders, workers: list[Worker]) -> None:
    read = asyncio.create_task(orders.read("acme/a@1", 1, "/cache/a"))
    await ordered(workers, 1)
    assert [worker.paths[1] for worker in workers] == [("acme/a@1", "/cache/a")] * 2
    workers[0].reads[1].set_result(None)
    await asyncio.sleep(0.05)
    assert not read.done()
    workers[1].reads[1].set_result(None)
    async with asyncio.timeout(BOUND_SECONDS):
        assert await read


async def test_one_that_cannot_read_makes_it_not_whole(orders: ReadOrders, workers: list[Worker]) -> None:
    read = asyncio.create_task(orders.read("acme/a@1", 1, "/cache/a"))
    await ordered(workers, 1)
    workers[0].reads[1].set_exception(ValueError("no safetensors"))
    workers[1].reads[1].set_result(None)
    async with asyncio.timeout(BOUND_SECONDS):
        assert not await read


async def test_order_that_a_worker_cannot_take_fails_alone(orders: ReadOrders, workers: list[Worker]) -> None:
    async with asyncio.timeout(BOUND_SECONDS):
        assert not await orders.read("acme/a@1", 1, "/no/thread")
    assert not orders.lost
    later = asyncio.create_task(orders.read("acme/b@1", 2, "/cache/b"))
    assert await read_by_all(later, workers, 2)


async def test_orders_do_not_wait_for_each_other(orders: ReadOrders, workers: list[Worker]) -> None:
    first, second = (asyncio.create_task(orders.read("acme/a@1", number, "/cache/a")) for number in (1, 2))
    await ordered(workers, 1, 2)
    assert await read_by_all(second, workers, 2)
    assert not first.done()


async def test_order_that_was_given_up_is_no_other_orders(orders: ReadOrders, workers: list[Worker]) -> None:
    given_up = asyncio.create_task(orders.read("acme/a@1", 1, "/cache/a"))
    await ordered(workers, 1)
    given_up.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await given_up
    workers[0].reads[1].set_result(None)
    workers[1].reads[1].cancel()
    later = asyncio.create_task(orders.read("acme/b@1", 2, "/cache/b"))
    assert await read_by_all(later, workers, 2)


async def test_whoever_waits_for_a_worker_that_ends_is_told_and_so_is_whoever_comes_after(tmp_path: Path) -> None:
    async def end_at_the_first_order(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert json.loads(await reader.readline())["number"] == 1
        writer.close()

    server = await asyncio.start_unix_server(end_at_the_first_order, tmp_path / "worker")
    orders = await ReadOrders.connect([str(tmp_path / "worker")])
    for _ in range(2):
        async with asyncio.timeout(BOUND_SECONDS):
            with pytest.raises(ConnectionResetError, match="has ended"):
                await orders.read("acme/a@1", 1, "/cache/a")
    assert orders.lost
    orders.close()
    server.close()


async def test_desk_outlives_a_replica_that_went_away_in_between(workers: list[Worker]) -> None:
    orders = await ReadOrders.connect([workers[0].desk.path])
    read = asyncio.create_task(orders.read("acme/a@1", 1, "/cache/a"))
    await ordered(workers[:1], 1)
    orders.close()
    with pytest.raises((ConnectionResetError, asyncio.CancelledError)):
        await asyncio.wait_for(read, BOUND_SECONDS)
    workers[0].reads[1].set_result(None)  # nobody is told, and nothing is raised where nobody looks
