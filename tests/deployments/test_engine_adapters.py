"""Which adapters an engine holds: a small fake engine over the real node cache and a real store in a folder."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adapters_store.adapter import Adapter
from adapters_store.cache import NodeCache
from adapters_store.errors import InternalError, StoreUnavailable
from adapters_store.file_lock import try_lock
from adapters_store.history import Actor
from adapters_store.local import LocalStore
from adapters_store.registry import Registry
from adapters_store.validate import Fit
from deployments.engine.adapters import EngineAdapters, UsedAdapter
from deployments.engine.popularity import HALF_LIFE, REMEMBERED, Popularity

WEIGHTS = "adapter_model.safetensors"
SLOTS, ROOM = 2, 4
TIMEOUT_SECONDS = 20.0


class Engine:
    """Remembers what it holds, by number. `refuse` names adapters it fails to load; `loading` and `unloading` hold it up while clear."""

    def __init__(self) -> None:
        self.held: dict[int, str] = {}
        self.loads: list[tuple[str, int]] = []
        self.refuse: set[str] = set()
        self.on_unload: Callable[[str, int], None] = lambda name, number: None
        self.on_load: Callable[[str, int], None] = lambda name, number: None
        self.loading, self.unloading = asyncio.Event(), asyncio.Event()
        self.loading.set()
        self.unloading.set()

    async def load_adapter(self, name: str, number: int, path: str) -> None:
        self.loads.append((name, number))
        self.on_load(name, number)
        await self.loading.wait()
        if name in self.refuse:
            raise InternalError(f"{name} could not be loaded into the engine")
        assert (Path(path) / WEIGHTS).read_bytes().startswith(name.partition("@")[0].encode())
        assert number not in self.held
        self.held[number] = name

    async def unload_adapter(self, name: str, number: int) -> None:
        self.on_unload(name, number)
        await self.unloading.wait()
        assert self.held.pop(number) == name


class GatedStore:
    """A store in which the downloads of chosen adapters wait. `downloads` counts them by adapter and file."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store
        self.downloads: Counter[tuple[str, str]] = Counter()
        self.gates: dict[str, threading.Event] = {}
        self.down = False
        self._lock = threading.Lock()

    def download(self, key: str, path: Path, size_bytes: int | None = None) -> None:
        _, owner, name, *_ = key.split("/")
        with self._lock:
            self.downloads[f"{owner}/{name}", path.name] += 1
        if gate := self.gates.get(f"{owner}/{name}"):
            assert gate.wait(TIMEOUT_SECONDS)
        if self.down:
            raise StoreUnavailable("the object store did not answer (test)")
        self._store.download(key, path, size_bytes)


class House:
    """A store, a node's cache, an engine, and what stands between them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.folder = LocalStore(home / "store")
        self.store = GatedStore(self.folder)
        self.engine = Engine()
        self.cache = NodeCache(home / "cache", self.store, max_bytes=1, pulls_at_once=16, pull_timeout_seconds=TIMEOUT_SECONDS)  # type: ignore[arg-type]
        self.adapters = EngineAdapters(self.engine, self.cache, slots=SLOTS, room=ROOM)

    def publish(self, name: str) -> Adapter:
        folder = self.home / "folders" / name
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text("{}")
        (folder / WEIGHTS).write_bytes(f"acme/{name} and its weights".encode())
        return Registry(self.folder).publish(folder, "acme", name, Fit("base", 4), created_by=Actor("k")).adapter

    def publish_many(self, count: int) -> list[Adapter]:
        return [self.publish(f"adapter-{number}") for number in range(count)]

    async def ask(self, adapter: Adapter) -> UsedAdapter:
        """A request: use the adapter, and see that the engine holds it meanwhile."""
        async with self.adapters.use(adapter) as used:
            await asyncio.sleep(0)
            assert self.engine.held[used.number] == used.name == adapter.exact_name
            return used

    def pinned(self, adapter: Adapter) -> bool:
        """Whether the node keeps the adapter's files from being evicted."""
        lock = try_lock(self.home / "cache" / ".locks" / f"{adapter.version}.use", shared=False)
        if lock is None:
            return True
        lock.release()
        return False


@pytest.fixture
async def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    yield house
    for gate in house.store.gates.values():
        gate.set()
    house.engine.loading.set()
    house.engine.unloading.set()
    await house.adapters.close()
    house.cache.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_first_requests_for_a_cold_adapter_share_one_download_and_one_load(house: House) -> None:
    adapter = house.publish("support")
    used = await asyncio.gather(*(house.ask(adapter) for _ in range(64)))
    assert {each.cold for each in used} == {"store"}
    assert {each.number for each in used} == {1}
    assert house.engine.loads == [(adapter.exact_name, 1)]
    assert house.store.downloads == {("acme/support", "adapter_config.json"): 1, ("acme/support", WEIGHTS): 1}
    assert (await house.ask(adapter)).cold == "gpu"


