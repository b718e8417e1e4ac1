"""How content becomes a version although garbage is collected at the same time. `registry.py` and `adoption.py` publish through it.

    announce in aliases.json ──▶ files ──▶ manifest ──▶ pointers; the announcement goes with them
                                                        │
                                                        └──▶ or pending, until it was tried (`admissions.py`)

Publishing and collecting (`garbage.py`) meet in aliases.json, which both change by conditional puts alone. A version that is announced is
not collected, and one that is being collected is not announced: so no file is put while another process removes it. What exists already
is not announced; should it be collected before the pointers are written, that write sees it and the publish begins anew.

With `tries`, new content is pending from its announcement on: at no moment is it served untried, whoever dies.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from adapters_store.adapter import Adapter
from adapters_store.admission import Pending
from adapters_store.errors import Conflict, Unavailable
from adapters_store.history import PUBLISH, Actor
from adapters_store.layout import pending_key
from adapters_store.objects import ObjectStore
from adapters_store.pointer_files import PointerFiles
from adapters_store.pointers import Pointers, without
from adapters_store.versions import Versions

ROUNDS = 3
UPLOAD_SECONDS = 24 * 3600.0  # what was announced so long ago has failed: no upload takes that long
REMOVAL_SECONDS = 900.0  # a removal that began so long ago has ended or died: it stops itself after two thirds of that

logger = logging.getLogger(__name__)


class Point(Protocol):
    """What a publish does to the pointers: have them point at `adapter`, or, if it is to be held, have it wait to be tried."""

    def __call__(self, before: Pointers, adapter: Adapter, *, hold: bool) -> Pointers: ...


class Publishing:
    def __init__(self, store: ObjectStore, versions: Versions, pointer_files: PointerFiles, *, tries: bool = False) -> None:
        self._store = store
        self._versions = versions
        self._pointer_files = pointer_files
        self._tries = tries

    def publish(self, folder: Path, wanted: Adapter, point: Point) -> tuple[Adapter, bool]:
        """Make `folder` the version `wanted` and have `point` change the pointers to it; the stored version, and whether it is new.

        Raises:
            Conflict: the same content is there for another base model.
            Unavailable: the same content is being removed right now.
        """
        created = False
        for _ in range(ROUNDS):
            stored = self._versions.get_now(wanted.owner, wanted.name, wanted.version)
            if stored is None:
                self._announce(wanted)
                stored, created = self._versions.upload(folder, wanted)
            if stored.base != wanted.base:
                raise Conflict(
                    f"{stored.exact_name} is published already, for base {stored.base}; it cannot be for {wanted.base} too: "
                    "publish it under another name"
                )
            if self.point(stored, point):
                logger.info("version_added", extra={"adapter": stored.exact_name, "is_new": created, "size_bytes": stored.size_bytes})
                return stored, created
        raise Unavailable(f"{wanted.exact_name} was removed again and again while it was published: try again")

    def _announce(self, wanted: Adapter) -> None:
        def change(before: Pointers) -> Pointers:
            now, version = time.time(), wanted.version
            if now - before.removing.get(version, 0.0) < REMOVAL_SECONDS:
                raise Unavailable(
                    f"an old copy of {wanted.exact_name} is being removed right now: try again shortly", retry_after_seconds=60.0
                )
            removing, removed = without(before.removing, version), without(before.removed, version)
            announced = replace(before, uploading={**before.uploading, version: now}, removing=removing, removed=removed)
            if not self._tries or version in before.aliases.values():
                return announced
            return announced.holding(version, Pending(None, Actor(wanted.created_by), PUBLISH, now))

        self._pointer_files.update(wanted.owner, wanted.name, change)

    def point(self, stored: Adapter, point: Point) -> bool:
        """Have `point` change the pointers to a version that is there; False when it was collected since we saw it whole."""

        hold = False

        def change(before: Pointers) -> Pointers:
            nonlocal hold
            if stored.version in before.removing or stored.version in before.removed:
                raise _Collected
            hold = self._tries and (stored.version in before.pending or stored.version in before.rejected)
            after = point(before, stored, hold=hold)
            if not hold:  # nobody tries it (any more): what was found of it before does not keep it from being served
                after = replace(after, pending=without(after.pending, stored.version), rejected=without(after.rejected, stored.version))
            return replace(after, uploading=without(before.uploading, stored.version))

        try:
            self._pointer_files.update(stored.owner, stored.name, change)
        except _Collected:
            return False
        if hold:
            self._store.put(pending_key(stored.owner, stored.name, stored.version), b"")  # so that any gateway finds it (`admissions.py`)
        return True


class _Collected(Exception):
    """The files are gone, or going."""
