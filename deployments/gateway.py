"""The ingress deployment: a gateway replica speaks HTTP behind HAProxy, and builds what the routes need.

Gateways keep nothing that another could miss: names come from the store under a lease, requests live in one process from first to last
byte. Which base models they serve may change while they run (`record.py`): then the routes get other `Services`, and requests that run
keep theirs. Serve builds it from `app.py`; no `from __future__ import annotations` here, Serve reads the annotations.
"""

import asyncio
import dataclasses
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray.util
from ray import serve
from ray.serve.handle import DeploymentHandle

from adapters_store.bases import Bases
from adapters_store.errors import NotFound
from adapters_store.objects import open_store
from configs.settings import ModelSettings, Settings, SharedSettings
from deployments import record
from deployments.api.app import HttpApp
from deployments.calls import ReplicaAddress
from deployments.fleet import Fleet, Place
from deployments.gateway_services import Ways, gateway_services
from deployments.interpreter import hand_over_soon
from deployments.logs import set_up_logs
from deployments.names import REPLICA, app_of
from deployments.placement import placed
from deployments.readiness import Readiness
from deployments.record import Deployed
from deployments.router import addresses_of, start_watching
from deployments.stream import FrameReceiver

logger = logging.getLogger(__name__)

_THREADS = 32
WATCH_SECONDS = 0.5  # how often a gateway looks whether other models are to be served


@serve.ingress()
class Gateway:
    """One gateway process."""

    async def __init__(self, settings: SharedSettings, home: str, store_url: str, watch: bool = True) -> None:  # type: ignore[misc]  # Serve awaits it
        """`watch`: the models to serve are in the cluster's record; otherwise Serve says them, by `reconfigure`."""
        set_up_logs(settings.log.level)
        hand_over_soon()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="gateway")
        self._receiver = FrameReceiver(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
        store = open_store(store_url, timeout_seconds=settings.store.timeout_seconds)
        self._handles: dict[str, DeploymentHandle[Any]] = {}
        self._fleet = Fleet(self._receiver, self._addresses_of, self._place)
        self._bases = Bases(store)
        self._readiness = Readiness((), self._threads)
        ways = Ways(self._receiver, self._fleet, self._handle_of, self._awake, self._readiness)
        self._services = gateway_services(settings, Path(home), store, self._threads, self._bases, ways)
        self._app = HttpApp(self._services)
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(work()) for work in (self._services.trials.keep_reporting, self._services.tryouts.keep_trying)]
        if watch:
            seen = await self._services.run(record.read)
            if seen is None:
                raise RuntimeError("nothing is deployed on this Ray cluster: start with `lorikeet up`")
            self._serve(Deployed.from_json(seen).served)
            self._tasks.append(asyncio.get_running_loop().create_task(self._watch(seen)))

    def __serve_build_asgi_app__(self) -> HttpApp:
        return self._app

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Serve's own way to tell what is served, for a cluster that an operator keeps by a file (`serve_config.py`)."""
        self._serve(Settings.model_validate(config).models)

    async def states(self) -> Mapping[str, str]:
        """What state each base model is in; the launcher asks through Serve."""
        return await self._services.readiness()

    def _serve(self, models: tuple[ModelSettings, ...]) -> None:
        """From here on requests find these models, and no others."""
        ids = [model.id for model in models]
        known = self._handles
        self._handles = {id: known.get(id) or serve.get_deployment_handle(REPLICA, app_of(id), _check_exists=False) for id in ids}
        for handle in self._handles.values():
            start_watching(handle)
        self._fleet.keep(ids)
        self._bases.serve(ids)
        self._readiness.watch(ids)
        self._services.waking.serve(models)
        settings = self._services.settings.model_copy(update={"models": models})
        self._services = dataclasses.replace(self._services, settings=settings, bases=frozenset(ids))
        self._app.use(self._services)
        logger.info("models_served", extra={"models": ", ".join(ids)})

    def _awake(self, base: str) -> bool:
        """Whether a trial would find a replica: a base that is served, and has one."""
        return base in self._handles and self._fleet.knows(base)

    def _handle_of(self, base: str) -> DeploymentHandle[Any]:
        handle = self._handles.get(base)
        if handle is None:  # a request that came before the model was removed, and has to be sent again
            raise NotFound(f"model {base} is no longer served: ask for one of GET /api/v1/models", param="model")
        return handle

    @property
    def _place(self) -> Place:
        return placed

    def _addresses_of(self, base: str) -> tuple[ReplicaAddress, ...]:
        return addresses_of(self._handle_of(base))

    async def _watch(self, seen: bytes) -> None:
        """Follow the cluster's record. While it cannot be read, what is known is served on."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                found = await self._services.run(record.read)
                if found is not None and found != seen:
                    seen, served = found, Deployed.from_json(found).served
                    if served != self._services.settings.models:
                        self._serve(served)
            except Exception:
                logger.warning("record_unread", exc_info=True)

    async def __del__(self) -> None:
        receiver = getattr(self, "_receiver", None)
        if receiver is not None:
            for task in self._tasks:
                task.cancel()
            self._services.shadows.close()
            self._services.tryouts.close()
            self._fleet.close()
            receiver.close()
            self._threads.shutdown(wait=False, cancel_futures=True)
