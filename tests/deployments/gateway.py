"""The whole HTTP contract in one process: the app over a real store in a folder, with a dispatch that answers as the test says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from adapters_store.access import Scope
from adapters_store.adapter import Adapter
from adapters_store.errors import Unavailable
from adapters_store.imports import Imports
from adapters_store.keys import KeyRing
from adapters_store.objects import open_store
from adapters_store.registry import Registry
from adapters_store.resolver import Resolver, ResolverLimits
from adapters_store.trials import Trials
from adapters_store.validate import Fit
from configs.settings import ModelSettings, Settings
from deployments.api.admission import Tryouts
from deployments.api.app import HttpApp
from deployments.api.auth import Authenticator
from deployments.api.metrics import Metrics
from deployments.api.resumable import ResumableUploads
from deployments.api.services import Services
from deployments.api.shadow import Shadows
from deployments.api.trials import TrialCounts
from deployments.api.warming import Warming
from deployments.waking import Patience, Waking
from deployments.warming import Loaded, Warmed

KEY = "lk-unit-test"
BASE = "tiny"
CHAT: dict[str, Any] = {"model": BASE, "messages": [{"role": "user", "content": "hi"}]}


class FakeAnswer:
    """Stands for `dispatch.Answer`."""

    def __init__(self, parts: list[bytes], error: Exception | None = None, cold: str | None = None, wait_ms: float | None = None) -> None:
        self.cold = cold
        self.wait_ms = wait_ms
        self.way = "direct"
        self.closed = 0
        self._parts = parts
        self._error = error

    async def parts(self, take: Callable[[bytes], bool] | None = None) -> AsyncIterator[bytes]:
        for part in self._parts:
            yield part
            await asyncio.sleep(0)
        if self._error is not None:
            raise self._error

    async def whole(self) -> bytes:
        return b"".join([part async for part in self.parts()])

    def close(self) -> None:
        self.closed += 1


def _open_gate() -> asyncio.Event:
    gate = asyncio.Event()
    gate.set()
    return gate


@dataclass
class FakeDispatch:
    """Answers every chat with `answer`, or raises `error`, once `gate` is open; keeps what it was asked."""

    answer: FakeAnswer = field(default_factory=lambda: FakeAnswer([b'{"whole": "answer"}']))
    error: Exception | None = None
    gate: asyncio.Event = field(default_factory=_open_gate)
    asked: list[tuple[str, str, str, Adapter | None, bytes, bool]] = field(default_factory=list)

    async def open(self, request_id: str, base: str, model: str, adapter: Adapter | None, body: bytes, stream: bool) -> FakeAnswer:
        self.asked.append((request_id, base, model, adapter, body, stream))
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return self.answer


@dataclass
class FakeWarmer:
    """Stands for `warming.Warmer`, with `running` replicas; keeps what was to be loaded, and what in place of what."""

    running: int = 1
    error: Exception | None = None
    loaded: list[tuple[Adapter, int]] = field(default_factory=list)
    succeeded: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)  # by version
    on_succeed: Callable[[], object] = lambda: None

    def reaches(self, base: str) -> bool:
        return self.running > 0

    async def load(self, adapter: Adapter, replicas: int, timeout_seconds: float) -> Loaded:
        self.loaded.append((adapter, replicas))
        if not self.running:
            raise Unavailable(f"{adapter.base} has no replica that runs")
        return Loaded((Warmed("store", 812.4),) * min(replicas, self.running), self.running)

    async def succeed(self, adapter: Adapter, olds: Sequence[Adapter], timeout_seconds: float) -> None:
        self.succeeded.append((adapter.version, tuple(old.version for old in olds)))
        self.on_succeed()
        if self.error is not None:
            raise self.error


@dataclass
class Gateway:
    """A running app. `inspected` may be replaced to judge uploads otherwise, `states` to change what /readyz hears."""

    client: httpx.AsyncClient
    dispatch: FakeDispatch
    warmer: FakeWarmer
    services: Services
    uploads: Path
    states: dict[str, str]
    app: HttpApp
    engine: Any = None  # what trials ask, where a test has put one there

    @property
    def staged(self) -> list[Path]:
        """What uploads have left behind."""
        return list(self.uploads.rglob("*"))


@contextlib.asynccontextmanager
async def gateway(
    folder: Path,
    *,
    inspect: Callable[[Path], Fit] | None = None,
    keys: Any = None,
    store_url: str | None = None,
    tries: bool = False,
    **settings: Any,
) -> AsyncIterator[Gateway]:
    """The app of a gateway with the base model `tiny`; `settings` overlay the tree, e.g. uploads={"at_once": 1}."""
    tree = Settings(models=(ModelSettings(id=BASE, source="/nowhere"),), **{"store": {"lease_seconds": 0.01}, **settings})
    store = open_store(store_url or f"file://{folder / 'store'}")
    if keys is None:
        keys = KeyRing(store)
        keys.create("test", secret=KEY, scopes=[Scope.ADMIN])
    threads = ThreadPoolExecutor(8)
    dispatch, warmer, states = FakeDispatch(), FakeWarmer(), {BASE: "ready"}

    async def readiness() -> Mapping[str, str]:
        return states

    registry = Registry(store, tries=tries)
    waking = Waking(readiness, Patience(30.0, look_seconds=0.05, comment_seconds=0.05))
    waking.serve(tree.models)
    resolver = Resolver(registry, threads, ResolverLimits(lease_seconds=tree.store.lease_seconds, stale_seconds=60.0))
    metrics = Metrics(lambda: 3.0, lambda: waking.count)
    trials = TrialCounts(Trials(store), registry, resolver, threads, metrics)
    warming = Warming(warmer, registry, threads, tree.gateway.warm_timeout_seconds)  # type: ignore[arg-type]
    services = Services(
        settings=tree,
        auth=Authenticator(keys, threads),
        registry=registry,
        resolver=resolver,
        dispatch=dispatch,  # type: ignore[arg-type]
        waking=waking,
        metrics=metrics,
        trials=trials,
        shadows=Shadows(dispatch, trials, tree.gateway.shadows_at_once),  # type: ignore[arg-type]
        warmer=warmer,  # type: ignore[arg-type]
        warming=warming,
        inspect=inspect or (lambda _: Fit(BASE, 8)),
        tryouts=Tryouts(dispatch, waking, warming, registry, threads, lambda base: states[base] == "ready", 30.0),  # type: ignore[arg-type]
        threads=threads,
        uploads=folder / "uploads",
        uploads_at_once=asyncio.Semaphore(tree.uploads.at_once),
        resumable=ResumableUploads(store, tree.uploads),
        imports=Imports(store.url, tree.imports, tree.uploads),
        readiness=readiness,
        started_at=1,
        bases=frozenset([BASE]),
    )
    app = HttpApp(services)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    headers = {"authorization": f"Bearer {KEY}"}
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers, timeout=30) as client:
            yield Gateway(client, dispatch, warmer, services, folder / "uploads", states, app)
    finally:
        threads.shutdown(wait=True)
