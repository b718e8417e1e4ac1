"""The node cache: one verified download per version, shared between processes, evicted only when nobody uses it."""

from __future__ import annotations

import asyncio
import errno
import shutil
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adapters_store.adapter import Adapter
from adapters_store.cache import NodeCache
from adapters_store.cache_folder import CacheFolder
from adapters_store.errors import NotFound, StoreUnavailable, Unavailable
from adapters_store.file_lock import try_lock
from adapters_store.history import Actor
from adapters_store.layout import file_key
from adapters_store.local import LocalStore
from adapters_store.objects import ObjectStore
from adapters_store.registry import Registry
from adapters_store.validate import Fit
from tests.adapters_store.faults import FaultyStore
from tests.s3 import S3Endpoint, recorded_requests

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def faulty(local_store: LocalStore) -> FaultyStore:
    return FaultyStore(local_store)


@pytest.fixture
def make_cache(tmp_path: Path, faulty: FaultyStore) -> Iterator[Callable[..., NodeCache]]:
    """Caches over one folder, as the replicas of one node have them."""
    made = []

    def make(max_bytes: int = 1 << 30, *, store: ObjectStore = faulty, pulls_at_once: int = 8, seconds: float = 20.0) -> NodeCache:
        made.append(NodeCache(tmp_path / "cache", store, max_bytes=max_bytes, pulls_at_once=pulls_at_once, pull_timeout_seconds=seconds))
        return made[-1]

    yield make
    faulty.gate.set()
    for cache in made:
        cache.close()


def publish(store: ObjectStore, tmp_path: Path, name: str, size_bytes: int = 1000) -> Adapter:
    folder = tmp_path / f"folder-{name}"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / WEIGHTS).write_bytes(name.encode().ljust(size_bytes - 2, b"."))
    return Registry(store).publish(folder, "acme", name, Fit("base", 4), created_by=Actor("k")).adapter


@pytest.fixture
def adapter(local_store: LocalStore, tmp_path: Path) -> Adapter:
    return publish(local_store, tmp_path, "support")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def on_disk(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "cache").iterdir() if not path.name.startswith(".")}


def leftovers(tmp_path: Path) -> list[Path]:
    return [*(tmp_path / "cache" / ".pulls").iterdir(), *(tmp_path / "cache" / ".trash").iterdir()]


async def test_absent_adapter_is_pulled_and_then_found_on_disk(make_cache, adapter: Adapter, faulty: FaultyStore, tmp_path: Path) -> None:
    cache = make_cache()
    pin = await cache.pin(adapter)
    assert (pin.found, pin.version, pin.path) == ("store", adapter.version, tmp_path / "cache" / adapter.version)
    assert (pin.path / "adapter_config.json").read_text() == "{}"
    assert (pin.path / WEIGHTS).stat().st_size == 998
    assert (await cache.pin(adapter)).found == "disk"
    assert (await make_cache().pin(adapter)).found == "disk"
    assert set(faulty.downloads.values()) == {1}
    assert leftovers(tmp_path) == []


async def test_simultaneous_pins_of_a_cold_adapter_are_one_download(make_cache, adapter: Adapter, faulty: FaultyStore) -> None:
    one, other = make_cache(), make_cache()
    pins = await asyncio.gather(*(cache.pin(adapter) for cache in (one, other) for _ in range(32)))
    assert {pin.found for pin in pins} == {"store"}
    assert faulty.downloads == {file_key("acme", "support", adapter.version, file.name): 1 for file in adapter.files}


async def test_different_adapters_do_not_wait_for_each_other(
    make_cache, local_store: LocalStore, faulty: FaultyStore, tmp_path: Path
) -> None:
    adapters = [publish(local_store, tmp_path, f"cold-{number}") for number in range(8)]
    cache = make_cache(pulls_at_once=8)
    faulty.gate.clear()
    pins = [asyncio.create_task(cache.pin(adapter)) for adapter in adapters]
    await until(lambda: len(faulty.downloads) == 16)  # every file of every adapter has been asked for, and none has come
    faulty.gate.set()
    assert {pin.found for pin in await asyncio.gather(*pins)} == {"store"}


