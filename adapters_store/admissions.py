"""From pending to ready or rejected: each one conditional put in aliases.json (`admission.py` says what these are).

A gateway tries a version on a replica (`deployments/api/admission.py`) and tells the outcome here. So that any gateway finds what waits,
it has a marker (`publishing.py`), an empty object whose key says which. Like the listing's markers it is derived: one that is left over is
removed when it is looked at.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from adapters_store.adapter import Adapter
from adapters_store.admission import Rejected, remembered
from adapters_store.errors import InternalError, LorikeetError, NotFound, StoreUnavailable
from adapters_store.history import Actor
from adapters_store.index import Index
from adapters_store.layout import PENDING_PREFIX, file_key, pending_key
from adapters_store.names import check_segment, check_version
from adapters_store.objects import ObjectStore
from adapters_store.own_settings import SETTINGS_FILE, TEMPLATE_FILE, OwnSettings, own_of
from adapters_store.pointer_files import PointerFiles
from adapters_store.pointers import Pointers
from adapters_store.recent import Recent
from adapters_store.versions import Versions

READY, PENDING, REJECTED = "ready", "pending", "rejected"

LOOKED_AT = 200  # that wait, in one look
TOLD_KEPT = 1000

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Admission:
    """What one version is: READY, PENDING or REJECTED. `adapter` is None for what was refused before it was stored."""

    status: str
    adapter: Adapter | None
    reasons: tuple[str, ...] = ()
    alias: str | None = None  # of a pending one: what will point at it
    aliases: tuple[str, ...] = ()  # of a ready one: what points at it
    digest: str = ""  # of one that was not stored
    at: float = 0.0  # since when it waits, or when it was rejected: seconds since the epoch

    @property
    def version(self) -> str:
        return self.adapter.version if self.adapter is not None else self.digest


class Admissions:
    """Calls block."""

    def __init__(self, store: ObjectStore, versions: Versions, pointer_files: PointerFiles, index: Index) -> None:
        self._store = store
        self._versions = versions
        self._pointer_files = pointer_files
        self._index = index
        self._told: Recent[str, bool] = Recent(TOLD_KEPT)  # markers that could not be read about

    def admit(self, adapter: Adapter) -> Admission:
        """Serve a version that waited, and point the alias at it that it is for; what it is then.

        When it waits no more, somebody was quicker, and theirs is the outcome. Raises NotFound when it was taken away.
        """
        before, after = self._change(adapter.owner, adapter.name, lambda pointers: pointers.admitting(adapter.version))
        self._store.delete(pending_key(adapter.owner, adapter.name, adapter.version))
        if adapter.version in before.pending:
            logger.info("version_admitted", extra={"adapter": adapter.exact_name, "alias_moved": before.aliases != after.aliases})
        return _admission(adapter, after)

    def reject(self, adapter: Adapter, reasons: Sequence[str]) -> Admission:
        """Never serve a version that waited; what it is then, as `admit`.

        Its files go with the next collection of garbage after the grace period.
        """

        def change(pointers: Pointers) -> Pointers:
            pending = pointers.pending.get(adapter.version)
            if pending is None:
                return pointers
            return pointers.rejecting(adapter.version, Rejected(tuple(reasons), pending.by, time.time()), stored=True)

        before, after = self._change(adapter.owner, adapter.name, change)
        self._store.delete(pending_key(adapter.owner, adapter.name, adapter.version))
        if adapter.version in before.pending:
            logger.warning("version_rejected", extra={"adapter": adapter.exact_name, "reasons": len(reasons)})  # they may quote prompts
        return _admission(adapter, after)

    def refuse(self, owner: str, name: str, version: str, reasons: Sequence[str], *, by: Actor) -> None:
        """Remember why an upload's files were refused before any was stored. What is stored under that digest is as it was."""

        def change(pointers: Pointers) -> Pointers:
            if version in pointers.aliases.values() or self._versions.get_now(owner, name, version) is not None:
                return pointers
            return pointers.rejecting(version, Rejected(tuple(reasons), by, time.time()), stored=False)

        self._pointer_files.update(check_segment("owner", owner), check_segment("name", name), change)

    def of(self, owner: str, name: str, version: str) -> Admission:
        """What one version is, by its digest or a unique prefix of it. Raises NotFound, InvalidName."""
        pointers, _ = self._pointer_files.read(owner, name)
        told = remembered(pointers.rejected, pointers.retired)
        if (found := _by_prefix(told, version)) is not None:
            return Admission(REJECTED, self._versions.get(owner, name, found), told[found].reasons, digest=found, at=told[found].at)
        return _admission(self._versions.find(owner, name, version), pointers)

    def own(self, adapter: Adapter) -> OwnSettings:
        """What a version brings of its own, its golden prompts among it, from the store. Raises InternalError where that is damaged."""
        return own_of(self._file(adapter, SETTINGS_FILE), self._file(adapter, TEMPLATE_FILE))

    def _file(self, adapter: Adapter, name: str) -> bytes | None:
        file = next((file for file in adapter.files if file.name == name), None)
        if file is None:
            return None
        data, _ = self._store.get(file_key(adapter.owner, adapter.name, adapter.version, name))
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise InternalError(f"{name} of {adapter.exact_name} is damaged in the store")
        return data

    def waiting(self, after: str | None = None) -> tuple[list[Adapter], str | None]:
        """Versions that wait to be tried, those of the next `LOOKED_AT` markers after `after`, and where to go on; None at the end.

        What cannot be read about one of them is logged, and keeps none of the others from being found. Raises StoreUnavailable.
        """
        page = self._store.list(PENDING_PREFIX, start_after=after, limit=LOOKED_AT)
        found = (self._waits(info.key) for info in page.objects)
        return [adapter for adapter in found if adapter is not None], page.next_token

    def _waits(self, key: str) -> Adapter | None:
        """The version that a marker says waits, if it does."""
        try:
            owner, name, version = key.removeprefix(PENDING_PREFIX).split("/")
            pointers, _ = self._pointer_files.read(check_segment("owner", owner), check_segment("name", name))
            adapter = self._versions.get(owner, name, check_version(version))
            if version in pointers.pending and adapter is not None:
                return adapter
            self._index.refresh(owner, name)  # whoever left the mark may have died before it came to that
            self._store.delete(key)
        except StoreUnavailable:
            raise
        except (LorikeetError, ValueError) as error:
            if self._told.get(key) is None:  # once: it is looked at every few seconds
                self._told.put(key, True)
                logger.warning("pending_marker_ignored", extra={"key": key, "error": str(error)})
        return None

    def _change(self, owner: str, name: str, change: Callable[[Pointers], Pointers]) -> tuple[Pointers, Pointers]:
        """The pointers before and after."""
        seen = Pointers()

        def seeing(before: Pointers) -> Pointers:
            nonlocal seen
            seen = before
            return change(before)

        after, _ = self._pointer_files.update(owner, name, seeing)
        self._index.refresh(owner, name)
        return seen, after


def _admission(adapter: Adapter, pointers: Pointers) -> Admission:
    """What a version that is stored is, by these pointers. Raises NotFound."""
    version = adapter.version
    if (rejected := pointers.rejected.get(version)) is not None:
        return Admission(REJECTED, adapter, rejected.reasons, digest=version, at=rejected.at)
    if (pending := pointers.pending.get(version)) is not None:
        return Admission(PENDING, adapter, alias=pending.alias, at=pending.at)
    if pointers.is_gone(version):
        raise NotFound(f"adapter version {adapter.exact_name} was retired", param="version")
    return Admission(READY, adapter, aliases=tuple(sorted(alias for alias, other in pointers.aliases.items() if other == version)))


def _by_prefix(told: Mapping[str, Rejected], version: str) -> str | None:
    found = [digest for digest in told if digest.startswith(version)]
    return found[0] if len(found) == 1 else None