async def test_no_request_waits_for_another_adapters_download(house: House) -> None:
    slow, *others = house.publish_many(8)
    house.store.gates["acme/adapter-0"] = threading.Event()
    waiting = asyncio.create_task(house.ask(slow))
    await until(lambda: house.store.downloads["acme/adapter-0", WEIGHTS] == 1)
    async with asyncio.timeout(TIMEOUT_SECONDS / 2):
        assert {each.cold for each in await asyncio.gather(*map(house.ask, others))} == {"store"}
    assert not waiting.done()
    house.store.gates["acme/adapter-0"].set()
    assert (await waiting).cold == "store"


async def test_no_request_waits_for_an_adapter_to_be_given_back_and_the_engine_is_told_of_that_first(house: House) -> None:
    """An engine does one after the other, each at the end of a step: a request that waited would miss the next step."""
    held = house.publish_many(ROOM)
    for adapter in held:
        await house.ask(adapter)
    told: list[str] = []
    house.engine.on_unload = lambda name, number: told.append(name)
    house.engine.on_load = lambda name, number: told.append(name)
    house.engine.unloading.clear()
    newcomer = house.publish("newcomer")
    async with asyncio.timeout(TIMEOUT_SECONDS / 2):
        await house.ask(newcomer)
        assert {(await house.ask(adapter)).cold for adapter in held[1:]} <= {"cpu", "gpu"}
    assert told == [held[0].exact_name, newcomer.exact_name]
    assert house.pinned(held[0]), "the engine may read it until it has let go"


async def test_request_is_told_where_its_adapter_was_found(house: House) -> None:
    adapters = house.publish_many(ROOM + 1)
    house.cache._max_bytes = 1 << 30  # the disk keeps what the engine gives back
    assert [(await house.ask(adapter)).cold for adapter in adapters[:ROOM]] == ["store"] * ROOM
    assert (await house.ask(adapters[ROOM - 1])).cold == "gpu"
    assert (await house.ask(adapters[0])).cold == "cpu"
    assert (await house.ask(adapters[0])).cold == "gpu"
    await house.ask(adapters[ROOM])  # the engine has no room left: the least recently used, adapters[1], is given back
    assert (await house.ask(adapters[1])).cold == "disk"


async def test_wait_is_told_in_seconds(house: House) -> None:
    adapter = house.publish("slow")
    house.engine.loading.clear()
    asked = asyncio.create_task(house.ask(adapter))
    await until(lambda: bool(house.engine.loads))
    await asyncio.sleep(0.05)
    house.engine.loading.set()
    assert (await asked).wait_seconds >= 0.05
    assert (await house.ask(adapter)).wait_seconds < 0.05


async def test_more_adapters_than_the_engine_holds_are_served_in_turns(house: House) -> None:
    adapters = house.publish_many(3 * ROOM)
    for _ in range(2):
        for adapter in adapters:
            await house.ask(adapter)
            assert len(house.engine.held) <= ROOM
    await asyncio.gather(*(house.ask(adapter) for adapter in adapters for _ in range(4)))
    await until(lambda: len(house.engine.held) <= ROOM)
    assert set(house.adapters.names) == set(house.engine.held.values())


async def test_engine_number_is_never_used_again(house: House) -> None:
    """vLLM's worker caches go by the number: one that came back for other weights would serve the old ones."""
    adapters = house.publish_many(ROOM + 2)
    for _ in range(3):
        for adapter in adapters:
            await house.ask(adapter)
    numbers = [number for _, number in house.engine.loads]
    assert len(numbers) == 3 * len(adapters)
    assert len(set(numbers)) == len(numbers)
    assert min(numbers) > 0, "vLLM takes 0 for no adapter"


async def test_room_is_made_while_an_adapter_is_read_and_not_after_it_was_entered(house: House) -> None:
    """The engine's own way to make room knows nothing of who is used."""
    adapters = house.publish_many(ROOM + 2)
    for adapter in adapters[:ROOM]:
        await house.ask(adapter)
    house.engine.loading.clear()
    newcomers = [asyncio.create_task(house.ask(adapter)) for adapter in adapters[ROOM:]]
    await until(lambda: len(house.engine.loads) == ROOM + 2)
    await until(lambda: len(house.engine.held) == ROOM - 2)
    house.engine.loading.set()
    await asyncio.gather(*newcomers)
    assert len(house.engine.held) == ROOM