async def test_download_that_differs_from_its_digest_is_refused_and_not_kept(
    make_cache, adapter: Adapter, faulty: FaultyStore, tmp_path: Path
) -> None:
    def damage(key: str, path: Path) -> None:
        if path.name == WEIGHTS:
            path.write_bytes(path.read_bytes()[:-1] + b"!")  # the same size

    faulty.on_download = damage
    cache = make_cache()
    with pytest.raises(StoreUnavailable, match="does not match its digest"):
        await cache.pin(adapter)
    assert faulty.downloads[file_key("acme", "support", adapter.version, WEIGHTS)] == 2
    assert on_disk(tmp_path) == set()
    assert leftovers(tmp_path) == []
    faulty.on_download = lambda key, path: None
    assert (await cache.pin(adapter)).found == "store"


async def test_download_damaged_once_is_tried_again(make_cache, adapter: Adapter, faulty: FaultyStore) -> None:
    def damage_first(key: str, path: Path) -> None:
        if path.name == WEIGHTS and faulty.downloads[key] == 1:
            path.write_bytes(b"short")

    faulty.on_download = damage_first
    pin = await make_cache().pin(adapter)
    assert (pin.path / WEIGHTS).read_bytes().startswith(b"support.")


async def test_truncated_entry_on_disk_is_pulled_again(make_cache, adapter: Adapter, tmp_path: Path) -> None:
    (await make_cache().pin(adapter)).release()
    path = tmp_path / "cache" / adapter.version / WEIGHTS
    path.write_bytes(b"cut")
    cache = make_cache()
    assert (await cache.pin(adapter)).found == "store"
    assert path.stat().st_size == 998


async def test_least_recently_used_is_evicted_beyond_the_limit(make_cache, local_store: LocalStore, tmp_path: Path) -> None:
    one, two, three = (publish(local_store, tmp_path, name) for name in ("one", "two", "three"))
    cache = make_cache(max_bytes=2500)
    for adapter in (one, two, one):
        (await cache.pin(adapter)).release()
    (await cache.pin(three)).release()
    assert on_disk(tmp_path) == {one.version, three.version}
    assert leftovers(tmp_path) == []
    assert (await cache.pin(two)).found == "store"


async def test_pinned_adapter_is_never_evicted(make_cache, local_store: LocalStore, tmp_path: Path) -> None:
    adapters = [publish(local_store, tmp_path, name) for name in ("one", "two", "three")]
    cache = make_cache(max_bytes=1)
    pins = [await cache.pin(adapter) for adapter in adapters]
    again = await cache.pin(adapters[0])
    assert on_disk(tmp_path) == {adapter.version for adapter in adapters}
    pins[0].release()
    pins[0].release()  # a second time counts for nothing
    cache.unpin(pins[1])
    await cache.pin(publish(local_store, tmp_path, "four"))
    assert adapters[0].version in on_disk(tmp_path)  # `again` still holds it
    assert adapters[1].version not in on_disk(tmp_path)
    assert (again.path / WEIGHTS).exists()


async def test_adapter_in_use_by_another_process_is_neither_pulled_nor_evicted(
    make_cache, adapter: Adapter, local_store: LocalStore, faulty: FaultyStore, tmp_path: Path
) -> None:
    replica = _other_replica(local_store, tmp_path, adapter)
    try:
        assert replica.stdout.readline() == "store\n"
        cache = make_cache(max_bytes=1)
        (await cache.pin(adapter)).release()
        assert faulty.downloads.total() == 0
        await cache.pin(publish(local_store, tmp_path, "two"))
        assert adapter.version in on_disk(tmp_path)
    finally:
        replica.kill()  # dies without a word, holding its pin
        replica.wait(timeout=10)
        replica.stdout.close()
    await cache.pin(publish(local_store, tmp_path, "three"))
    assert adapter.version not in on_disk(tmp_path)


