"""Direct calls from a gateway to its replicas, over real sockets: who gets a call, and what becomes of it when things go wrong."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from adapters_store.errors import InvalidRequest, Unavailable
from deployments import fleet as fleet_module
from deployments.calls import ReplicaAddress
from deployments.dispatch import Answer, Dispatch, DispatchLimits
from deployments.fleet import Fleet
from deployments.messages import DATA, END, ERROR, ChatCall, error_payload
from deployments.placement import BATCH, ranking
from deployments.stream import FrameReceiver
from tests.deployments.direct import SECONDS, DirectReplica, answers, begins_and_hangs, hangs, until

BASE = "tiny"
Behaviour = Callable[[DirectReplica, ChatCall], Awaitable[None]]


class ServeHandle:
    """Serve's way, which answers with a word of its own, by the same frames."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.calls: list[ChatCall] = []

    @property
    def chat(self) -> ServeHandle:
        return self

    def remote(self, call: ChatCall) -> asyncio.Future[None]:
        self.calls.append(call)
        return asyncio.ensure_future(self._answer(call))

    async def _answer(self, call: ChatCall) -> None:
        self._bench.by_serve.send(call, DATA, b"by Serve")
        self._bench.by_serve.send(call, END)


class Bench:
    """A gateway and the replicas that Serve tells it of: `known`, which a test may change."""

    def __init__(self) -> None:
        self.receiver = FrameReceiver("127.0.0.1")
        self.known: tuple[ReplicaAddress, ...] = ()
        self.replicas: list[DirectReplica] = []
        self.by_serve = DirectReplica("serve", hangs)
        self.serve = ServeHandle(self)
        self.fleet = Fleet(self.receiver, lambda base: self.known)
        self.dispatch = self.dispatch_with()

    def dispatch_with(self, **limits: Any) -> Dispatch:
        defaults = {
            "requests_at_once": 1000,
            "stream_buffer_bytes": 1 << 20,
            "request_timeout_seconds": 10 * SECONDS,
        }
        return Dispatch(self.receiver, lambda base: self.serve, self.fleet, DispatchLimits(**{**defaults, **limits}))

    def start(self, *behaviours: Behaviour, most: int = 64, host: str = "127.0.0.1") -> list[DirectReplica]:
        """Replicas that Serve knows from now on."""
        begun = len(self.replicas)
        started = [DirectReplica(f"r{begun + number}", behaviour, most, host) for number, behaviour in enumerate(behaviours)]
        self.replicas += started
        self.known = (*self.known, *(replica.address for replica in started))
        return started

    async def open(self, body: bytes = b"{}") -> Answer:
        async with asyncio.timeout(SECONDS):
            return await self.dispatch.open("request-1", BASE, BASE, None, body, True)

    async def ask(self, body: bytes = b"{}") -> bytes:
        answer = await self.open(body)
        return await whole(answer)

    async def open_and_lose(self) -> None:
        """A request whose connection to r0 breaks after its answer began."""
        answer = await self.open()
        self.fleet._replicas["r0"]._lose()
        with pytest.raises(Unavailable):
            await whole(answer)

    def close(self) -> None:
        assert self.receiver.open_count == 0, "a request was not forgotten"
        self.fleet.close()
        self.receiver.close()
        for replica in (*self.replicas, self.by_serve):
            replica.die()


async def whole(answer: Answer) -> bytes:
    try:
        async with asyncio.timeout(SECONDS):
            return await answer.whole()
    finally:
        answer.close()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


async def test_a_chat_goes_straight_to_a_replica_that_is_known(bench: Bench) -> None:
    [replica] = bench.start(answers)
    assert await bench.ask() == b"one two three"
    assert len(replica.calls) == 1 and not bench.serve.calls


async def test_without_a_replica_a_chat_goes_through_serve_and_the_next_one_straight(bench: Bench) -> None:
    """Serve wakes a model that sleeps."""
    assert await bench.ask() == b"by Serve"
    bench.start(answers)
    assert await bench.ask() == b"one two three"


async def test_an_error_is_told_and_not_tried_again(bench: Bench) -> None:
    async def refuses(replica: DirectReplica, call: ChatCall) -> None:
        replica.send(call, ERROR, error_payload(InvalidRequest("temperature is 9", param="temperature")))

    [replica] = bench.start(refuses)
    with pytest.raises(InvalidRequest, match="temperature"):
        await bench.ask()
    assert len(replica.calls) == 1


