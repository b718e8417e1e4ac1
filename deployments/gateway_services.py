"""What a gateway's routes need, put together over the store and the ways to the replicas. `gateway.py` calls it, once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from adapters_store.adoption import AdoptionRules
from adapters_store.bases import Bases
from adapters_store.imports import Imports
from adapters_store.keys import KeyRing
from adapters_store.objects import ObjectStore
from adapters_store.registry import Registry
from adapters_store.resolver import Resolver, ResolverLimits
from adapters_store.trials import Trials
from configs.settings import Settings, SharedSettings
from deployments.api.admission import Tryouts
from deployments.api.auth import Authenticator
from deployments.api.metrics import Metrics
from deployments.api.resumable import ResumableUploads
from deployments.api.services import Services
from deployments.api.shadow import Shadows
from deployments.api.trials import TrialCounts
from deployments.api.warming import Warming
from deployments.dispatch import ChatHandle, Dispatch, DispatchLimits
from deployments.fleet import Fleet
from deployments.readiness import Readiness
from deployments.stream import FrameReceiver
from deployments.waking import Patience, Waking
from deployments.warming import Warmer


@dataclass(frozen=True, slots=True)
class Ways:
    """How a gateway reaches replicas: straight (`fleet`, `receiver`), or through Serve (`handle_of`). `awake` says whether a base model
    has a replica, `readiness` what state each is in."""

    receiver: FrameReceiver
    fleet: Fleet
    handle_of: Callable[[str], ChatHandle]
    awake: Callable[[str], bool]
    readiness: Readiness


def gateway_services(settings: SharedSettings, home: Path, store: ObjectStore, threads: Executor, bases: Bases, ways: Ways) -> Services:
    """Serving no base model yet. Call it in the gateway's event loop."""
    uploads, gateway = settings.uploads, settings.gateway
    adoption = AdoptionRules(bases.inspect, max_bytes=uploads.max_bytes, scratch=home / "uploads")
    registry = Registry(store, adoption=adoption, tries=uploads.try_on_replica)
    leases = ResolverLimits(lease_seconds=settings.store.lease_seconds, stale_seconds=settings.store.stale_seconds)
    resolver = Resolver(registry, threads, leases)
    limits = DispatchLimits(gateway.max_requests_at_once, gateway.stream_buffer_bytes, gateway.request_timeout_seconds)
    dispatch = Dispatch(ways.receiver, ways.handle_of, ways.fleet, limits)
    waking = Waking(ways.readiness, Patience(gateway.first_token_timeout_seconds), ways.fleet.knows)
    metrics = Metrics(lambda: ways.receiver.open_count, lambda: waking.count)
    trials = TrialCounts(Trials(store), registry, resolver, threads, metrics)
    warmer = Warmer(ways.receiver, ways.fleet)
    warming = Warming(warmer, registry, threads, gateway.warm_timeout_seconds)
    return Services(
        settings=Settings.model_construct(**dict(settings), models=()),
        auth=Authenticator(KeyRing(store), threads),
        registry=registry,
        resolver=resolver,
        dispatch=dispatch,
        waking=waking,
        metrics=metrics,
        trials=trials,
        shadows=Shadows(dispatch, trials, gateway.shadows_at_once),
        warmer=warmer,
        warming=warming,
        inspect=bases.inspect,
        tryouts=Tryouts(dispatch, waking, warming, registry, threads, ways.awake, uploads.trial_timeout_seconds),
        threads=threads,
        uploads=home / "uploads",
        uploads_at_once=asyncio.Semaphore(uploads.at_once),
        resumable=ResumableUploads(store, uploads),
        imports=Imports(store.url, settings.imports, uploads),
        readiness=ways.readiness,
        started_at=int(time.time()),
        bases=frozenset(),
    )