async def test_those_that_are_asked_for_once_do_not_drive_out_the_popular(house: House) -> None:
    popular, *others = house.publish_many(12)
    for _ in range(3):
        await house.ask(popular)
    for other in others:
        await house.ask(other)
    assert (await house.ask(popular)).cold in ("cpu", "gpu")
    assert len(house.engine.loads) == 12


async def test_what_was_used_last_stays_however_popular_the_others(house: House) -> None:
    """Else what was just warmed would be the first to go."""
    *popular, warmed, other = house.publish_many(ROOM + 1)
    for adapter in popular * 3:
        await house.ask(adapter)
    await house.ask(warmed)
    await house.ask(other)
    assert (await house.ask(warmed)).cold in ("cpu", "gpu")


async def test_what_was_popular_once_makes_room_for_what_is_popular_now(house: House) -> None:
    once, *others = house.publish_many(ROOM + 2)
    for _ in range(5):
        await house.ask(once)
    for other in others * 5 * HALF_LIFE:
        await house.ask(other)
    assert not house.adapters.holds(once.exact_name)


async def test_popularity_is_remembered_beyond_a_stay_in_the_engine(house: House) -> None:
    """Whoever is asked for again and again, but seldom, stays once it is known for that."""
    seldom, *others = house.publish_many(40)
    for number, other in enumerate(others):
        await house.ask(other)
        if number % 5 == 4:
            await house.ask(seldom)
    loads = [name for name, _ in house.engine.loads]
    assert loads.count(seldom.exact_name) == 2  # the second time it is more popular than those that were asked for once


async def test_adapter_in_use_is_never_given_back(house: House) -> None:
    busy, *others = house.publish_many(3 * ROOM)
    async with house.adapters.use(busy) as used:
        for adapter in others:
            await house.ask(adapter)
        assert house.engine.held[used.number] == busy.exact_name
        assert house.pinned(busy)
        assert (await house.ask(busy)).number == used.number


async def test_more_in_use_than_there_is_room_all_stay_and_are_trimmed_afterwards(house: House) -> None:
    adapters = house.publish_many(ROOM + 3)
    async with contextlib.AsyncExitStack() as requests:
        for adapter in adapters:
            await requests.enter_async_context(house.adapters.use(adapter))
        assert sorted(house.engine.held.values()) == sorted(adapter.exact_name for adapter in adapters)
        assert all(map(house.pinned, adapters)), "vLLM swaps among them, from the files"
    await until(lambda: len(house.engine.held) == ROOM)
    await until(lambda: [house.pinned(adapter) for adapter in adapters].count(True) == ROOM)


async def test_files_stay_pinned_until_the_engine_has_let_go(house: House) -> None:
    adapters = house.publish_many(ROOM + 1)
    by_name = {adapter.exact_name: adapter for adapter in adapters}
    pinned_at_unload = []
    house.engine.on_unload = lambda name, number: pinned_at_unload.append(house.pinned(by_name[name]))
    for adapter in adapters:
        await house.ask(adapter)
    assert pinned_at_unload == [True]
    await until(lambda: not house.pinned(adapters[0]))
    assert all(map(house.pinned, adapters[1:]))


async def test_adapter_asked_for_while_it_is_given_back_is_loaded_anew(house: House) -> None:
    adapters = house.publish_many(ROOM + 1)
    for adapter in adapters[:ROOM]:
        await house.ask(adapter)
    house.engine.unloading.clear()
    newcomer = asyncio.create_task(house.ask(adapters[ROOM]))
    await until(lambda: len(house.adapters.names) == ROOM and adapters[0].exact_name not in house.adapters.names)
    async with contextlib.AsyncExitStack() as requests:
        again = asyncio.create_task(requests.enter_async_context(house.adapters.use(adapters[0])))
        await until(lambda: house.engine.loads[-1] == (adapters[0].exact_name, ROOM + 2))
        house.engine.unloading.set()
        used = await again
        await newcomer
        assert house.engine.held[used.number] == adapters[0].exact_name
        assert house.pinned(adapters[0]), "giving back the old load must not unpin the new one's files"


async def test_waiters_of_one_load_keep_it_from_being_trimmed_before_they_use_it(house: House) -> None:
    """All loads end at the same moment, with no room for all: each waiter must still find its own."""
    adapters = house.publish_many(2 * ROOM)
    house.engine.loading.clear()
    requests = [asyncio.create_task(house.ask(adapter)) for adapter in adapters for _ in range(3)]
    await until(lambda: len(house.engine.loads) == len(adapters))
    house.engine.loading.set()
    assert {used.name for used in await asyncio.gather(*requests)} == {adapter.exact_name for adapter in adapters}
    assert len(house.engine.loads) == len(adapters)