async def test_a_full_replica_sends_a_chat_to_the_next_and_at_last_to_serve(bench: Bench) -> None:
    first, second = bench.start(answers, answers)
    first.refuses = True
    for number in range(20):
        assert await bench.ask(f"{number}".encode()) == b"one two three"
    assert first.calls and len(second.calls) == 20
    second.refuses = True
    assert await bench.ask() == b"by Serve"


async def test_one_key_stays_on_its_replica_and_keys_spread(bench: Bench) -> None:
    replicas = bench.start(answers, answers, answers)
    for number in range(30):
        await bench.ask(f"key {number % 10}".encode())
    homes = {replica.address.id: {call.body for call in replica.calls} for replica in replicas}
    assert sum(len(bodies) for bodies in homes.values()) == 10, "a key was served by two"
    assert all(homes.values())
    assert next(iter(homes["r0"])) in {f"key {number}".encode() for number in range(10)}


async def test_a_hot_key_spreads(bench: Bench) -> None:
    replicas = bench.start(begins_and_hangs, begins_and_hangs)
    held = [await bench.open(b"hot") for _ in range(4 * BATCH)]
    assert all(len(replica.calls) > BATCH for replica in replicas)
    for answer in held:
        answer.close()


async def test_a_cool_key_stays_beside_a_hot_one(bench: Bench) -> None:
    """What drives the hot one to the next replica is how many ask for it, and nobody asks for its neighbour."""
    replicas = bench.start(begins_and_hangs, begins_and_hangs)
    ids = [replica.address.id for replica in replicas]
    home = ranking(b"hot", ids)[0]
    cool = next(key for number in range(100) if ranking(key := f"cool {number}".encode(), ids)[0] == home)
    held = [await bench.open(b"hot") for _ in range(3 * BATCH)]
    assert all(replica.calls for replica in replicas)
    held.append(await bench.open(cool))
    assert replicas[home].calls[-1].body == cool
    for answer in held:
        answer.close()
    assert all(replica.running(b"hot") == replica.running(cool) == 0 for replica in bench.fleet._replicas.values())


async def test_a_key_spreads_from_a_replica_that_others_keep_busy(bench: Bench) -> None:
    replicas = bench.start(answers, answers)
    await bench.ask(b"key")
    busy = next(replica for replica in replicas if replica.calls)
    busy.sender.tell_load(100)
    await until(lambda: bench.fleet.choose(BASE, b"key").id != busy.address.id)  # type: ignore[union-attr]
    busy.sender.tell_load(0)
    await until(lambda: bench.fleet.choose(BASE, b"key").id == busy.address.id)  # type: ignore[union-attr]


async def test_requests_that_pass_from_this_gateway_to_another_count_on(bench: Bench) -> None:
    """The replica has as many as before, and this gateway's share of them has ended."""
    [replica] = bench.start(begins_and_hangs)
    held = [await bench.open() for _ in range(5)]
    seen = bench.fleet._replicas["r0"]
    replica.sender.tell_load(6)
    await until(lambda: seen.load == 6)
    for answer in held:
        answer.close()
    assert seen.load == 1
    replica.sender.tell_load(6)
    await until(lambda: seen.load == 6)


async def test_closing_an_answer_cancels_it_at_its_replica(bench: Bench) -> None:
    [replica] = bench.start(begins_and_hangs)
    answer = await bench.open()
    answer.close()
    answer.close()
    await until(lambda: replica.cancelled)
    assert replica.cancelled == [replica.calls[0].stream_id]


async def test_a_finished_answer_is_not_cancelled(bench: Bench) -> None:
    [replica] = bench.start(answers)
    await bench.ask()
    await bench.ask()
    assert not replica.cancelled


async def test_a_client_that_leaves_before_the_first_token_cancels_it(bench: Bench) -> None:
    [replica] = bench.start(hangs)
    opening = asyncio.create_task(bench.open())
    await until(lambda: replica.calls)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await until(lambda: replica.cancelled)


async def test_no_token_in_time_cancels_it(bench: Bench) -> None:
    [replica] = bench.start(hangs)
    bench.dispatch = bench.dispatch_with(request_timeout_seconds=0.1)
    with pytest.raises(Unavailable, match="longer than"):
        await bench.open()
    await until(lambda: replica.cancelled)


async def test_a_client_that_does_not_read_cancels_it_before_it_reads_again(bench: Bench) -> None:
    async def floods(replica: DirectReplica, call: ChatCall) -> None:
        while True:
            replica.send(call, DATA, b"x" * 100)
            await asyncio.sleep(0.001)

    [replica] = bench.start(floods)
    bench.dispatch = bench.dispatch_with(stream_buffer_bytes=2000)
    answer = await bench.open()
    await until(lambda: replica.cancelled)
    answer.close()


