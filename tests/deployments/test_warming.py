"""Which replicas a gateway has load an adapter, over real sockets, and what becomes of it when things go wrong."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from adapters_store.adapter import Adapter, AdapterFile, version_of
from adapters_store.errors import StoreUnavailable, Unavailable
from deployments.calls import ReplicaAddress
from deployments.fleet import Fleet
from deployments.messages import adapter_key
from deployments.placement import ranking
from deployments.stream import FrameReceiver
from deployments.warming import Warmed, Warmer
from tests.deployments.direct import SECONDS, DirectReplica, begins_and_hangs, until

BASE = "tiny"


def an_adapter(content: str) -> Adapter:
    files = (AdapterFile("adapter_config.json", 3, "a" * 64), AdapterFile("adapter_model.safetensors", 5, content * 64))
    return Adapter("acme", "support", version_of(files), BASE, 8, files, 12.5, "key")


OLD, NEW, OTHER = an_adapter("1"), an_adapter("2"), an_adapter("3")


class Bench:
    """A gateway and `count` replicas of one base model, which Serve has told it of."""

    def __init__(self, count: int) -> None:
        self.receiver = FrameReceiver("127.0.0.1")
        self.replicas = [DirectReplica(f"r{number}", begins_and_hangs) for number in range(count)]
        self.known: tuple[ReplicaAddress, ...] = tuple(replica.address for replica in self.replicas)
        self.fleet = Fleet(self.receiver, lambda base: self.known)
        self.warmer = Warmer(self.receiver, self.fleet)

    def ranked(self, adapter: Adapter) -> list[DirectReplica]:
        """The replicas as the adapter's key prefers them."""
        return [self.replicas[index] for index in ranking(adapter_key(adapter), [replica.address.id for replica in self.replicas])]

    @property
    def holders(self) -> set[str]:
        return {replica.address.id for replica in self.replicas if NEW.exact_name in replica.held}

    async def succeed(self, *olds: Adapter, seconds: float = SECONDS) -> None:
        await asyncio.wait_for(self.warmer.succeed(NEW, olds, seconds), SECONDS)

    def close(self) -> None:
        assert not any(replica._warms for replica in self.fleet._replicas.values()), "a warm was not forgotten"
        assert set(self.receiver._listeners) <= {replica.address.name for replica in self.replicas}
        self.fleet.close()
        self.receiver.close()
        for replica in self.replicas:
            replica.die()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench(4)
    yield bench
    bench.close()


async def test_a_version_is_loaded_where_it_will_be_asked_for(bench: Bench) -> None:
    loaded = await bench.warmer.load(NEW, 1, SECONDS)
    assert (loaded.warmed, loaded.running) == ((Warmed("store", 250.0),), 4)
    home = bench.ranked(NEW)[0]
    assert bench.holders == {home.address.id}
    chosen = bench.fleet.choose(BASE, adapter_key(NEW))
    assert chosen is not None and chosen.id == home.address.id, "the first request would go elsewhere"


async def test_more_replicas_are_taken_in_the_order_of_placement(bench: Bench) -> None:
    bench.ranked(NEW)[0].held.add(NEW.exact_name)
    loaded = await bench.warmer.load(NEW, 2, SECONDS)
    assert [warmed.found for warmed in loaded.warmed] == ["gpu", "store"]
    assert bench.holders == {replica.address.id for replica in bench.ranked(NEW)[:2]}
    assert len((await bench.warmer.load(NEW, 99, SECONDS)).warmed) == 4


async def test_a_model_that_sleeps_is_not_woken(bench: Bench) -> None:
    bench.known = ()
    assert not bench.warmer.reaches(BASE)
    with pytest.raises(Unavailable, match=r"no replica.*chat does"):
        await bench.warmer.load(NEW, 1, SECONDS)
    await bench.succeed(OLD)


