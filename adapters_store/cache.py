"""A node's disk cache of adapters, as a replica uses it: pin an adapter, use its folder, unpin (step 5 of the life of a request).

    pin ── in use here already? ──────────────────────────────────────────────> path        (a dict look-up)
     └── first use here: lock it, on disk and whole? ──────────────────────────> path        "disk"
          └── absent: one process downloads it, verifies it, renames it in place ─> path     "store"

The contract: a pinned version is never evicted or changed; a file is in its place only when its size and sha256 are the manifest's;
one download per version and node, whoever asks; different versions never wait for each other. Runs in one event loop; downloads,
hashing and eviction run in threads.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar

from adapters_store.adapter import Adapter, AdapterFile
from adapters_store.cache_folder import CacheFolder
from adapters_store.errors import NotFound, StoreUnavailable, Unavailable
from adapters_store.file_lock import FileLock
from adapters_store.layout import file_key
from adapters_store.objects import ObjectStore
from adapters_store.versions import hash_file

Found = Literal["disk", "store"]
P = ParamSpec("P")
T = TypeVar("T")

FILES_AT_ONCE = 2  # of one adapter: config and weights; a large file's parts are fetched side by side by the store
PULL_TRIES = 2  # a download that does not match its digest is tried once more
LOCK_POLL_SECONDS = 0.02

_FULL = (errno.ENOSPC, errno.EDQUOT)

logger = logging.getLogger(__name__)


class Pin:
    """Holds one version in the cache: `path` is its folder, `found` where it was when the pin was asked for."""

    def __init__(self, cache: NodeCache, use: _Use, path: Path, found: Found) -> None:
        self.path = path
        self.found = found
        self.version = path.name
        self._cache = cache
        self._use: _Use | None = use

    def release(self) -> None:
        """Let the version be evicted, as far as this pin goes; nothing happens the second time."""
        use, self._use = self._use, None
        if use is not None:
            self._cache._leave(self.version, use)


@dataclass(slots=True)
class _Use:
    """One version in use by this process: by `count` pins and requests that wait for it. Ends when the last one leaves."""

    arrival: asyncio.Task[Found]
    count: int = 0
    lock: list[FileLock] = field(default_factory=list)  # the use lock, once held


class NodeCache:
    """`root` may be shared by the replicas of a node. `max_bytes` bounds what is kept beyond what is in use."""

    def __init__(self, root: Path, store: ObjectStore, *, max_bytes: int, pulls_at_once: int, pull_timeout_seconds: float) -> None:
        self._folder = CacheFolder(root)
        self._folder.sweep()
        self._store = store
        self._max_bytes = max_bytes
        self._pull_timeout_seconds = pull_timeout_seconds
        self._pulls = asyncio.Semaphore(pulls_at_once)
        # As many threads as the pulls may need, for downloads or for tidying, so that no pull waits for another's thread.
        self._threads = ThreadPoolExecutor(FILES_AT_ONCE * pulls_at_once, thread_name_prefix="adapter-pull")
        self._uses: dict[str, _Use] = {}

    async def pin(self, adapter: Adapter) -> Pin:
        """Hold `adapter` on disk, pulling it first if it is absent. `release()` the pin when its files are no longer needed.

        A waiter that is cancelled or times out leaves; the pull goes on for the others.

        Raises:
            NotFound: its files are no longer in the store.
            StoreUnavailable: the store does not answer, or what it holds does not match its digest.
            Unavailable: the disk is full, or the pull takes longer than `pull_timeout_seconds`.
        """
        use = self._uses.get(adapter.version)
        if use is None:
            use = self._begin_use(adapter)
        use.count += 1
        found: Found = "disk"
        try:
            if not use.arrival.done():
                await asyncio.wait({use.arrival}, timeout=self._pull_timeout_seconds)
                if not use.arrival.done():
                    raise _too_slow(adapter)
                found = use.arrival.result()
            use.arrival.result()
        except BaseException:
            self._leave(adapter.version, use)
            raise
        return Pin(self, use, self._folder.path(adapter.version), found)

    def unpin(self, pin: Pin) -> None:
        """The same as `pin.release()`."""
        pin.release()

    def close(self) -> None:
        """Stop the threads; downloads that have not begun are dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _begin_use(self, adapter: Adapter) -> _Use:
        lock: list[FileLock] = []
        arrival = asyncio.get_running_loop().create_task(self._arrive(adapter, lock))
        use = self._uses[adapter.version] = _Use(arrival, lock=lock)
        arrival.add_done_callback(lambda _: self._settle(adapter.version, use))
        return use

    def _settle(self, version: str, use: _Use) -> None:
        """The arrival has ended. A failed one is forgotten, so that the next request tries anew; so is one that nobody awaits."""
        failed = use.arrival.cancelled() or use.arrival.exception() is not None
        if failed or use.count == 0:
            self._end_use(version, use)

    def _leave(self, version: str, use: _Use) -> None:
        use.count -= 1
        if use.count == 0 and use.arrival.done():
            self._folder.touch(version)
            self._end_use(version, use)

    def _end_use(self, version: str, use: _Use) -> None:
        if self._uses.get(version) is use:
            del self._uses[version]
        for lock in use.lock:
            lock.release()

    async def _arrive(self, adapter: Adapter, held: list[FileLock]) -> Found:
        """Lock the version for use (into `held`) and see to it that it is whole on disk."""
        deadline = time.monotonic() + self._pull_timeout_seconds
        try:
            while (use_lock := self._folder.lock_use(adapter.version)) is None:
                await _pause(adapter, deadline)
            held.append(use_lock)
            if self._folder.holds(adapter):
                return "disk"
            while (pull_lock := self._folder.lock_pull(adapter.version)) is None:
                await _pause(adapter, deadline)
            try:
                if not self._folder.holds(adapter):  # else another process pulled it while we waited
                    await self._pull(adapter)
            finally:
                pull_lock.release()
        except OSError as error:  # the store's failures are StoreUnavailable: this is our own disk
            raise _disk_failed(adapter, error) from None
        return "store"

    async def _pull(self, adapter: Adapter) -> None:
        started = time.monotonic()
        async with self._pulls:
            try:
                await self._download_verified(adapter)
                left_bytes = await self._in_thread(self._end_pull, adapter)
            except BaseException:
                await self._in_thread(self._folder.abandon_pull, adapter.version)
                raise
        seconds = round(time.monotonic() - started, 3)
        logger.info(
            "adapter_pulled",
            extra={"adapter": adapter.exact_name, "size_bytes": adapter.size_bytes, "seconds": seconds, "cache_bytes": left_bytes},
        )

    async def _download_verified(self, adapter: Adapter) -> None:
        for _ in range(PULL_TRIES):
            folder = await self._in_thread(self._begin_pull, adapter)
            if await self._download_files(adapter, folder):
                return
            logger.error("digest_mismatch", extra={"adapter": adapter.exact_name})
        raise StoreUnavailable(
            f"what the object store holds of {adapter.exact_name} does not match its digest: publish it under another name"
        )

    def _begin_pull(self, adapter: Adapter) -> Path:
        """An empty folder to download to, and the space for it. What a try before left there goes first."""
        folder = self._folder.begin_pull(adapter.version)
        self._folder.evict_beyond(max(0, self._max_bytes - adapter.size_bytes))
        return folder

    def _end_pull(self, adapter: Adapter) -> int:
        """Put what was downloaded in its place; bytes in the cache then."""
        self._folder.end_pull(adapter.version)
        return self._folder.evict_beyond(self._max_bytes)

    async def _download_files(self, adapter: Adapter, folder: Path) -> bool:
        """Fetch every file; whether all are what the manifest says."""
        lanes = asyncio.Semaphore(FILES_AT_ONCE)

        async def download(file: AdapterFile) -> bool:
            async with lanes:
                return await self._in_thread(self._download, adapter, file, folder)

        # All must have ended before the folder is removed or used again, also when one fails.
        results = await asyncio.gather(*map(download, adapter.files), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return all(results)

    def _download(self, adapter: Adapter, file: AdapterFile, folder: Path) -> bool:
        try:
            key = file_key(adapter.owner, adapter.name, adapter.version, file.name)
            self._store.download(key, folder / file.name, file.size_bytes)
        except NotFound:
            raise NotFound(f"adapter version {adapter.exact_name} is no longer in the object store", param="model") from None
        return hash_file(folder / file.name) == file

    async def _in_thread(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, functools.partial(call, *args, **kwargs))


async def _pause(adapter: Adapter, deadline: float) -> None:
    """Wait a moment for another process's lock."""
    if time.monotonic() > deadline:
        raise _too_slow(adapter)
    await asyncio.sleep(LOCK_POLL_SECONDS)


def _too_slow(adapter: Adapter) -> Unavailable:
    return Unavailable(f"adapter {adapter.exact_name} is still being downloaded: try again")


def _disk_failed(adapter: Adapter, error: OSError) -> Unavailable:
    logger.error("cache_disk_failed", extra={"adapter": adapter.exact_name, "error": str(error)})
    if error.errno in _FULL:
        return Unavailable(
            f"the adapter cache's disk is full, so {adapter.exact_name} cannot be loaded: the operator has to free space on it"
        )
    return Unavailable(f"the adapter cache's disk failed, so {adapter.exact_name} cannot be loaded: try again")
