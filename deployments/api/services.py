"""What the routes need, built by the gateway and handed in: no route makes anything, and none imports ray."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from fastapi import Request

from adapters_store.access import Viewer
from adapters_store.adapter import Adapter
from adapters_store.errors import InvalidName, NotFound, NotReady
from adapters_store.names import ModelRef
from configs.settings import Settings

if TYPE_CHECKING:
    from adapters_store.imports import Imports
    from adapters_store.registry import Registry
    from adapters_store.resolved import Resolved
    from adapters_store.resolver import Resolver
    from adapters_store.validate import Fit
    from deployments.api.admission import Tryouts
    from deployments.api.auth import Authenticator
    from deployments.api.metrics import Metrics
    from deployments.api.resumable import ResumableUploads
    from deployments.api.shadow import Shadows
    from deployments.api.trials import TrialCounts
    from deployments.api.warming import Warming
    from deployments.dispatch import Answer
    from deployments.waking import Waking
    from deployments.warming import Warmer

T = TypeVar("T")


class ChatDispatch(Protocol):
    """Sends a chat to a replica; `deployments/dispatch.py`."""

    async def open(self, request_id: str, base: str, model: str, adapter: Adapter | None, body: bytes, stream: bool) -> Answer: ...


@dataclass(frozen=True, slots=True)
class Target:
    """What a request's `model` named: a base model, and the adapter on it if one was."""

    base: str
    adapter: Adapter | None
    ref: ModelRef | None = None  # of an adapter: how it was named, and what that name meant
    resolved: Resolved | None = None

    @property
    def version(self) -> str:
        """What answers, exactly: for x-lorikeet-version."""
        return self.adapter.exact_name if self.adapter else self.base


@dataclass(frozen=True, slots=True)
class Services:
    """The gateway's parts. `inspect` validates a folder against
    the base models, `readiness` tells, for each base model, what state it is in ("ready" when it would answer)."""

    settings: Settings
    auth: Authenticator
    registry: Registry
    resolver: Resolver
    dispatch: ChatDispatch
    waking: Waking
    metrics: Metrics
    trials: TrialCounts
    shadows: Shadows
    warmer: Warmer
    warming: Warming
    inspect: Callable[[Path], Fit]
    tryouts: Tryouts
    threads: Executor
    uploads: Path
    uploads_at_once: asyncio.Semaphore
    resumable: ResumableUploads
    imports: Imports
    readiness: Callable[[], Awaitable[Mapping[str, str]]]
    started_at: int
    bases: frozenset[str]

    async def run(self, function: Callable[[], T]) -> T:
        """Run a blocking call (the store, the disk) in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, function)

    async def target(self, model: str, viewer: Viewer, person: str | None = None, *, tries: bool = False) -> Target:
        """The base model or adapter that `model` names, if `viewer` may see it; for `person` it may be an alias's canary.

        With `tries`, one that waits is tried first, which may wake its base model.

        Raises NotFound, NotReady, StoreUnavailable, InvalidAdapter (an adopted folder).
        """
        if model in self.bases:
            return Target(model, None)
        try:
            ref = ModelRef.parse(model)
        except InvalidName as error:
            raise NotFound(f"model {error.message}. GET /api/v1/models lists what there is", param="model") from None
        resolved = await self._resolve(ref, viewer, tries)
        adapter = resolved.adapter if person is None else resolved.for_person(ref, person)
        if adapter.base not in self.bases:  # a canary may be of another base, and that may be taken away while it runs
            adapter = resolved.adapter
        if adapter.base not in self.bases:
            raise NotFound(
                f"{model} is an adapter of {adapter.base}, which is not served here: ask for one of GET /api/v1/models", param="model"
            )
        return Target(adapter.base, adapter, ref, resolved)

    async def _resolve(self, ref: ModelRef, viewer: Viewer, tries: bool) -> Resolved:
        try:
            return await self.resolver.resolve(ref, viewer)
        except NotReady as waiting:
            if not tries:
                raise
            await self.tryouts.of_name(waiting)
            self.resolver.forget(ref.owner, ref.name)
            return await self.resolver.resolve(ref, viewer)

    async def settle(self, owner: str, name: str) -> None:
        """After a change of an adapter: wait out the other gateways' leases on what they read before it."""
        self.resolver.forget(owner, name)
        await asyncio.sleep(self.resolver.lease_seconds)


def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services