async def test_a_replica_that_dies_before_the_first_token_costs_nothing(bench: Bench) -> None:
    dying, other = bench.start(hangs, answers)
    key = next(f"{n}".encode() for n in range(100) if ranking(f"{n}".encode(), ["r0", "r1"])[0] == 0)
    asking = asyncio.create_task(bench.ask(key))
    await until(lambda: dying.calls)
    dying.die()
    assert await asking == b"one two three"
    assert dying.calls[0].stream_id != other.calls[0].stream_id, "frames of one try could answer another"


async def dies(replica: DirectReplica, call: ChatCall) -> None:
    replica.die()


def key_that_prefers(*ids: str) -> bytes:
    """A key whose replicas are these, in this order; `ids` are r0, r1 and so on in some order."""
    known = sorted(ids)
    keys = (f"{number}".encode() for number in range(10_000))
    return next(key for key in keys if [known[index] for index in ranking(key, known)] == list(ids))


async def test_a_lost_machine_costs_one_attempt_and_not_one_for_each_of_its_replicas(bench: Bench) -> None:
    lost = bench.start(dies, dies, dies, host="127.0.0.2")
    [other] = bench.start(answers)
    assert await bench.ask(key_that_prefers("r0", "r1", "r2", "r3")) == b"one two three"
    assert [len(replica.calls) for replica in lost] == [1, 0, 0]
    assert len(other.calls) == 1


async def test_replicas_beside_a_dead_one_are_called_where_there_is_no_other_machine(bench: Bench) -> None:
    dead, full, beside = bench.start(dies, answers, answers)
    [elsewhere] = bench.start(answers, host="127.0.0.2")
    elsewhere.refuses = full.refuses = True
    assert await bench.ask(key_that_prefers("r3", "r0", "r1", "r2")) == b"one two three"
    assert [len(replica.calls) for replica in (elsewhere, dead, full, beside)] == [1, 1, 1, 1]


async def test_the_last_replica_that_dies_leaves_a_chat_to_serve(bench: Bench) -> None:
    [dying] = bench.start(hangs)
    asking = asyncio.create_task(bench.ask())
    await until(lambda: dying.calls)
    dying.die()
    assert await asking == b"by Serve"


async def test_a_replica_that_is_not_there_any_more_costs_nothing(bench: Bench) -> None:
    """Serve has not noticed yet."""
    [dead] = bench.start(hangs)
    dead.die()
    assert await bench.ask() == b"by Serve"


async def test_a_replica_that_dies_ends_each_of_its_streams_with_an_error(bench: Bench) -> None:
    [dying] = bench.start(begins_and_hangs)
    held = [await bench.open() for _ in range(20)]
    dying.die()
    for answer in held:
        with pytest.raises(Unavailable, match="stopped"):
            await whole(answer)
    assert not bench.serve.calls, "what a client has seen was said again"


async def test_a_broken_connection_is_made_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "REST_SECONDS", 3600.0)
    [replica] = bench.start(begins_and_hangs)
    await bench.open_and_lose()
    assert await bench.ask() == b"by Serve", "it was called again at once"
    bench.fleet._replicas["r0"]._rests_until = 0.0  # an hour later
    answer = await bench.open()
    assert len(replica.calls) == 2
    assert replica.forgotten == [bench.receiver.address] * 2, "what was asked over the first connection runs on"
    answer.close()


