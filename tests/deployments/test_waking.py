"""Requests for a model without a replica: who waits, how long, how many, and what a stream's client sees meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest

from adapters_store.errors import InvalidRequest, LorikeetError, Overloaded, Unavailable
from configs.settings import AutoscalingSettings, ModelSettings
from deployments.waking import Opening, Patience, Waking
from tests.deployments.gateway import FakeAnswer

SECONDS = 10.0
MODEL = "llama"


class Bench:
    """A model whose state a test sets, and chats that are answered when it says so."""

    def __init__(self, **limits: Any) -> None:
        self.state = "asleep"
        self.known = False  # a replica, to the gateway
        self.looked = 0
        self.controller = asyncio.Event()
        self.controller.set()
        self.opened: list[asyncio.Future[Any]] = []
        patience = {"first_token_seconds": SECONDS, "look_seconds": 0.01, "comment_seconds": 0.01}
        chosen = {**patience, **{key: limits.pop(key) for key in patience if key in limits}}
        self.waking = Waking(self._states, Patience(**chosen), lambda _: self.known)
        self.waking.serve([ModelSettings(id=MODEL, source="/nowhere", autoscaling=AutoscalingSettings(min_replicas=0, **limits))])

    async def _states(self) -> Mapping[str, str]:
        self.looked += 1
        await self.controller.wait()
        return {MODEL: self.state}

    def open(self, *, stream: bool = False) -> asyncio.Task[Any]:
        return asyncio.create_task(self.waking.open(MODEL, self._opening, stream=stream))

    async def _opening(self) -> Any:
        future = asyncio.get_running_loop().create_future()
        self.opened.append(future)
        return await future

    async def waiting(self, count: int) -> None:
        await until(lambda: self.waking.count == count)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def within(task: asyncio.Task[Any]) -> Any:
    async with asyncio.timeout(SECONDS):
        return await task


async def test_what_is_answered_soon_asks_for_no_state() -> None:
    bench = Bench(look_seconds=SECONDS)
    task = bench.open(stream=True)
    await until(lambda: bench.opened)
    answer = FakeAnswer([b"whole"])
    bench.opened[0].set_result(answer)
    assert await within(task) is answer
    assert (bench.looked, bench.waking.count) == (0, 0)


async def test_an_error_of_an_awake_model_is_raised_as_it_is() -> None:
    bench = Bench()
    bench.state = "ready"
    task = bench.open(stream=True)
    await until(lambda: bench.looked > 2)
    assert not task.done(), "a stream of an awake model begins with its first part"
    bench.opened[0].set_exception(InvalidRequest("too long"))
    with pytest.raises(InvalidRequest):
        await within(task)
    assert bench.waking.count == 0


async def test_a_request_for_a_sleeping_model_is_answered_when_it_has_woken() -> None:
    bench = Bench()
    task = bench.open()
    await bench.waiting(1)
    bench.state = "starting"
    await until(lambda: bench.looked > 3)
    bench.state = "ready"
    await bench.waiting(0)
    assert not task.done()
    answer = FakeAnswer([b"whole"])
    bench.opened[0].set_result(answer)
    assert await within(task) is answer


async def test_a_stream_comments_until_its_first_part() -> None:
    bench = Bench()
    opening = await within(bench.open(stream=True))
    assert isinstance(opening, Opening)
    parts = opening.parts()
    async with asyncio.timeout(SECONDS):
        assert [await anext(parts) for _ in range(3)] == [b": waking llama\n\n"] * 3
        answer = FakeAnswer([b"data: 1\n\n", b"data: [DONE]\n\n"])
        bench.opened[0].set_result(answer)
        rest = [part async for part in parts]
    assert [part for part in rest if not part.startswith(b":")] == [b"data: 1\n\n", b"data: [DONE]\n\n"]
    assert rest[-2:] == [b"data: 1\n\n", b"data: [DONE]\n\n"]
    opening.close()
    assert (answer.closed, bench.waking.count) == (1, 0)


async def test_a_request_waits_no_longer_than_the_models_wake_time() -> None:
    bench = Bench(wake_timeout_seconds=0.1)
    task = bench.open()
    with pytest.raises(Unavailable, match=r"llama was waking .* within 0\.1 s") as raised:
        await within(task)
    assert raised.value.retry_after_seconds > 0
    await until(lambda: bench.opened[0].cancelled())
    assert bench.waking.count == 0


async def test_a_stream_that_has_begun_is_told_by_its_parts() -> None:
    bench = Bench(wake_timeout_seconds=0.1)
    opening = await within(bench.open(stream=True))
    with pytest.raises(Unavailable, match="llama was waking"):
        async with asyncio.timeout(SECONDS):
            async for part in opening.parts():
                assert part == b": waking llama\n\n"
    opening.close()
    await until(lambda: bench.opened[0].cancelled())


async def test_the_first_token_has_its_whole_time_after_the_model_woke() -> None:
    bench = Bench(first_token_seconds=0.3, wake_timeout_seconds=SECONDS)
    task = bench.open()
    await bench.waiting(1)
    await asyncio.sleep(0.4)  # longer than a first token may take
    assert not task.done()
    bench.state = "ready"
    await bench.waiting(0)
    woke = asyncio.get_running_loop().time()
    with pytest.raises(Unavailable, match=r"no token came within 0\.3 s"):
        await within(task)
    assert asyncio.get_running_loop().time() - woke > 0.25


async def test_no_more_wait_than_may() -> None:
    bench = Bench(max_waking_requests=2)
    tasks = [bench.open() for _ in range(2)]
    await bench.waiting(2)
    with pytest.raises(Overloaded, match="2 requests wait for it already") as raised:
        await within(bench.open(stream=True))
    assert raised.value.retry_after_seconds > 0
    assert len(bench.opened) == 2, "what may not wait is not sent"
    bench.opened[0].set_result(FakeAnswer([b""]))
    await within(tasks[0])
    third = bench.open()
    await bench.waiting(2)
    assert not third.done()
    for task in (*tasks, third):
        task.cancel()


async def test_a_flood_at_once_is_bounded_too() -> None:
    bench = Bench(max_waking_requests=2)
    tasks = [bench.open() for _ in range(6)]  # before anybody has looked
    await until(lambda: sum(task.done() for task in tasks) == 4)
    assert bench.waking.count == 2
    assert all(isinstance(task.exception(), Overloaded) for task in tasks if task.done())
    for task in tasks:
        task.cancel()


async def test_a_client_that_goes_takes_its_request_along() -> None:
    bench = Bench()
    task = bench.open()
    await bench.waiting(1)
    task.cancel()
    await until(lambda: bench.opened[0].cancelled())
    assert bench.waking.count == 0
    opening = await within(bench.open(stream=True))
    opening.close()
    opening.close()
    await until(lambda: bench.opened[1].cancelled())
    assert bench.waking.count == 0


@pytest.mark.parametrize("state", ["failed", "unknown", "absent", "stopping"])
async def test_what_wakes_nobody_is_left_to_the_call_itself(state: str) -> None:
    bench = Bench()
    bench.state = state
    task = bench.open(stream=True)
    await until(lambda: bench.looked > 2)
    assert bench.waking.count == 0
    bench.opened[0].set_exception(Unavailable("the model is not running"))
    with pytest.raises(LorikeetError, match="not running"):
        await within(task)


async def test_a_controller_that_does_not_answer_holds_up_no_answer() -> None:
    bench = Bench()
    bench.controller.clear()
    task = bench.open()
    await until(lambda: bench.looked)
    answer = FakeAnswer([b"whole"])
    bench.opened[0].set_result(answer)
    assert await within(task) is answer


@pytest.fixture(autouse=True)
async def nothing_left() -> AsyncIterator[None]:
    """No task that a test began outlives it."""
    yield
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


async def test_a_model_with_a_known_replica_is_never_looked_at() -> None:
    bench = Bench()
    bench.known = True
    opening = bench.open(stream=True)
    await until(lambda: bench.opened)
    await asyncio.sleep(0.05)  # several looks' time
    assert not opening.done() and not bench.looked and not bench.waking.count
    answer = FakeAnswer([b"x"])
    bench.opened[0].set_result(answer)
    assert await within(opening) is answer


async def test_the_first_token_of_a_known_replica_may_be_overdue_too() -> None:
    bench = Bench(first_token_seconds=0.05)
    bench.known = True
    opening = bench.open(stream=True)
    with pytest.raises(Unavailable, match=r"no token came within 0\.05 s"):
        await within(opening)
    assert bench.opened[0].cancelled()