async def test_what_fails_everywhere_is_told_and_what_fails_somewhere_is_left_out(bench: Bench) -> None:
    home, second = bench.ranked(NEW)[:2]
    home.warm_error = StoreUnavailable("the store is away")
    assert len((await bench.warmer.load(NEW, 2, SECONDS)).warmed) == 1
    second.warm_error = Unavailable("another")
    with pytest.raises(StoreUnavailable, match="the store is away"):
        await bench.warmer.load(NEW, 2, SECONDS)


async def test_a_new_version_is_loaded_wherever_an_old_one_is_and_at_its_home(bench: Bench) -> None:
    *_, third, last = bench.ranked(NEW)
    third.held.add(OLD.exact_name)
    last.held.add(OTHER.exact_name)
    await bench.succeed(OLD, OTHER)
    assert bench.holders == {replica.address.id for replica in (bench.ranked(NEW)[0], third, last)}


async def test_where_the_old_version_is_not_in_use_nothing_is_loaded(bench: Bench) -> None:
    await bench.succeed(OLD)
    assert bench.holders == set()
    assert all(len(replica.warms) == 1 for replica in bench.replicas)


async def test_an_old_version_of_another_base_has_the_new_one_loaded_at_its_home(bench: Bench) -> None:
    await bench.succeed(replace(OLD, base="another"))
    assert bench.holders == {bench.ranked(NEW)[0].address.id}


async def test_a_replica_that_takes_too_long_is_not_waited_for_and_stops(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    slow, quick = bench.ranked(NEW)[:2]
    for replica in (slow, quick):
        replica.held.add(OLD.exact_name)
    slow.loading.clear()
    with caplog.at_level(logging.INFO):
        await bench.succeed(OLD, seconds=0.2)
    assert bench.holders == {quick.address.id}
    await until(lambda: slow.cancelled)
    [failed] = [record for record in caplog.records if record.message == "warm_failed"]
    assert (failed.replica, failed.adapter, failed.error) == (slow.address.id, NEW.exact_name, "Unavailable")  # type: ignore[attr-defined]


async def test_replicas_that_die_refuse_or_fail_hold_up_no_other(bench: Bench) -> None:
    dying, refusing, failing, last = bench.ranked(NEW)
    for replica in bench.replicas:
        replica.held.add(OLD.exact_name)
    dying.loading.clear()
    refusing.refuses, failing.warm_error = True, StoreUnavailable("away")
    warming = asyncio.create_task(bench.succeed(OLD, seconds=10 * SECONDS))
    await until(lambda: dying.warms and last.address.id in bench.holders)
    dying.die()
    await warming
    assert bench.holders == {last.address.id}


async def test_a_mover_that_leaves_takes_its_warms_with_it(bench: Bench) -> None:
    [replica, *_] = bench.replicas
    replica.held.add(OLD.exact_name)
    replica.loading.clear()
    warming = asyncio.create_task(bench.succeed(OLD))
    await until(lambda: replica.warms)
    warming.cancel()
    with pytest.raises(asyncio.CancelledError):
        await warming
    await until(lambda: replica.cancelled)


async def test_a_warm_is_no_chat_in_any_count(bench: Bench) -> None:
    home = bench.ranked(NEW)[0]
    home.loading.clear()
    warming = asyncio.create_task(bench.warmer.load(NEW, 1, SECONDS))
    await until(lambda: home.warms)
    assert bench.receiver.open_count == 0
    assert all(replica.load == 0 for replica in bench.fleet._replicas.values())
    home.loading.set()
    await warming


async def test_a_replica_that_is_about_to_stop_ends_its_warm(bench: Bench) -> None:
    home = bench.ranked(NEW)[0]
    home.loading.clear()
    warming = asyncio.create_task(bench.warmer.load(NEW, 1, SECONDS))
    await until(lambda: home.warms)
    bench.known = ()
    assert bench.fleet.choose(BASE, b"key") is None
    home.loading.set()
    assert (await warming).warmed == (Warmed("store", 250.0),)
    assert not bench.fleet._replicas