async def test_failed_load_is_told_to_all_who_waited_keeps_nothing_and_is_tried_again(house: House) -> None:
    adapter = house.publish("odd")
    house.engine.refuse = {adapter.exact_name}
    errors = await asyncio.gather(*(house.ask(adapter) for _ in range(8)), return_exceptions=True)
    assert {type(error) for error in errors} == {InternalError}
    assert len(house.engine.loads) == 1
    assert house.adapters.names == ()
    assert not house.pinned(adapter)
    house.engine.refuse = set()
    assert (await house.ask(adapter)).number == 2


async def test_store_that_is_down_fails_the_request_and_no_other(house: House) -> None:
    known, unknown = house.publish_many(2)
    await house.ask(known)
    house.store.down = True
    with pytest.raises(StoreUnavailable):
        await house.ask(unknown)
    assert (await house.ask(known)).cold == "gpu"
    house.store.down = False
    assert (await house.ask(unknown)).cold == "store"


async def test_waiter_that_goes_away_does_not_take_the_load_with_it(house: House) -> None:
    adapter = house.publish("support")
    house.engine.loading.clear()
    first, second = (asyncio.create_task(house.ask(adapter)) for _ in range(2))
    await until(lambda: len(house.engine.loads) == 1)
    first.cancel()
    house.engine.loading.set()
    assert (await second).number == 1
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_load_that_all_waiters_left_is_held_and_given_back_like_any_other(house: House) -> None:
    adapters = house.publish_many(ROOM + 1)
    house.engine.loading.clear()
    only = asyncio.create_task(house.ask(adapters[0]))
    await until(lambda: len(house.engine.loads) == 1)
    only.cancel()
    house.engine.loading.set()
    await until(lambda: adapters[0].exact_name in house.adapters.names)
    for adapter in adapters[1:]:
        await house.ask(adapter)
    assert adapters[0].exact_name not in house.adapters.names
    await until(lambda: not house.pinned(adapters[0]))


async def test_cancelled_request_gives_its_adapter_back(house: House) -> None:
    adapters = house.publish_many(ROOM + 1)
    begun = asyncio.Event()

    async def endless() -> None:
        async with house.adapters.use(adapters[0]):
            begun.set()
            await asyncio.Event().wait()

    request = asyncio.create_task(endless())
    await asyncio.wait_for(begun.wait(), TIMEOUT_SECONDS)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    for adapter in adapters[1:]:
        await house.ask(adapter)
    assert adapters[0].exact_name not in house.adapters.names


async def test_failed_unload_costs_no_request_and_lets_the_files_go(house: House) -> None:
    adapters = house.publish_many(ROOM + 1)

    def fail(name: str, number: int) -> None:
        raise RuntimeError("the engine would not")

    house.engine.on_unload = fail
    for adapter in adapters:
        await house.ask(adapter)
    assert adapters[0].exact_name not in house.adapters.names
    await until(lambda: not house.pinned(adapters[0]))


async def test_closing_unpins_everything(house: House) -> None:
    adapters = house.publish_many(2)
    for adapter in adapters:
        await house.ask(adapter)
    await house.adapters.close()
    assert not any(map(house.pinned, adapters))


async def test_what_is_held_or_being_loaded_is_known_by_its_exact_name(house: House) -> None:
    loaded, loading, unknown = house.publish_many(3)
    await house.ask(loaded)
    house.engine.loading.clear()
    asked = asyncio.create_task(house.ask(loading))
    await until(lambda: len(house.engine.loads) == 2)
    assert [house.adapters.holds(adapter.exact_name) for adapter in (loaded, loading, unknown)] == [True, True, False]
    house.engine.loading.set()
    await asked


def test_popularity_fades_by_half_after_a_half_life() -> None:
    popularity = Popularity(room=4)
    popularity.count("once")
    for _ in range(HALF_LIFE * 4):
        popularity.count("often")
    assert popularity.of("once") == pytest.approx(0.5)
    assert popularity.of("often") > 10
    assert popularity.of("never") == 0


def test_popularity_of_more_keys_than_are_remembered_forgets_the_oldest() -> None:
    popularity = Popularity(room=2)
    for number in range(REMEMBERED * 2 + 1):
        popularity.count(f"key {number}")
    assert popularity.of("key 0") == 0
    assert popularity.of("key 1") > 0
