"""Has what was published tried on a replica before it is served, and tells the store how that went.

    upload ──▶ pending ──┬──▶ a replica is awake: tried while the upload waits ──▶ ready, or rejected with every reason
                         └──▶ none is: 202, and tried as soon as one is, or when somebody asks for the name

A version is tried once at a time in each gateway. Two gateways may try the same one: the store lets one outcome count.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import json
import logging
import random
import secrets
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from adapters_store.adapter import Adapter
from adapters_store.admissions import PENDING, REJECTED, Admission
from adapters_store.errors import InternalError, LorikeetError, NotFound, NotReady, Overloaded, Unavailable
from adapters_store.recent import Recent
from adapters_store.registry import Registry
from deployments.api import tryout

if TYPE_CHECKING:
    from deployments.api.services import ChatDispatch
    from deployments.api.warming import Warming
    from deployments.waking import Waking

LOOK_SECONDS = 2.0  # between two looks for what waits
TRIALS_AT_ONCE = 4  # a trial asks six chats and its golden prompts
TRIALS_MOST = 64  # under way and waiting for their turn, or for their base model to wake; more are refused, or stay pending
RETRY_SECONDS = 5.0
WAITING_AT_ONCE = 2  # of these, for what waits: the others are for uploads, and names that are asked for
LONGEST_PAUSE_SECONDS = 300.0  # between two trials of a version that fails each time by its own fault
FAILURES_KEPT = 1000

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Failed:
    """A trial that came to no end. `not_before` is of time.monotonic."""

    pause_seconds: float
    not_before: float


class Tryouts:
    """`awake` tells whether a base model has a replica, `timeout_seconds` bounds one trial."""

    def __init__(
        self,
        dispatch: ChatDispatch,
        waking: Waking,
        warming: Warming,
        registry: Registry,
        threads: Executor,
        awake: Callable[[str], bool],
        timeout_seconds: float,
    ) -> None:
        self._dispatch = dispatch
        self._waking = waking
        self._warming = warming
        self._registry = registry
        self._threads = threads
        self._awake = awake
        self._timeout_seconds = timeout_seconds
        self._places = asyncio.Semaphore(TRIALS_AT_ONCE)
        self._turns = asyncio.Semaphore(WAITING_AT_ONCE)
        self._failed: Recent[str, _Failed] = Recent(FAILURES_KEPT)
        self._running: dict[str, asyncio.Task[Admission]] = {}

    async def after_publish(self, adapter: Adapter) -> Admission:
        """Try what was just published, if a replica is awake; what it is then. One that could not be tried stays pending."""
        if not self._awake(adapter.base):
            return Admission(PENDING, adapter)
        try:
            return await self._tried(adapter)
        except (Unavailable, Overloaded, NotFound) as error:  # not found: its base model was taken away meanwhile
            logger.warning("trial_put_off", extra={"adapter": adapter.exact_name, "error": error.message})
            return Admission(PENDING, adapter)

    async def of_name(self, waiting: NotReady) -> None:
        """Try what a request has asked for, waking its base model; returns when it is ready or rejected.

        Raises Unavailable, Overloaded when it could not be tried in the time that a request may wait, or too many wait already.
        """
        adapter = (await self._run(lambda: self._registry.admissions.of(waiting.owner, waiting.name, waiting.version))).adapter
        if adapter is not None:
            await self._tried(adapter)

    async def keep_trying(self) -> None:
        """Try what waits and has a replica now, for as long as the gateway runs."""
        after: str | None = None
        while True:
            await asyncio.sleep(LOOK_SECONDS * (0.5 + random.random()))  # noqa: S311 - so that gateways take turns
            try:
                waiting, after = await self._run(functools.partial(self._registry.admissions.waiting, after))
            except LorikeetError as error:
                logger.warning("waiting_versions_unread", extra={"error": error.message})
            except Exception:
                logger.exception("waiting_versions_unread")
            else:
                await asyncio.gather(*(self._try_waiting(adapter) for adapter in waiting if self._is_due(adapter)))

    async def _try_waiting(self, adapter: Adapter) -> None:
        """Try one of what waits. Whatever becomes of it, the others have their turn."""
        async with self._turns:
            try:
                await self._tried(adapter)
            except (Unavailable, Overloaded) as error:
                logger.warning("trial_put_off", extra={"adapter": adapter.exact_name, "error": error.message})
            except LorikeetError as error:
                self._back_off(adapter)
                logger.warning("trial_failed", extra={"adapter": adapter.exact_name, "error": error.message})
            except Exception:
                self._back_off(adapter)
                logger.exception("trial_failed", extra={"adapter": adapter.exact_name})

    def _is_due(self, adapter: Adapter) -> bool:
        failed = self._failed.get(adapter.exact_name)
        return self._awake(adapter.base) and (failed is None or time.monotonic() >= failed.not_before)

    def _back_off(self, adapter: Adapter) -> None:
        """A trial that failed by the version's own fault is not begun again by itself for a while, twice as long each time."""
        failed = self._failed.get(adapter.exact_name)
        pause_seconds = LOOK_SECONDS if failed is None else min(2 * failed.pause_seconds, LONGEST_PAUSE_SECONDS)
        self._failed.put(adapter.exact_name, _Failed(pause_seconds, time.monotonic() + pause_seconds))

    def close(self) -> None:
        for task in self._running.values():
            task.cancel()

    async def _tried(self, adapter: Adapter) -> Admission:
        """The outcome of the trial of `adapter` that runs, or of one that begins now. A waiter that leaves does not end it."""
        task = self._running.get(adapter.exact_name)
        if task is None:
            if len(self._running) >= TRIALS_MOST:
                raise Overloaded(
                    f"{TRIALS_MOST} versions are being tried already, the most at once: try again", retry_after_seconds=RETRY_SECONDS
                )
            # In a context of its own: Serve takes calls that are made at once within one of its requests for one call.
            task = asyncio.get_running_loop().create_task(self._try(adapter), context=contextvars.Context())
            self._running[adapter.exact_name] = task
            task.add_done_callback(lambda _: self._running.pop(adapter.exact_name, None))
        return await asyncio.shield(task)

    async def _try(self, adapter: Adapter) -> Admission:
        admissions = self._registry.admissions
        if not self._awake(adapter.base):  # a model may take minutes to wake, which are none of the trial's
            await tryout.wake(self._asking(adapter))
        async with self._places:
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    own = await self._run(lambda: admissions.own(adapter))
                    reasons = await tryout.faults(self._asking(adapter), adapter, own)
            except TimeoutError:
                self._back_off(adapter)
                raise Unavailable(f"trying {adapter.exact_name} took longer than {self._timeout_seconds:g} s") from None
        # Another gateway may have been quicker: what the store holds afterwards is the outcome.
        try:
            if reasons:
                return await self._run(lambda: admissions.reject(adapter, reasons))
            await self._warm(adapter)
            return await self._run(lambda: admissions.admit(adapter))
        except NotFound:
            return Admission(REJECTED, adapter, ("it was taken away while it was tried: publish it again.",))

    async def _warm(self, adapter: Adapter) -> None:
        """Have replicas load it where the version is in use whose place it takes."""
        found = await self._run(lambda: self._registry.admissions.of(adapter.owner, adapter.name, adapter.version))
        if found.alias is not None:
            await self._warming.before(adapter, found.alias)

    def _asking(self, adapter: Adapter) -> tryout.Ask:
        async def ask(who: Adapter | None, body: dict[str, Any]) -> dict[str, Any]:
            request_id, name = f"trial-{secrets.token_hex(16)}", who.exact_name if who is not None else adapter.base

            async def opening() -> Any:
                return await self._dispatch.open(request_id, adapter.base, name, who, json.dumps(body).encode(), False)

            answer = await self._waking.open(adapter.base, opening, stream=False)
            try:
                whole: dict[str, Any] = json.loads(b"".join([part async for part in answer.parts()]))
            except ValueError:
                raise InternalError("the answer is no JSON") from None
            finally:
                answer.close()
            return whole

        return ask

    async def _run(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)
