"""A replica: one engine, and the node's adapters for it. Chats come straight from gateways, or by Serve's `chat` (`reception.py`).

    gateway ── ChatCall ──▶ reception ──▶ pin and load the adapter ──▶ engine ──▶ frames back on the side channel
            ── WarmCall ──▶           ──▶ likewise (`warms.py`), and no more

Gateways learn from Serve where to call (`record_replica_metadata`), and Serve from here how much there is to do
(`record_autoscaling_stats`).

Serve builds it from `app.py`; no `from __future__ import annotations` here, Serve reads the annotations.
"""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray.util

from adapters_store.base_model import BaseProfile, read_profile, save_profile
from adapters_store.cache import NodeCache
from adapters_store.objects import open_store
from configs.settings import Settings
from deployments.autoscaling import stats
from deployments.engine.adapters import EngineAdapters, UsedAdapter
from deployments.engine.source import fetch_model
from deployments.interpreter import hand_over_soon
from deployments.logs import kept_serve_log, set_up_logs
from deployments.messages import ChatCall, head_payload
from deployments.reception import Reception
from deployments.stream import AnswerFrames
from deployments.warms import Warms

logger = logging.getLogger(__name__)


class Replica:
    """One replica of a base model. Built by Serve in an actor of its own."""

    async def __init__(self, settings: Settings, model_id: str, home: str, store_url: str) -> None:  # type: ignore[misc]  # Serve awaits it
        set_up_logs(settings.log.level)
        hand_over_soon()
        self._model = next(model for model in settings.models if model.id == model_id)
        self._threads = ThreadPoolExecutor(settings.cache.pulls_at_once + 4, thread_name_prefix="store")
        store = open_store(store_url, timeout_seconds=settings.store.timeout_seconds)
        loop = asyncio.get_running_loop()
        folder = await loop.run_in_executor(self._threads, fetch_model, self._model, Path(home))
        with kept_serve_log():
            from deployments.engine.vllm import VllmEngine  # here: whoever deploys this class need not import vLLM for seconds

            self._engine = await VllmEngine.start(self._model, folder)
        adaptable = await self._engine.adaptable_modules()
        profile = await loop.run_in_executor(self._threads, self._profile, folder, adaptable)
        await loop.run_in_executor(self._threads, save_profile, store, profile)
        cache = NodeCache(
            Path(home) / "cache",
            store,
            max_bytes=settings.cache.max_bytes,
            pulls_at_once=settings.cache.pulls_at_once,
            pull_timeout_seconds=settings.cache.pull_timeout_seconds,
        )
        self._adapters = EngineAdapters(self._engine, cache, slots=self._model.lora.max_loras, room=self._model.lora.max_cpu_loras)
        # After the engine's processes have started: none may inherit its sockets.
        node = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        self._reception = Reception(node, self._answer, Warms(self._adapters).load)
        logger.info("replica_ready", extra={"model": model_id})

    async def chat(self, call: ChatCall) -> None:
        """Answer one chat on the side channel; returns when the answer, or the error that ended it, has been sent."""
        await self._reception.chat(call)

    async def running(self) -> int:
        """Requests that the engine has not finished; tests and `lorikeet status` ask."""
        return self._engine.running

    async def record_replica_metadata(self) -> dict[str, Any]:
        """Serve tells it to every router that hears of this replica."""
        return dict(self._reception.metadata)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve's autoscaler goes by (`autoscaling.py`), in place of the calls that gateways' handles count."""
        return stats(self._reception.load, await self._engine.load())

    async def check_health(self) -> None:
        """Called by Serve; a replica whose engine has died is replaced."""
        await self._engine.check()

    async def __del__(self) -> None:
        """Serve awaits it when no call of its own runs any more, for as long as a request may take."""
        reception = getattr(self, "_reception", None)
        if reception is not None:
            await reception.close()
        engine = getattr(self, "_engine", None)
        if engine is not None:
            await self._adapters.close()
            engine.stop()
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def _answer(self, call: ChatCall) -> None:
        if call.adapter is None:
            await self._engine.chat(call, None, self._outlet(call, None))
            return
        async with self._adapters.use(call.adapter) as used:
            await self._engine.chat(call, used, self._outlet(call, used))

    def _outlet(self, call: ChatCall, used: UsedAdapter | None) -> AnswerFrames:
        head = head_payload(used.cold, used.wait_seconds) if used is not None else None
        return AnswerFrames(self._reception.frames, call.frames_to, call.stream_id, head)

    def _profile(self, folder: Path, adaptable: tuple[str, ...] | None) -> BaseProfile:
        model = self._model
        return read_profile(
            folder, id=model.id, names=(model.id, model.source, *model.names), max_rank=model.lora.max_rank, adaptable=adaptable
        )
