"""The lease: what a gateway may answer from memory, for how long, and what it does when the store is away."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from adapters_store.adapter import Adapter
from adapters_store.errors import InternalError, NotFound, Overloaded, StoreUnavailable
from adapters_store.history import Actor
from adapters_store.local import LocalStore
from adapters_store.names import ModelRef
from adapters_store.registry import Registry
from adapters_store.resolver import Resolver, ResolverLimits
from adapters_store.validate import Fit
from tests.adapters_store.faults import FaultyStore

REF = ModelRef.parse("acme/support")
LIMITS = ResolverLimits(lease_seconds=1.0, stale_seconds=60.0, patience_seconds=0.2, timeout_seconds=5.0)


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def faulty(local_store: LocalStore) -> FaultyStore:
    return FaultyStore(local_store)


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


@pytest.fixture
def resolver(faulty: FaultyStore, executor: ThreadPoolExecutor, clock: Clock) -> Resolver:
    return Resolver(Registry(faulty), executor, LIMITS, clock=clock)


@pytest.fixture
def publish(local_store: LocalStore, tmp_path: Path) -> Callable[[str], Adapter]:
    """Publishes as another gateway would: this resolver is not told."""

    def call(content: str) -> Adapter:
        folder = tmp_path / content
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_text(content)
        return Registry(local_store).publish(folder, "acme", "support", Fit("base", 4), created_by=Actor("k")).adapter

    return call


async def meant(resolver: Resolver, ref: ModelRef) -> Adapter:
    return (await resolver.resolve(ref)).adapter


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def idle(resolver: Resolver) -> bool:
    return not resolver._reads


async def test_answer_within_the_lease_asks_no_store(resolver: Resolver, faulty: FaultyStore, clock: Clock, publish) -> None:
    adapter = publish("one")
    assert await meant(resolver, REF) == adapter
    calls = faulty.calls.total()
    clock.now += 0.4
    for _ in range(100):
        assert await meant(resolver, REF) == adapter
    assert faulty.calls.total() == calls


async def test_no_old_version_is_answered_once_the_lease_of_a_move_is_over(resolver: Resolver, clock: Clock, publish) -> None:
    one = publish("one")
    assert await meant(resolver, REF) == one
    two = publish("two")
    assert await meant(resolver, REF) == one  # the mover still waits
    clock.now += resolver.lease_seconds
    assert await meant(resolver, REF) == two


class HeldRead:
    """Lets the resolver's next reads look at the store, and holds what they saw until `release`."""

    def __init__(self, resolver: Resolver) -> None:
        self.has_looked = threading.Event()
        self.release = threading.Event()
        self._read = resolver._registry.resolve
        resolver._registry.resolve = self  # type: ignore[method-assign, assignment]

    def __call__(self, ref: ModelRef) -> Adapter:
        answer = self._read(ref)
        self.has_looked.set()
        assert self.release.wait(timeout=10)
        return answer


async def test_request_that_comes_after_the_lease_of_a_slow_read_is_not_answered_from_it(resolver: Resolver, clock: Clock, publish) -> None:
    publish("one")
    held = HeldRead(resolver)
    early = asyncio.create_task(meant(resolver, REF))
    await until(held.has_looked.is_set)
    two = publish("two")  # and its mover waits for the lease …
    clock.now += 1.5  # … and returns
    late = asyncio.create_task(meant(resolver, REF))
    await asyncio.sleep(0)
    held.release.set()
    assert (await early) != two
    assert (await late) == two


async def test_slow_read_is_used_no_longer_than_its_lease_from_the_start(resolver: Resolver, clock: Clock, publish) -> None:
    one = publish("one")
    held = HeldRead(resolver)
    early = asyncio.create_task(meant(resolver, REF))
    await until(held.has_looked.is_set)
    two = publish("two")
    clock.now += 0.9
    held.release.set()
    assert (await early) == one
    clock.now += 0.1  # the mover returns
    assert (await meant(resolver, REF)) == two


