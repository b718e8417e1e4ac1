"""What a name means, from memory: the gateway asks it once per chat request (step 3 of the life of a request).

The lease. An answer is used for requests that arrive within `lease_seconds` of the START of the store read that it came from. Whoever moves
an alias waits `lease_seconds` after the write before answering; from then on no gateway anywhere serves the old version to a new
request. docs/decisions/0001-lease-instead-of-invalidation.md says why. Names in use are read again ahead of time, in the background, so
that requests do not wait.

When the store does not answer, a version that is known is served on for `stale_seconds`; what is not known is StoreUnavailable, never
NotFound. Runs in one event loop; store reads run in the executor that is handed in.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, TypeVar

from adapters_store.access import SEES_ALL, Viewer
from adapters_store.errors import (
    InternalError,
    InvalidAdapter,
    InvalidRequest,
    LorikeetError,
    NotFound,
    NotReady,
    Overloaded,
    StoreUnavailable,
    Unavailable,
)
from adapters_store.lookup import unknown_adapter
from adapters_store.names import ModelRef
from adapters_store.registry import Registry
from adapters_store.resolved import Resolved

V = TypeVar("V")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ResolverLimits:
    """`patience_seconds`: how long a store read may take before a request that has a known answer, past its lease, is served that; the
    lease holds while the store answers faster. `timeout_seconds`: the wait for an unknown name, adoption included.
    """

    lease_seconds: float = 1.0
    stale_seconds: float = 3600.0
    patience_seconds: float = 2.0
    timeout_seconds: float = 60.0
    reads_at_once: int = 256
    known_names: int = 20_000
    unknown_names: int = 10_000


@dataclass(frozen=True, slots=True)
class _Known:
    resolved: Resolved
    read_at: float
    refresh_after: float
    fresh_until: float


@dataclass(frozen=True, slots=True)
class _Refused:
    """A name that cannot be served, and why. The error is rebuilt for each request: a raised one would keep the request's frames."""

    error: LorikeetError
    fresh_until: float


@dataclass(frozen=True, slots=True)
class _Read:
    """A store read under way."""

    task: asyncio.Task[_Known | _Refused]
    started: float


