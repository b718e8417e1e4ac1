"""Which adapters an engine holds, and for how long: the bridge between the node's disk cache and vLLM.

A request `use`s its adapter from before the engine hears of it until after its last token. While anyone uses an adapter, and for as
long after as there is room (`max_cpu_loras`), its files stay pinned on disk, because vLLM reads the folder again when it has dropped the
weights from memory. What nobody uses is given back, `remove_lora` and then unpin: of what was not used lately the least popular, so that
the many adapters that are asked for once do not drive out the few that most requests ask for. Room is made while an adapter is read,
before it is entered: otherwise vLLM would make it, and drop one that is in use or that we still take for loaded.

Inside vLLM an adapter is called `owner/name@version` (the prefix cache's key) and has an integer id of its own, counted up and never
used again (the worker caches' key): a version can never be mistaken for another.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from adapters_store.adapter import Adapter
from adapters_store.own_settings import NOTHING_OWN, OwnSettings, read_own
from deployments.engine.popularity import Popularity

if TYPE_CHECKING:
    from adapters_store.cache import NodeCache, Pin

logger = logging.getLogger(__name__)


class LoraEngine(Protocol):
    """What an engine does with an adapter's folder: vLLM, or the null worker of the benchmarks."""

    async def load_adapter(self, name: str, number: int, path: str) -> None: ...

    async def unload_adapter(self, name: str, number: int) -> None: ...


@dataclass(slots=True)
class LoadedAdapter:
    """An adapter the engine knows. `found` is where the first request of this load found it; `users` are requests in flight."""

    name: str
    number: int
    path: str
    pin: Pin
    found: str
    own: OwnSettings
    users: int = 0


@dataclass(frozen=True, slots=True)
class UsedAdapter:
    """What a request needs of its adapter. `cold` is gpu, cpu, disk or store: where this request found it; `own` applies to the request."""

    name: str
    number: int
    path: str
    cold: str
    wait_seconds: float
    own: OwnSettings = NOTHING_OWN


class EngineAdapters:
    """The adapters of one engine. `slots` are vLLM's max_loras, `room` its max_cpu_loras."""

    def __init__(self, engine: LoraEngine, cache: NodeCache, *, slots: int, room: int) -> None:
        self._engine = engine
        self._cache = cache
        self._slots = slots
        self._room = room
        self._recent = room // 2  # those used last, which stay however rare: what was just warmed is asked for in a moment
        self._popularity = Popularity(room)
        self._next_number = 1
        self._loaded: OrderedDict[str, LoadedAdapter] = OrderedDict()  # by version, least recently used first
        self._loading: dict[str, asyncio.Task[LoadedAdapter]] = {}
        self._waiting: dict[str, int] = {}
        self._entering = 0  # adapters that the engine is reading
        self._leaving: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def use(self, adapter: Adapter) -> AsyncIterator[UsedAdapter]:
        """Have the engine hold `adapter` for as long as the context lasts.

        The first request for an adapter pulls and loads it; those that come meanwhile wait for the same load, and no request waits
        for another adapter's. Raises StoreUnavailable, Unavailable.
        """
        started = time.monotonic()
        key = adapter.exact_name
        cold = self._residency(key)
        loaded = self._loaded.get(key)
        if loaded is None:
            loaded = await self._load_shared(key, adapter)
            cold = loaded.found
        loaded.users += 1
        self._loaded.move_to_end(key)
        self._popularity.count(key)
        try:
            yield UsedAdapter(loaded.name, loaded.number, loaded.path, cold, time.monotonic() - started, loaded.own)
        finally:
            loaded.users -= 1
            self._make_room()

    def holds(self, name: str) -> bool:
        """Whether the engine holds, or is just loading, the adapter of this exact name."""
        return name in self._loaded or name in self._loading

    async def close(self) -> None:
        for task in (*self._loading.values(), *self._leaving):
            task.cancel()
        for loaded in self._loaded.values():
            self._cache.unpin(loaded.pin)
        self._loaded.clear()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(loaded.name for loaded in self._loaded.values())

    def _residency(self, key: str) -> str:
        """gpu or cpu for a loaded adapter, by recency: vLLM keeps the last `slots` used in its slots and does not tell which."""
        recent = list(self._loaded)[-self._slots :]
        return "gpu" if key in recent else "cpu"

    async def _load_shared(self, key: str, adapter: Adapter) -> LoadedAdapter:
        task = self._loading.get(key)
        if task is None:
            task = self._loading[key] = asyncio.create_task(self._load(key, adapter))
            task.add_done_callback(lambda _: self._loading.pop(key, None))
        self._waiting[key] = self._waiting.get(key, 0) + 1
        try:
            return await asyncio.shield(task)  # one waiter that goes away must not take the others' load with it
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key]

    async def _load(self, key: str, adapter: Adapter) -> LoadedAdapter:
        started = time.monotonic()
        pin = await self._cache.pin(adapter)
        number = self._next_number
        self._next_number += 1
        self._entering += 1
        self._make_room()  # the engine is told to before it is told to enter what it reads now, and does one after the other
        try:
            own = await asyncio.to_thread(read_own, pin.path)
            await self._engine.load_adapter(adapter.exact_name, number, str(pin.path))
        except BaseException:
            self._cache.unpin(pin)
            raise
        finally:
            self._entering -= 1
        seconds = time.monotonic() - started
        loaded = self._loaded[key] = LoadedAdapter(adapter.exact_name, number, str(pin.path), pin, pin.found, own)
        logger.info("adapter_loaded", extra={"adapter": adapter.exact_name, "found": pin.found, "seconds": round(seconds, 3)})
        return loaded

    def _make_room(self) -> None:
        """Give back what nobody uses until there is room in the engine's CPU cache for what is being read. Nobody waits for it."""
        while len(self._loaded) + self._entering > self._room:
            idle = self._next_to_go()
            if idle is None:
                return  # all in use: vLLM swaps among them, from the pinned files
            leaving = asyncio.get_running_loop().create_task(self._give_back(self._loaded.pop(idle)))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)

    async def _give_back(self, gone: LoadedAdapter) -> None:
        try:
            await self._engine.unload_adapter(gone.name, gone.number)
        except Exception:  # the request that made room is not at fault; an engine that died says so elsewhere
            logger.warning("adapter_unload_failed", extra={"adapter": gone.name}, exc_info=True)
        finally:
            self._cache.unpin(gone.pin)
        logger.info("adapter_unloaded", extra={"adapter": gone.name})

    def _next_to_go(self) -> str | None:
        """Of what nobody uses and was not used lately the least popular, and of equals the least recently used. None: all are in use."""
        idle = [key for key, loaded in self._loaded.items() if not loaded.users and key not in self._waiting]
        recent = set(itertools.islice(reversed(self._loaded), self._recent))
        older = [key for key in idle if key not in recent]
        return min(older, key=self._popularity.of) if older else next(iter(idle), None)