async def test_name_in_use_is_read_again_before_its_lease_ends(resolver: Resolver, faulty: FaultyStore, clock: Clock, publish) -> None:
    publish("one")
    await meant(resolver, REF)
    two = publish("two")
    clock.now += 0.6
    faulty.gate.clear()
    old = await asyncio.wait_for(meant(resolver, REF), 1)  # does not wait for the store
    assert old != two
    faulty.gate.set()
    await until(lambda: idle(resolver))
    clock.now += 0.45  # past the lease of the first read, within that of the second
    calls = faulty.calls.total()
    assert await meant(resolver, REF) == two
    assert faulty.calls.total() == calls


async def test_simultaneous_requests_for_a_cold_name_are_one_read(resolver: Resolver, faulty: FaultyStore, publish) -> None:
    adapter = publish("one")
    assert set(await asyncio.gather(*(meant(resolver, REF) for _ in range(64)))) == {adapter}
    assert faulty.calls == {"list": 1, "get": 1}


async def test_cancelled_request_leaves_the_read_to_the_others(resolver: Resolver, faulty: FaultyStore, publish) -> None:
    adapter = publish("one")
    faulty.gate.clear()
    first, second = (asyncio.create_task(meant(resolver, REF)) for _ in range(2))
    await until(lambda: faulty.calls.total() > 0)
    first.cancel()
    faulty.gate.set()
    assert await second == adapter
    assert first.cancelled() or first.cancelling()


async def test_unknown_name_is_remembered_for_the_lease(resolver: Resolver, faulty: FaultyStore, clock: Clock, publish) -> None:
    for _ in range(10):
        with pytest.raises(NotFound, match="acme/support"):
            await meant(resolver, REF)
    assert faulty.calls["list"] == 1
    adapter = publish("one")
    clock.now += 1.0
    assert await meant(resolver, REF) == adapter


async def test_remembered_refusal_keeps_no_request_alive(resolver: Resolver) -> None:
    class Request:
        pass

    async def handle() -> weakref.ref[Request]:
        request = Request()
        with pytest.raises(NotFound):
            await meant(resolver, REF)
        return weakref.ref(request)

    await handle()
    remembered = await handle()
    gc.collect()
    assert remembered() is None


async def test_random_names_push_out_neither_memory_nor_known_ones(
    faulty: FaultyStore, executor: ThreadPoolExecutor, clock: Clock, publish
) -> None:
    resolver = Resolver(Registry(faulty), executor, ResolverLimits(known_names=3, unknown_names=5), clock=clock)
    adapter = publish("one")
    await meant(resolver, REF)
    for number in range(20):
        with pytest.raises(NotFound):
            await meant(resolver, ModelRef.parse(f"acme/random-{number}"))
    for alias in ("a", "b", "c", "d"):
        Registry(faulty).aliases.move("acme", "support", alias, adapter.version, by=Actor("k"))
        await meant(resolver, ModelRef.parse(f"acme/support:{alias}"))
    assert (len(resolver._known), len(resolver._refused)) == (3, 5)


async def test_lookups_under_way_are_bounded(faulty: FaultyStore, executor: ThreadPoolExecutor, clock: Clock) -> None:
    resolver = Resolver(Registry(faulty), executor, ResolverLimits(reads_at_once=2), clock=clock)
    faulty.gate.clear()
    waiting = [asyncio.create_task(meant(resolver, ModelRef.parse(f"acme/{name}"))) for name in "ab"]
    await until(lambda: len(resolver._reads) == 2)
    with pytest.raises(Overloaded):
        await meant(resolver, ModelRef.parse("acme/c"))
    faulty.gate.set()
    assert all(isinstance(result, NotFound) for result in await asyncio.gather(*waiting, return_exceptions=True))


async def test_known_version_is_served_on_while_the_store_is_down(resolver: Resolver, faulty: FaultyStore, clock: Clock, publish) -> None:
    adapter = publish("one")
    await meant(resolver, REF)
    faulty.down = True
    for _ in range(5):
        clock.now += 10.0
        assert await meant(resolver, REF) == adapter
    clock.now += 20.0  # 70 s after the last good read, of 60
    with pytest.raises(StoreUnavailable):
        await meant(resolver, REF)
    faulty.down = False
    assert await meant(resolver, REF) == adapter


