"""The product's replica, once on each node: with a cache of its own there, and a count of what it pulls and loads.

It also tells Serve which adapters it holds or loads, as Serve's multiplexing wrapper does of its models: to the controller, within 0.1 s.

No `from __future__ import annotations` here: Serve reads the annotations.
"""

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve._private.common import RequestRoutingInfo
from ray.serve._private.constants import PUSH_MULTIPLEXED_MODEL_IDS_INTERVAL_S
from ray.serve.context import _get_global_client

from configs.settings import Settings
from deployments.messages import ChatCall
from deployments.replica import Replica

ANSWERED = "answered"
COUNTED = ("adapter_loaded", "adapter_unloaded", "adapter_pulled")


class NodeReplica(Replica):
    async def __init__(self, settings: Settings, model_id: str, home: str, store_url: str) -> None:  # type: ignore[misc]
        context = serve.get_replica_context()
        folder = Path(home) / "nodes" / str(context.replica_id.unique_id)
        folder.mkdir(parents=True)
        await super().__init__(settings, model_id, str(folder), store_url)
        self._events = EventFile(folder / "events.jsonl")
        for name in ("deployments.engine.adapters", "adapters_store.cache"):
            logging.getLogger(name).addHandler(self._events)
        self._reporting = asyncio.get_running_loop().create_task(self._report())

    async def _answer(self, call: ChatCall) -> None:
        self._events.write(ANSWERED)
        await super()._answer(call)

    async def _report(self) -> None:
        client: Any = _get_global_client()
        replica_id, reported = serve.get_replica_context().replica_id, None
        while True:
            await asyncio.sleep(PUSH_MULTIPLEXED_MODEL_IDS_INTERVAL_S)
            held = sorted({*self._adapters._loaded, *self._adapters._loading})
            if held != reported:
                reported = held
                client.record_request_routing_info(RequestRoutingInfo(replica_id=replica_id, multiplexed_model_ids=held))


class EventFile(logging.Handler):
    """Writes the events that are counted, one a line: what a replica's log says, where the benchmark finds it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("a", buffering=1)

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg in COUNTED:
            fields = {name: getattr(record, name) for name in ("adapter", "found", "seconds") if hasattr(record, name)}
            self.write(record.msg, **fields)

    def write(self, event: str, **fields: Any) -> None:
        self._file.write(json.dumps({"event": event, **fields}) + "\n")
