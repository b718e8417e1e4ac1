"""Warm before it moves: what an alias is about to serve is loaded where its old version is in use, so that nobody waits for the change.

    a route ──▶ before_move / before_rollback / before_promotion ──▶ replicas load it, in bounded time ──▶ the alias moves, whatever came

Going back must always work, so nothing of this raises: a model without a replica, a store that is away or a version that cannot be loaded
costs the move its wait at most. What is wrong with the move itself is the move's to say. docs/decisions/0014 has the reasons.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from adapters_store.adapter import Adapter
from adapters_store.errors import InvalidRequest, LorikeetError, NotFound, NotReady
from adapters_store.history import version_before
from adapters_store.names import check_version

if TYPE_CHECKING:
    from adapters_store.registry import Registry
    from deployments.warming import Warmer

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Change:
    """An alias is about to serve `new`. `olds` is what it serves now: its version, and its canary if it has one."""

    new: Adapter
    olds: tuple[Adapter, ...]


class Warming:
    """Runs in one event loop; the store is read in `threads`. A move waits `timeout_seconds` for its replicas at most."""

    def __init__(self, warmer: Warmer, registry: Registry, threads: Executor, timeout_seconds: float) -> None:
        self._warmer = warmer
        self._registry = registry
        self._threads = threads
        self._timeout_seconds = timeout_seconds

    async def before(self, new: Adapter, alias: str) -> None:
        """`alias` is about to serve `new`, to some or to all."""
        await self._prepare(lambda: self._change(new, alias))

    async def before_move(self, owner: str, name: str, alias: str, version: str) -> None:
        """`alias` is about to serve `version` (or what it is a unique prefix of), to some or to all."""
        await self._prepare(lambda: self._change(self._registry.served(owner, name, check_version(version)), alias))

    async def before_rollback(self, owner: str, name: str, alias: str) -> None:
        """`alias` is about to go back to the version that it had before."""
        await self._prepare(lambda: self._back(owner, name, alias))

    async def before_promotion(self, owner: str, name: str, alias: str) -> None:
        """`alias` is about to serve its canary to all."""
        await self._prepare(lambda: self._promotion(owner, name, alias))

    async def is_due(self, owner: str, name: str, alias: str) -> bool:
        """Whether a version that `alias` is pointed at has to be warmed first, as far as is known before there is one."""
        try:
            served = await self._run(lambda: self._registry.serving(owner, name, alias))
            return bool(served) and self._warmer.reaches(served[0].base)
        except LorikeetError:
            return False

    async def _prepare(self, find: Callable[[], _Change | None]) -> None:
        try:
            change = await self._run(find)
            if change is not None and change.olds and self._warmer.reaches(change.new.base):
                await self._warmer.succeed(change.new, change.olds, self._timeout_seconds)
        except (NotFound, InvalidRequest, NotReady):
            pass  # the move says what is wrong with it; what waits to be tried is warmed when it was
        except LorikeetError as error:
            logger.warning("warm_failed", extra={"error": type(error).__name__, "reason": error.message})
        except Exception:
            logger.exception("warm_failed")

    def _change(self, new: Adapter, alias: str) -> _Change:
        now = self._registry.serving(new.owner, new.name, alias)
        if not now or now[0].version == new.version:
            return _Change(new, ())
        return _Change(new, tuple(old for old in now if old.version != new.version))

    def _back(self, owner: str, name: str, alias: str) -> _Change | None:
        now = self._registry.serving(owner, name, alias)
        oldest_first = tuple(reversed(self._registry.aliases.history(owner, name)))
        version = version_before(oldest_first, alias, now[0].version) if now else None
        return self._change(self._registry.served(owner, name, version), alias) if version is not None else None

    def _promotion(self, owner: str, name: str, alias: str) -> _Change | None:
        now = self._registry.serving(owner, name, alias)
        return self._change(now[1], alias) if len(now) > 1 else None

    async def _run(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)
