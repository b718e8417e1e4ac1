"""A gateway for each policy: the product's, on a port of its own, with how it finds a replica exchanged where the policy is not ours.

No `from __future__ import annotations` here: Serve reads the annotations.
"""

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import uvicorn

from benchmarks.placement.policies import PLACES, POLICY, MultiplexedHandle
from benchmarks.placement.settings import SERVE, url_file
from configs.settings import SharedSettings
from deployments.calls import ReplicaAddress
from deployments.fleet import Place
from deployments.gateway import Gateway


class PolicyGateway(Gateway):
    async def __init__(self, settings: SharedSettings, home: str, store_url: str, policy: str) -> None:  # type: ignore[misc]
        os.environ[POLICY] = policy  # before the first handle makes its router
        self._policy = policy
        await super().__init__(settings=settings, home=home, store_url=store_url)
        listener = socket.create_server(("127.0.0.1", 0))  # uvicorn itself would end the process's loop where a port is taken
        server = uvicorn.Server(uvicorn.Config(self._app, log_level="warning", lifespan="off"))
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        self._http = asyncio.get_running_loop().create_task(server._serve([listener]))
        url_file(Path(home), policy).write_text(f"http://127.0.0.1:{listener.getsockname()[1]}")

    @property
    def _place(self) -> Place:
        return PLACES[self._policy]

    def _addresses_of(self, base: str) -> tuple[ReplicaAddress, ...]:
        return () if self._policy == SERVE else super()._addresses_of(base)

    def _handle_of(self, base: str) -> Any:
        handle = super()._handle_of(base)
        return MultiplexedHandle(handle) if self._policy == SERVE else handle
