"""Copies of requests for an alias's shadow: sent when the real answer has begun, counted, and dropped.

A copy never holds up the real request, whose first token, or whole answer, is there before it is sent; its answer goes nowhere and is not
logged. There is room for a few at once: what comes beyond is not made up for, and counted as dropped. A replica's batch is shared all the
same, so a shadow costs what as many more requests cost.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from typing import TYPE_CHECKING

from adapters_store.canary import ALL
from adapters_store.errors import Overloaded

if TYPE_CHECKING:
    from adapters_store.resolved import ShadowArm
    from deployments.api.services import ChatDispatch, Target
    from deployments.api.trials import TrialCounts, Watch


class Shadows:
    """`at_once` copies run at most."""

    def __init__(self, dispatch: ChatDispatch, trials: TrialCounts, at_once: int) -> None:
        self._dispatch = dispatch
        self._trials = trials
        self._at_once = at_once
        self._tasks: set[asyncio.Task[None]] = set()

    def copy(self, target: Target, model: str, body: bytes, stream: bool) -> None:
        """Ask the shadow of `target` the same, if it has one and this request is of its share. Returns at once."""
        shadow = target.resolved.shadow if target.resolved is not None else None
        if shadow is None or target.resolved is None or target.adapter != target.resolved.adapter:
            return
        if random.random() * ALL >= shadow.shadow.share:  # noqa: S311 - a sample
            return
        if len(self._tasks) >= self._at_once:
            self._trials.watch_copy(target, shadow).dropped()
            return
        task = asyncio.get_running_loop().create_task(self._ask(target, shadow, model, body, stream))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def running(self) -> int:
        return len(self._tasks)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _ask(self, target: Target, shadow: ShadowArm, model: str, body: bytes, stream: bool) -> None:
        watch = self._trials.watch_copy(target, shadow)
        try:
            await self._drain(watch, shadow, model, body, stream)
        except Overloaded:
            watch.dropped()  # by a queue that is full with real ones
        except Exception as error:
            watch.ended(error)
        else:
            watch.ended()

    async def _drain(self, watch: Watch, shadow: ShadowArm, model: str, body: bytes, stream: bool) -> None:
        adapter = shadow.adapter
        answer = await self._dispatch.open(f"shadow-{secrets.token_hex(16)}", adapter.base, model, adapter, body, stream)
        try:
            if stream:
                watch.first_token()
            async for _ in answer.parts():
                pass
        finally:
            answer.close()
