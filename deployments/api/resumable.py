"""What a gateway holds for resumable uploads: the sessions in the store, places for parts, and the commits that run.

Nothing here is needed by another gateway: a commit that loses its gateway is simply asked for again. `upload_parts.py` has the routes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from adapters_store.objects import ObjectStore
from adapters_store.registry import Published
from adapters_store.upload_assembly import UploadAssembly
from adapters_store.upload_sessions import SessionLimits, UploadSessions
from configs.settings import UploadSettings

SWEEP_EVERY_SECONDS = 600.0

logger = logging.getLogger(__name__)


class ResumableUploads:
    def __init__(self, store: ObjectStore, settings: UploadSettings) -> None:
        limits = SessionLimits(
            max_bytes=settings.max_bytes,
            max_files=settings.max_files,
            part_bytes=settings.part_bytes,
            session_seconds=settings.session_seconds,
            sessions_per_key=settings.sessions_per_key,
            bytes_per_key=settings.bytes_per_key,
        )
        self.sessions = UploadSessions(store, limits)
        self.assembly = UploadAssembly(store, self.sessions)
        self.parts_at_once = asyncio.Semaphore(settings.parts_at_once)
        self._commits: dict[str, asyncio.Task[Published]] = {}
        self._swept_at = -SWEEP_EVERY_SECONDS

    async def commit(self, upload: str, publish: Callable[[], Coroutine[Any, Any, Published]]) -> Published:
        """Run `publish` once for all who commit `upload` at the same time. It goes on when the client that asked for it is gone."""
        task = self._commits.get(upload)
        if task is None:
            task = self._commits[upload] = asyncio.create_task(publish(), name=f"commit-{upload}")
            task.add_done_callback(lambda _: self._commits.pop(upload, None))
            task.add_done_callback(_note_failure)
        return await asyncio.shield(task)

    def sweep_if_due(self) -> None:
        """Remove expired uploads, now and then. Blocks."""
        now = time.monotonic()
        if now - self._swept_at >= SWEEP_EVERY_SECONDS:
            self._swept_at = now
            self.sessions.sweep()


def _note_failure(task: asyncio.Task[Published]) -> None:
    """Read the outcome, so that a commit that nobody waits for any more fails without asyncio's complaint."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.info("commit_failed", extra={"error": type(error).__name__})