def _other_replica(store: ObjectStore, tmp_path: Path, adapter: Adapter) -> subprocess.Popen[str]:
    """Another process that pins `adapter`, says where it found it, and holds it until it is killed."""
    program = f"""
        import asyncio, sys
        from pathlib import Path
        from adapters_store.cache import NodeCache
        from adapters_store.names import ModelRef
        from adapters_store.objects import open_store
        from adapters_store.registry import Registry

        async def main():
            store = open_store({store.url!r})
            cache = NodeCache(Path({str(tmp_path / "cache")!r}), store, max_bytes=10**9, pulls_at_once=2, pull_timeout_seconds=20)
            pin = await cache.pin(Registry(store).read(ModelRef.parse({adapter.adapter_name!r})))
            print(pin.found, flush=True)
            sys.stdin.read()

        asyncio.run(main())
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def test_replicas_of_a_node_that_ask_at_once_download_a_cold_adapter_once(
    s3_endpoint: S3Endpoint, s3_store: ObjectStore, tmp_path: Path
) -> None:
    cold = publish(s3_store, tmp_path, "cold")
    with recorded_requests(s3_endpoint.url) as requests:
        replicas = [_other_replica(s3_store, tmp_path, cold) for _ in range(3)]
        try:
            found = [replica.stdout.readline().strip() for replica in replicas]
        finally:
            for replica in replicas:
                replica.kill()
                replica.wait(timeout=10)
                replica.stdout.close()
    assert "store" in found and set(found) <= {"store", "disk"}
    reads = Counter(path for method, path in requests if method == "GET" and path.endswith(WEIGHTS))
    assert list(reads.values()) == [1]


async def test_two_processes_pull_a_cold_adapter_once(make_cache, adapter: Adapter, faulty: FaultyStore, tmp_path: Path) -> None:
    one, other = make_cache(), make_cache()  # flock holds between descriptors, so two caches stand for two processes
    faulty.gate.clear()
    first = asyncio.create_task(one.pin(adapter))
    await until(lambda: faulty.downloads.total() == 2)
    second = asyncio.create_task(other.pin(adapter))
    await asyncio.sleep(0.1)  # let it try
    assert not second.done()
    faulty.gate.set()
    await asyncio.gather(first, second)
    assert faulty.downloads.total() == 2


async def test_cancelled_waiter_leaves_the_pull_to_the_others(make_cache, adapter: Adapter, faulty: FaultyStore) -> None:
    cache = make_cache()
    faulty.gate.clear()
    first, second = (asyncio.create_task(cache.pin(adapter)) for _ in range(2))
    await until(lambda: faulty.downloads.total() == 2)
    first.cancel()
    faulty.gate.set()
    assert (await second).found == "store"
    with pytest.raises(asyncio.CancelledError):
        await first
    assert set(faulty.downloads.values()) == {1}


async def test_pull_that_nobody_waits_for_any_more_leaves_no_pin(
    make_cache, adapter: Adapter, local_store: LocalStore, faulty: FaultyStore, tmp_path: Path
) -> None:
    cache = make_cache(max_bytes=1)
    faulty.gate.clear()
    only = asyncio.create_task(cache.pin(adapter))
    await until(lambda: faulty.downloads.total() == 2)
    only.cancel()
    with pytest.raises(asyncio.CancelledError):
        await only
    faulty.gate.set()
    await until(lambda: not cache._uses)
    await cache.pin(publish(local_store, tmp_path, "two"))
    assert adapter.version not in on_disk(tmp_path)


async def test_wait_for_a_pull_is_bounded(make_cache, adapter: Adapter, faulty: FaultyStore) -> None:
    cache = make_cache(seconds=0.05)
    faulty.gate.clear()
    with pytest.raises(Unavailable, match="still being downloaded"):
        await cache.pin(adapter)
    faulty.gate.set()
    await until(lambda: not cache._uses)
    assert (await cache.pin(adapter)).found == "disk"


async def test_store_that_is_away_fails_the_pin_and_not_the_next(make_cache, adapter: Adapter, faulty: FaultyStore, tmp_path: Path) -> None:
    cache = make_cache()
    faulty.down = True
    with pytest.raises(StoreUnavailable):
        await cache.pin(adapter)
    faulty.down = False
    assert (await cache.pin(adapter)).found == "store"
    faulty.down = True
    assert (await make_cache().pin(adapter)).found == "disk"


async def test_version_whose_files_are_gone_is_not_found(make_cache, adapter: Adapter, local_store: LocalStore) -> None:
    local_store.delete(file_key("acme", "support", adapter.version, WEIGHTS))
    with pytest.raises(NotFound, match="no longer in the object store"):
        await make_cache().pin(adapter)


async def test_full_disk_is_unavailable_and_says_so_without_a_path(
    make_cache, adapter: Adapter, faulty: FaultyStore, tmp_path: Path
) -> None:
    def fill(key: str, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    faulty.on_download = fill
    with pytest.raises(Unavailable, match="disk is full") as error:
        await make_cache().pin(adapter)
    assert str(tmp_path) not in error.value.message
    assert on_disk(tmp_path) == set()
    assert leftovers(tmp_path) == []


async def test_what_a_dead_process_left_is_swept(make_cache, adapter: Adapter, tmp_path: Path) -> None:
    make_cache()
    for name in (".pulls", ".trash"):
        folder = tmp_path / "cache" / name / ("0" * 64)
        folder.mkdir()
        (folder / WEIGHTS).write_text("half")
    (tmp_path / "cache" / ".locks" / f"{'0' * 64}.use").touch()
    cache = make_cache()
    assert leftovers(tmp_path) == []
    assert not list((tmp_path / "cache" / ".locks").glob("0*"))
    (tmp_path / "cache" / ".pulls" / adapter.version).mkdir()
    (tmp_path / "cache" / ".pulls" / adapter.version / WEIGHTS).write_text("half")
    assert (await cache.pin(adapter)).found == "store"


async def test_pull_under_way_is_not_swept_by_a_starting_replica(make_cache, adapter: Adapter, faulty: FaultyStore, tmp_path: Path) -> None:
    cache = make_cache()
    faulty.gate.clear()
    pin = asyncio.create_task(cache.pin(adapter))
    await until(lambda: faulty.downloads.total() == 2)
    make_cache()
    assert len(leftovers(tmp_path)) == 1
    faulty.gate.set()
    assert (await pin).found == "store"


def test_a_sweep_takes_nothing_from_who_evicts_and_pulls_the_version_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweeping, other, version = CacheFolder(tmp_path / "cache"), CacheFolder(tmp_path / "cache"), "0" * 64
    for folder in (sweeping.path(version), sweeping.pull_path(version)):
        folder.mkdir()
        (folder / WEIGHTS).write_text("left by a dead process")
    pulls: list[Path] = []
    remove = shutil.rmtree

    def remove_after_the_other(folder: Path, ignore_errors: bool) -> None:
        monkeypatch.setattr(shutil, "rmtree", remove)
        other.evict_beyond(0)
        if other.lock_use(version) and other.lock_pull(version):
            pulls.append(other.begin_pull(version))
            (pulls[0] / WEIGHTS).write_text("new")
        remove(folder, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", remove_after_the_other)
    sweeping.sweep()
    assert [(folder / WEIGHTS).exists() for folder in pulls] in ([], [True])
    assert other.lock_use(version) and other.lock_pull(version), "the sweep kept a lock"


def test_a_sweep_leaves_a_version_that_is_being_evicted_alone(tmp_path: Path) -> None:
    folder, version = CacheFolder(tmp_path / "cache"), "0" * 64
    folder.pull_path(version).mkdir()
    evicting = try_lock(tmp_path / "cache" / ".locks" / f"{version}.use", shared=False)
    assert evicting is not None
    folder.sweep()
    assert folder.pull_path(version).exists()
    evicting.remove()
    folder.sweep()
    assert not folder.pull_path(version).exists()


async def test_busy_cache_keeps_every_pinned_file_whole(make_cache, local_store: LocalStore, tmp_path: Path) -> None:
    adapters = [publish(local_store, tmp_path, f"many-{number}") for number in range(6)]
    caches = [make_cache(max_bytes=2500) for _ in range(2)]

    async def use(number: int) -> None:
        for turn in range(8):
            adapter = adapters[(number + turn * 5) % len(adapters)]
            pin = await caches[number % 2].pin(adapter)
            await asyncio.sleep(0)
            assert (pin.path / WEIGHTS).read_bytes().startswith(adapter.name.encode())
            pin.release()

    await asyncio.gather(*(use(number) for number in range(8)))
    assert all(not cache._uses for cache in caches)
    assert leftovers(tmp_path) == []


def test_what_is_left_is_right_whoever_pulls_and_evicts(tmp_path: Path) -> None:
    ours, theirs = CacheFolder(tmp_path / "cache"), CacheFolder(tmp_path / "cache")
    one, two = "1" * 64, "2" * 64

    def pull(folder: CacheFolder, version: str, size_bytes: int) -> None:
        lock = folder.lock_use(version)
        assert lock is not None
        (folder.begin_pull(version) / WEIGHTS).write_bytes(b"." * size_bytes)
        folder.end_pull(version)
        lock.release()

    pull(ours, one, 10)
    assert (ours.evict_beyond(100), theirs.evict_beyond(100)) == (10, 10)
    pull(theirs, two, 20)
    assert (ours.evict_beyond(100), theirs.evict_beyond(100)) == (30, 30)
    assert theirs.evict_beyond(25) == 20  # the one used first goes
    assert (ours.evict_beyond(100), on_disk(tmp_path)) == (20, {two})
    pull(ours, one, 10)
    assert (ours.evict_beyond(100), theirs.evict_beyond(100)) == (30, 30)
    pull(ours, two, 15)  # what lay there was damaged
    assert ours.evict_beyond(100) == 25
    assert (ours.evict_beyond(0), on_disk(tmp_path)) == (0, set())