async def test_a_replica_hears_without_another_call_that_its_requests_are_nobodys(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the connection broke; the engine would go on for nobody."""
    monkeypatch.setattr(fleet_module, "REST_SECONDS", 0.02)
    [replica] = bench.start(begins_and_hangs)
    await bench.open_and_lose()
    await until(lambda: replica.forgotten == [bench.receiver.address] * 2)
    assert len(replica.calls) == 1


async def test_a_replica_that_is_about_to_stop_hears_it_too_before_it_is_let_go_of(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "REST_SECONDS", 0.02)
    [replica] = bench.start(begins_and_hangs)
    answer = await bench.open()
    leaving = bench.fleet._replicas["r0"]
    bench.fleet.keep(["another"])
    leaving._lose()
    with pytest.raises(Unavailable):
        await whole(answer)
    await until(lambda: replica.forgotten == [bench.receiver.address] * 2)
    await until(lambda: not bench.receiver._listeners)


async def test_a_dead_replica_is_greeted_once_and_one_without_requests_never(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "REST_SECONDS", 0.02)
    dying, _ = bench.start(begins_and_hangs, answers)
    answer = await bench.open(key_that_prefers("r0", "r1"))
    dead, quiet = (bench.fleet._replicas[id] for id in ("r0", "r1"))
    connects: list[str] = []
    for replica in (dead, quiet):
        connect = replica._connect
        monkeypatch.setattr(replica, "_connect", lambda of=replica.id, connect=connect: connects.append(of) or connect())
    dying.die()
    quiet._lose()
    with pytest.raises(Unavailable):
        await whole(answer)
    await until(lambda: connects)
    await until(lambda: dead._sender is None)
    await asyncio.sleep(0.1)  # five times as long as a second greeting would take
    assert connects == ["r0"]
    assert not dead._busy and not quiet._busy


async def test_frames_that_were_lost_end_the_answers_they_were_for(bench: Bench) -> None:
    """The way back broke and was made again: the end of an answer may have been among what was lost."""
    [replica] = bench.start(begins_and_hangs)
    answer = await bench.open()
    line = replica.sender._lines[bench.receiver.address]
    await until(lambda: line.reached)
    replica.sender._lose(bench.receiver.address)
    with pytest.raises(Unavailable, match="stopped"):
        await whole(answer)
    await until(lambda: replica.cancelled)
    assert replica.lost_gateways == [bench.receiver.address]


async def test_a_gateway_that_dies_is_told_to_the_replica_that_has_sent_it_nothing_yet(bench: Bench) -> None:
    async def connects(replica: DirectReplica, call: ChatCall) -> None:
        replica.sender.reach(call.frames_to)
        await asyncio.sleep(3600)

    [replica] = bench.start(connects)
    opening = asyncio.create_task(bench.open())
    await until(lambda: replica.calls)
    await until(lambda: replica.sender._lines[bench.receiver.address].reached)
    bench.receiver.close()
    await until(lambda: replica.lost_gateways)
    with pytest.raises(Unavailable):
        await opening


async def test_a_replica_that_is_about_to_stop_gets_no_more_calls_and_ends_what_it_has(bench: Bench) -> None:
    finish = asyncio.Event()

    async def answers_later(replica: DirectReplica, call: ChatCall) -> None:
        replica.send(call, DATA, b"begun, ")
        await finish.wait()
        replica.send(call, DATA, b"ended")
        replica.send(call, END)

    [leaving] = bench.start(answers_later)
    answer = await bench.open()
    bench.known = ()
    assert await bench.ask() == b"by Serve"
    finish.set()
    assert await whole(answer) == b"begun, ended"
    assert len(leaving.calls) == 1 and not leaving.cancelled


async def test_a_cancel_reaches_a_replica_that_is_about_to_stop(bench: Bench) -> None:
    """It waits for its requests: one that nobody reads would keep it."""
    [leaving] = bench.start(begins_and_hangs)
    answer = await bench.open()
    bench.known = ()
    await bench.ask()
    answer.close()
    await until(lambda: leaving.cancelled)


async def test_a_removed_models_replicas_are_let_go_of_when_their_last_request_has_ended(bench: Bench) -> None:
    [replica] = bench.start(begins_and_hangs)
    answer = await bench.open()
    bench.fleet.keep(["another"])
    assert bench.receiver._listeners, "its request still runs"
    answer.close()
    await until(lambda: replica.cancelled)
    assert not bench.receiver._listeners and not bench.fleet._replicas


async def test_more_replicas_than_ever_are_forgotten_again(bench: Bench) -> None:
    for _ in range(5):
        [replica] = bench.start(answers)
        bench.known = (replica.address,)
        await bench.ask()
    assert list(bench.fleet._replicas) == ["r4"]
    assert list(bench.receiver._listeners) == [replica.address.name]


async def test_a_hundred_answers_at_once_do_not_mix(bench: Bench) -> None:
    async def answers_with_its_body(replica: DirectReplica, call: ChatCall) -> None:
        for _ in range(20):
            replica.send(call, DATA, call.body)
            await asyncio.sleep(0)
        replica.send(call, END)

    replicas = bench.start(answers_with_its_body, answers_with_its_body)
    bodies = [f"word{number} ".encode() for number in range(100)]
    found = await asyncio.gather(*(bench.ask(body) for body in bodies))
    assert found == [body * 20 for body in bodies]
    assert Counter(call.body for replica in replicas for call in replica.calls) == Counter(bodies)