class Resolver:
    def __init__(
        self, registry: Registry, executor: Executor, limits: ResolverLimits, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._registry = registry
        self._executor = executor
        self._limits = limits
        self._clock = clock
        self._known: OrderedDict[ModelRef, _Known] = OrderedDict()  # two memories, so that random names cannot push out good ones
        self._refused: OrderedDict[ModelRef, _Refused] = OrderedDict()
        self._reads: dict[ModelRef, _Read] = {}
        self._store_down_until = 0.0

    @property
    def lease_seconds(self) -> float:
        """How long the mover of an alias waits after its write before it answers."""
        return self._limits.lease_seconds

    async def resolve(self, ref: ModelRef, viewer: Viewer = SEES_ALL) -> Resolved:
        """What `ref` means, if `viewer` may see it: what it is, and who may see it, are remembered together.

        Raises:
            NotFound, InvalidName, InvalidAdapter: as Registry.resolve; for what the viewer may not see, NotFound as for an unknown name.
            StoreUnavailable: the store does not answer, and the name is not known. Overloaded: too many unknown names at once.
        """
        try:
            known = await self._resolve(ref)
        except LorikeetError as error:
            if error.of_private and not viewer.sees(ref.owner, private=True):
                raise unknown_adapter(ref.owner, ref.name) from None
            raise
        if known.resolved.private and not viewer.sees(ref.owner, private=True):
            raise unknown_adapter(ref.owner, ref.name)
        return known.resolved

    async def _resolve(self, ref: ModelRef) -> _Known:
        now = self._clock()
        known = self._known.get(ref)
        if known is not None and now < known.fresh_until:
            self._known.move_to_end(ref)
            if now > known.refresh_after and ref not in self._reads:
                self._start_read(ref)
            return known
        refused = self._refused.get(ref)
        if refused is not None and now < refused.fresh_until:
            self._refused.move_to_end(ref)
            raise _again(refused.error)
        return await self._resolve_from_store(ref, now)

    def forget(self, owner: str, name: str) -> None:
        """Drop what is known of this adapter, and what is being read of it: for after a change that this process made."""
        memories: tuple[dict[ModelRef, Any], ...] = (self._known, self._refused, self._reads)
        for memory in memories:
            for ref in [ref for ref in memory if (ref.owner, ref.name) == (owner, name)]:
                del memory[ref]

    async def _resolve_from_store(self, ref: ModelRef, arrived: float) -> _Known:
        known = self._servable_stale(ref, arrived)
        if known is not None and arrived < self._store_down_until:
            self._start_read(ref)  # in the background: the request does not wait for a store that was down a moment ago
            return known
        while True:
            answer = await self._join_read(ref, arrived, patient=known is None)
            if answer is None or isinstance(answer, _Refused):
                break
            if arrived < answer.fresh_until:
                return answer
            # A read that began before the request did, too long ago for its lease. The next begins after it: at most one more round.
        error = answer.error if answer is not None else _no_answer(ref)
        if known is not None and isinstance(error, Unavailable | Overloaded) and not isinstance(error, NotReady):
            logger.warning("stale_answer", extra={"adapter": str(ref), "age_seconds": round(arrived - known.read_at, 3)})
            return known
        raise _again(error)

    def _servable_stale(self, ref: ModelRef, now: float) -> _Known | None:
        known = self._known.get(ref)
        return known if known is not None and now < known.read_at + self._limits.stale_seconds else None

    async def _join_read(self, ref: ModelRef, arrived: float, *, patient: bool) -> _Known | _Refused | None:
        """Join the read of `ref`, or start it; None when it takes too long. A waiter that leaves does not end it.

        Who has a known answer to fall back on is not patient, and counts from the start of the read: when the store hangs, the first
        request finds that out, and those behind it do not wait again.
        """
        read = self._start_read(ref)
        if read is None:
            return _Refused(Overloaded("too many unknown models are being looked up at once: try again"), fresh_until=0.0)
        deadline = arrived + self._limits.timeout_seconds if patient else read.started + self._limits.patience_seconds
        done, _ = await asyncio.wait({read.task}, timeout=max(0.0, deadline - self._clock()))
        return read.task.result() if done else None

    def _start_read(self, ref: ModelRef) -> _Read | None:
        """One read per name at a time; None when too many are running."""
        if (running := self._reads.get(ref)) is not None:
            return running
        if len(self._reads) >= self._limits.reads_at_once:
            return None
        started = self._clock()
        read = _Read(asyncio.get_running_loop().create_task(self._read_store(ref, started)), started)
        self._reads[ref] = read
        read.task.add_done_callback(lambda _: self._remember(ref, read))
        return read

    async def _read_store(self, ref: ModelRef, started: float) -> _Known | _Refused:
        fresh_until = started + self._limits.lease_seconds
        try:
            resolved = await asyncio.get_running_loop().run_in_executor(self._executor, self._registry.resolve, ref)
        except LorikeetError as error:
            return _Refused(_again(error), fresh_until)
        except Exception as error:
            logger.exception("resolve_failed", extra={"adapter": str(ref), "error": type(error).__name__})
            return _Refused(InternalError(f"model '{ref}' could not be looked up"), fresh_until)
        return _Known(resolved, started, started + self._limits.lease_seconds / 2, fresh_until)

    def _remember(self, ref: ModelRef, read: _Read) -> None:
        if self._reads.get(ref) is not read:
            return  # forgotten meanwhile: what it read may be from before the change
        del self._reads[ref]
        if read.task.cancelled():
            return  # the loop is shutting down
        answer = read.task.result()
        if isinstance(answer, _Known):
            self._refused.pop(ref, None)
            _keep(self._known, ref, answer, self._limits.known_names)
        elif isinstance(answer.error, NotReady):
            self._known.pop(ref, None)  # and asked for anew each time: it may be ready by then
        elif isinstance(answer.error, InvalidRequest | NotFound):
            self._known.pop(ref, None)
            _keep(self._refused, ref, answer, self._limits.unknown_names)
        elif isinstance(answer.error, StoreUnavailable):
            self._store_down_until = self._clock() + self._limits.lease_seconds


def _keep(memory: OrderedDict[ModelRef, V], ref: ModelRef, answer: V, limit: int) -> None:
    memory[ref] = answer
    memory.move_to_end(ref)
    if len(memory) > limit:
        memory.popitem(last=False)


def _no_answer(ref: ModelRef) -> StoreUnavailable:
    return StoreUnavailable(f"model '{ref}' is still being looked up in the object store: try again", param="model")


def _again(error: LorikeetError) -> LorikeetError:
    """The same error, without the frames that it was raised through."""
    again = _rebuilt(error)
    again.of_private = error.of_private
    return again


def _rebuilt(error: LorikeetError) -> LorikeetError:
    if isinstance(error, InvalidAdapter):
        return InvalidAdapter(error.reasons, param=error.param)
    if isinstance(error, NotReady):
        return NotReady(error.owner, error.name, error.version)
    if isinstance(error, Unavailable | Overloaded):
        return type(error)(error.message, retry_after_seconds=error.retry_after_seconds, param=error.param)
    return type(error)(error.message, param=error.param)