async def test_known_version_is_served_on_while_the_store_hangs(faulty: FaultyStore, executor: ThreadPoolExecutor, publish) -> None:
    limits = ResolverLimits(lease_seconds=0.05, patience_seconds=0.1)
    resolver = Resolver(Registry(faulty), executor, limits)
    adapter = publish("one")
    await meant(resolver, REF)
    faulty.gate.clear()
    await asyncio.sleep(0.06)  # the lease itself, not a condition
    async with asyncio.timeout(5):
        assert await meant(resolver, REF) == adapter
    started = asyncio.get_running_loop().time()
    for _ in range(50):  # the first found out; these do not wait again, which would take 5 s
        assert await meant(resolver, REF) == adapter
    assert asyncio.get_running_loop().time() - started < 2.5
    faulty.gate.set()
    await until(lambda: idle(resolver))


async def test_unknown_name_is_never_not_found_while_the_store_is_down(resolver: Resolver, faulty: FaultyStore, publish) -> None:
    publish("one")
    faulty.down = True
    with pytest.raises(StoreUnavailable) as error:
        await meant(resolver, REF)
    assert error.value.retry_after_seconds > 0
    faulty.down = False
    assert (await meant(resolver, REF)).adapter_name == "acme/support"  # the failure is not remembered


async def test_remembered_unknown_name_turns_unavailable_when_the_store_goes(resolver: Resolver, faulty: FaultyStore, clock: Clock) -> None:
    with pytest.raises(NotFound):
        await meant(resolver, REF)
    faulty.down = True
    clock.now += 1.0
    with pytest.raises(StoreUnavailable):
        await meant(resolver, REF)


async def test_wait_for_a_cold_name_is_bounded(faulty: FaultyStore, executor: ThreadPoolExecutor, publish) -> None:
    publish("one")
    resolver = Resolver(Registry(faulty), executor, ResolverLimits(timeout_seconds=0.05))
    faulty.gate.clear()
    with pytest.raises(StoreUnavailable, match="still being looked up"):
        await meant(resolver, REF)
    faulty.gate.set()
    await until(lambda: idle(resolver))


async def test_retired_version_is_unknown_after_the_lease(resolver: Resolver, local_store: LocalStore, clock: Clock, publish) -> None:
    one = publish("one")
    exact = ModelRef.parse(one.exact_name)
    assert await meant(resolver, exact) == one
    publish("two")
    Registry(local_store).retirement.retire_version("acme", "support", one.version)
    clock.now += 1.0
    with pytest.raises(NotFound, match="retired"):
        await meant(resolver, exact)


async def test_forgotten_name_is_read_at_once_and_not_from_an_older_read(resolver: Resolver, clock: Clock, publish) -> None:
    one = publish("one")
    await meant(resolver, REF)
    clock.now += 0.6
    held = HeldRead(resolver)
    assert await meant(resolver, REF) == one  # starts a read ahead
    await until(held.has_looked.is_set)
    two = publish("two")
    resolver.forget("acme", "support")
    after = asyncio.create_task(meant(resolver, REF))
    held.release.set()
    assert await after == two
    await until(lambda: idle(resolver))
    assert await meant(resolver, REF) == two


async def test_read_that_was_forgotten_is_not_remembered(resolver: Resolver, publish) -> None:
    one = publish("one")
    held = HeldRead(resolver)
    before = asyncio.create_task(meant(resolver, REF))
    await until(held.has_looked.is_set)
    two = publish("two")
    resolver.forget("acme", "support")
    held.release.set()
    assert await before == one  # it came before the change
    assert await meant(resolver, REF) == two


async def test_fault_of_ours_is_an_internal_error_without_detail(resolver: Resolver) -> None:
    def broken(ref: ModelRef) -> Adapter:
        raise RuntimeError("/secret/path")

    resolver._registry.resolve = broken  # type: ignore[method-assign]
    with pytest.raises(InternalError) as error:
        await meant(resolver, REF)
    assert "secret" not in error.value.message
