"""The gateway's side of a chat, over a real side channel and a handle that does as the test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayTaskError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from adapters_store.errors import InternalError, InvalidRequest, LorikeetError, NotFound, Overloaded, Unavailable
from deployments import dispatch as dispatch_module
from deployments.dispatch import Answer, Dispatch, DispatchLimits
from deployments.fleet import Fleet
from deployments.messages import DATA, END, ERROR, HEAD, ChatCall, error_payload, head_payload
from deployments.stream import FrameReceiver, FrameSender

SECONDS = 10.0
Replica = Callable[["Attempt"], Awaitable[None]]


class Attempt:
    """One Serve call as the replica sees it, and as an awaitable with cancel() as the gateway does."""

    def __init__(self, call: ChatCall, sender: FrameSender, replica: Replica) -> None:
        self.call = call
        self.cancels = 0
        self._sender = sender
        self._task = asyncio.ensure_future(replica(self))

    def send(self, kind: bytes, payload: bytes = b"") -> None:
        self._sender.send(self.call.frames_to, self.call.stream_id, kind, payload)

    def cancel(self) -> None:
        self.cancels += 1
        self._task.cancel()

    def __await__(self) -> Generator[Any, None, None]:
        # Serve's response outlives whoever waits for it: only its own cancel() ends it.
        return asyncio.shield(self._task).__await__()

    @property
    def ended(self) -> bool:
        return self._task.done()


class Handle:
    """As much of a Serve handle as dispatch uses. Each call is answered by the next of `replicas`, the last one again and again."""

    def __init__(self, sender: FrameSender, *replicas: Replica) -> None:
        self.attempts: list[Attempt] = []
        self._sender = sender
        self._replicas = replicas

    @property
    def chat(self) -> Handle:
        return self

    def remote(self, call: ChatCall) -> Attempt:
        replica = self._replicas[min(len(self.attempts), len(self._replicas) - 1)]
        self.attempts.append(Attempt(call, self._sender, replica))
        return self.attempts[-1]


class Bench:
    """A gateway's dispatch and a replica's sender."""

    def __init__(self) -> None:
        self.receiver = FrameReceiver("127.0.0.1")
        self.sender = FrameSender(lambda gateway: None)
        self.fleet = Fleet(self.receiver, lambda base: ())  # no replica that could be called directly: test_fleet.py has those

    def dispatch(self, *replicas: Replica, **limits: Any) -> tuple[Dispatch, Handle]:
        handle = Handle(self.sender, *replicas)
        defaults = {
            "requests_at_once": 10,
            "stream_buffer_bytes": 1 << 20,
            "request_timeout_seconds": 10 * SECONDS,  # so that what a test waits for cannot be its doing
        }
        return Dispatch(self.receiver, lambda base: handle, self.fleet, DispatchLimits(**{**defaults, **limits})), handle


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    assert bench.receiver.open_count == 0, "a request was not forgotten"
    bench.fleet.close()
    bench.receiver.close()
    bench.sender.close()


async def open_chat(dispatch: Dispatch) -> Answer:
    async with asyncio.timeout(SECONDS):
        return await dispatch.open("request-1", "tiny", "acme/support", None, b"{}", True)


async def whole(answer: Answer) -> bytes:
    try:
        async with asyncio.timeout(SECONDS):
            return await answer.whole()
    finally:
        answer.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def answers(attempt: Attempt) -> None:
    for part in (b"one ", b"two ", b"three"):
        attempt.send(DATA, part)
        await asyncio.sleep(0.01)
    attempt.send(END)


async def dies(attempt: Attempt) -> None:
    raise RayActorError


async def begins_and_hangs(attempt: Attempt) -> None:
    attempt.send(DATA, b"begun")
    await asyncio.sleep(3600)


async def hangs(attempt: Attempt) -> None:
    await asyncio.sleep(3600)


def fails_with(error: BaseException) -> Replica:
    async def fail(attempt: Attempt) -> None:
        raise error

    return fail


async def test_parts_come_as_they_were_sent(bench: Bench) -> None:
    read = asyncio.Event()

    async def goes_on_once_read(attempt: Attempt) -> None:
        attempt.send(DATA, b"one ")
        await read.wait()  # for ever, if parts were held back until the end
        attempt.send(DATA, b"two three")
        attempt.send(END)

    dispatch, handle = bench.dispatch(goes_on_once_read)
    answer = await open_chat(dispatch)
    parts = []
    async with asyncio.timeout(SECONDS):
        async for part in answer.parts():
            parts.append(part)
            read.set()
    answer.close()
    assert (parts[0], b"".join(parts)) == (b"one ", b"one two three")
    call = handle.attempts[0].call
    assert (call.request_id, call.model, call.body, call.stream) == ("request-1", "acme/support", b"{}", True)
    assert call.frames_to == bench.receiver.address


async def test_whole_joins_the_parts(bench: Bench) -> None:
    dispatch, _ = bench.dispatch(answers)
    assert await whole(await open_chat(dispatch)) == b"one two three"


async def test_an_answer_without_any_part_is_empty(bench: Bench) -> None:
    async def ends(attempt: Attempt) -> None:
        attempt.send(END)

    dispatch, _ = bench.dispatch(ends)
    assert await whole(await open_chat(dispatch)) == b""


async def test_head_tells_where_the_adapter_was(bench: Bench) -> None:
    async def answers_cold(attempt: Attempt) -> None:
        attempt.send(HEAD, head_payload("store", 1.25))
        await answers(attempt)

    dispatch, _ = bench.dispatch(answers_cold)
    answer = await open_chat(dispatch)
    assert (answer.cold, answer.wait_ms) == ("store", 1250.0)
    assert await whole(answer) == b"one two three"


async def test_a_finished_call_is_not_cancelled(bench: Bench) -> None:
    dispatch, handle = bench.dispatch(answers)
    await whole(await open_chat(dispatch))
    await until(lambda: handle.attempts[0].ended)
    assert handle.attempts[0].cancels == 0


async def test_a_replica_that_dies_before_the_first_token_costs_nothing(bench: Bench) -> None:
    async def heads_and_dies(attempt: Attempt) -> None:
        attempt.send(HEAD, head_payload("gpu", 0.0))
        await asyncio.sleep(0.05)
        raise RayActorError

    dispatch, handle = bench.dispatch(dies, heads_and_dies, answers)
    assert await whole(await open_chat(dispatch)) == b"one two three"
    assert len(handle.attempts) == 3
    assert len({attempt.call.stream_id for attempt in handle.attempts}) == 3, "frames of one try could answer another"


async def test_frames_of_a_dead_attempt_do_not_reach_the_next(bench: Bench) -> None:
    late: list[Attempt] = []

    async def dies_but_its_frames_come(attempt: Attempt) -> None:
        late.append(attempt)
        raise RayActorError

    async def answers_after(attempt: Attempt) -> None:
        late[0].send(DATA, b"ghost")
        late[0].send(END)
        await answers(attempt)

    dispatch, _ = bench.dispatch(dies_but_its_frames_come, answers_after)
    assert await whole(await open_chat(dispatch)) == b"one two three"


async def test_replicas_that_keep_dying_are_not_tried_forever(bench: Bench) -> None:
    dispatch, handle = bench.dispatch(dies)
    with pytest.raises(Unavailable, match="3 times") as raised:
        await open_chat(dispatch)
    assert raised.value.retry_after_seconds > 0
    assert len(handle.attempts) == 3


async def test_a_replica_that_dies_mid_answer_ends_it_with_an_error(bench: Bench) -> None:
    """What the client has seen is not said again."""

    async def begins_and_dies(attempt: Attempt) -> None:
        attempt.send(DATA, b"begun")
        await asyncio.sleep(0.05)
        raise RayActorError

    dispatch, handle = bench.dispatch(begins_and_dies, answers)
    answer = await open_chat(dispatch)
    seen = b""
    with pytest.raises(Unavailable, match="stopped"):
        async for part in answer.parts():
            seen += part
    answer.close()
    assert seen == b"begun"
    assert len(handle.attempts) == 1


@pytest.mark.parametrize(
    "error", [InvalidRequest("temperature is 9", param="temperature"), NotFound("none"), Overloaded("full"), Unavailable("away")]
)
async def test_an_error_frame_is_raised_as_it_was_sent(bench: Bench, error: LorikeetError) -> None:
    async def refuses(attempt: Attempt) -> None:
        attempt.send(ERROR, error_payload(error))

    dispatch, handle = bench.dispatch(refuses, answers)
    with pytest.raises(type(error)) as raised:
        await open_chat(dispatch)
    assert (raised.value.message, raised.value.param) == (error.message, error.param)
    assert len(handle.attempts) == 1, "what was refused was asked again"


async def test_an_error_frame_mid_answer_ends_it(bench: Bench) -> None:
    async def fails_later(attempt: Attempt) -> None:
        attempt.send(DATA, b"begun")
        attempt.send(ERROR, error_payload(InternalError("broke")))

    dispatch, _ = bench.dispatch(fails_later)
    with pytest.raises(InternalError, match="broke"):
        await whole(await open_chat(dispatch))


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (BackPressureError(num_queued_requests=9, max_queued_requests=1), Overloaded),
        (DeploymentUnavailableError(DeploymentID(name="Replica")), Unavailable),
        (ValueError("a bug with a secret"), InternalError),
        (RayTaskError("chat", "trace", ValueError("secret")), Unavailable),
    ],
)
async def test_a_failed_call_is_told_without_its_inside(bench: Bench, failure: Exception, raised: type[LorikeetError]) -> None:
    dispatch, _ = bench.dispatch(fails_with(failure))
    with pytest.raises(raised) as error:
        await open_chat(dispatch)
    assert "secret" not in error.value.message and "trace" not in error.value.message


async def test_a_handle_that_cannot_be_called_leaks_no_request(bench: Bench) -> None:
    class Broken:
        @property
        def chat(self) -> Any:
            return self

        def remote(self, call: ChatCall) -> Any:
            raise RuntimeError("no loop")

    dispatch = Dispatch(bench.receiver, lambda base: Broken(), bench.fleet, DispatchLimits(10, 1 << 20, SECONDS))
    with pytest.raises(RuntimeError):
        await open_chat(dispatch)


async def test_an_end_that_is_lost_is_noticed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch_module, "_LAST_FRAME_SECONDS", 0.05)

    async def returns_early(attempt: Attempt) -> None:
        attempt.send(DATA, b"begun")

    dispatch, _ = bench.dispatch(returns_early)
    with pytest.raises(InternalError, match="lost"):
        await whole(await open_chat(dispatch))


async def test_no_token_in_time_is_an_error_and_stops_the_call(bench: Bench) -> None:
    dispatch, handle = bench.dispatch(hangs, request_timeout_seconds=0.1)
    with pytest.raises(Unavailable, match=r"longer than 0\.1 s"):
        await open_chat(dispatch)
    await until(lambda: handle.attempts[0].ended)


async def test_an_answer_that_takes_too_long_is_ended(bench: Bench) -> None:
    dispatch, handle = bench.dispatch(begins_and_hangs, request_timeout_seconds=1.0)
    answer = await open_chat(dispatch)
    with pytest.raises(Unavailable, match="longer than"):
        await whole(answer)
    await until(lambda: handle.attempts[0].ended)


async def test_closing_an_answer_stops_the_call(bench: Bench) -> None:
    dispatch, handle = bench.dispatch(begins_and_hangs)
    answer = await open_chat(dispatch)
    answer.close()
    answer.close()
    await until(lambda: handle.attempts[0].ended)
    assert handle.attempts[0].cancels == 1


async def test_a_client_that_leaves_before_the_first_token_stops_the_call(bench: Bench) -> None:
    dispatch, handle = bench.dispatch(hangs)
    opening = asyncio.create_task(open_chat(dispatch))
    await until(lambda: handle.attempts)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await until(lambda: handle.attempts[0].ended)


async def test_a_client_that_leaves_a_whole_answer_stops_the_call(bench: Bench) -> None:
    dispatch, handle = bench.dispatch(begins_and_hangs)
    reading = asyncio.create_task(whole(await open_chat(dispatch)))
    await asyncio.sleep(0.02)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await until(lambda: handle.attempts[0].ended)


async def test_an_answer_that_overflows_stops_the_call(bench: Bench) -> None:
    """A client that does not read must not keep the engine busy."""

    async def floods(attempt: Attempt) -> None:
        while True:
            attempt.send(DATA, b"x" * 100)
            await asyncio.sleep(0.001)

    dispatch, handle = bench.dispatch(floods, stream_buffer_bytes=2000)
    answer = await open_chat(dispatch)
    await until(lambda: handle.attempts[0].ended)
    with pytest.raises(Overloaded, match="unread"):
        await whole(answer)


async def test_an_overflow_stops_the_call_while_the_client_still_does_not_read(bench: Bench) -> None:
    async def floods(attempt: Attempt) -> None:
        while True:
            attempt.send(DATA, b"x" * 100)
            await asyncio.sleep(0.001)

    dispatch, handle = bench.dispatch(floods, stream_buffer_bytes=2000)
    answer = await open_chat(dispatch)
    await until(lambda: handle.attempts[0].ended)
    answer.close()


async def test_more_requests_than_a_gateway_may_hold_are_refused(bench: Bench) -> None:
    dispatch, handle = bench.dispatch(begins_and_hangs, requests_at_once=2)
    held = [await open_chat(dispatch) for _ in range(2)]
    with pytest.raises(Overloaded, match="2 requests"):
        await open_chat(dispatch)
    assert len(handle.attempts) == 2, "a refused request was sent"
    held[0].close()
    (await open_chat(dispatch)).close()
    held[1].close()


async def test_fifty_answers_at_once_do_not_mix(bench: Bench) -> None:
    async def answers_with_its_body(attempt: Attempt) -> None:
        for _ in range(20):
            attempt.send(DATA, json.loads(attempt.call.body).encode())
            await asyncio.sleep(0)
        attempt.send(END)

    dispatch, _ = bench.dispatch(answers_with_its_body, requests_at_once=50)

    async def ask(word: str) -> None:
        answer = await dispatch.open("r", "tiny", "m", None, json.dumps(word).encode(), True)
        assert await whole(answer) == word.encode() * 20

    async with asyncio.timeout(SECONDS):
        await asyncio.gather(*(ask(f"word{i} ") for i in range(50)))
