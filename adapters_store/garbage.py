"""What nobody can be served from any more: found, and removed if asked to. `lorikeet adapters gc` runs it.

Garbage is a version that was retired a grace period ago, files whose upload ended without a manifest, and a version that never got a
pointer because its publish died. A version that an alias serves, or that was served and not retired, never is.

Safe beside publishing (`publishing.py`): before the first file goes, a version is marked in aliases.json by a conditional put, which
looks once more whether it is garbage; whoever publishes the same content sees the mark. Its manifest goes first, so what is left of a
removal that died is no version, and the next run ends it. The mark stays a day, longer than a process trusts a manifest that it has read.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from adapters_store.admission import remembered
from adapters_store.index import Index
from adapters_store.layout import ADAPTERS_PREFIX, manifest_key, trial_prefix, trials_prefix, versions_prefix
from adapters_store.objects import ObjectInfo, ObjectStore
from adapters_store.paging import folders_under, objects_under
from adapters_store.pointer_files import PointerFiles
from adapters_store.pointers import Pointers, without
from adapters_store.publishing import REMOVAL_SECONDS, UPLOAD_SECONDS
from adapters_store.versions import MANIFEST_FRESH_SECONDS

TRIAL_KEPT_SECONDS = 24 * 3600.0  # of no use when it has ended, but to who looks into why
REMOVED_KEPT_SECONDS = 24 * MANIFEST_FRESH_SECONDS

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GarbageRules:
    grace_seconds: float  # how long the files of a retired version stay
    unfinished_seconds: float = UPLOAD_SECONDS  # how long an upload that shows no sign of life may still be one


@dataclass(frozen=True, slots=True)
class GarbageFound:
    """`why` is "retired" or "unfinished". `removed` is False on a dry run, and where somebody began to use it again in between."""

    owner: str
    name: str
    version: str
    why: str
    files: int
    size_bytes: int
    removed: bool = False


@dataclass(frozen=True, slots=True)
class _StoredVersion:
    """What lies in one version's folder."""

    owner: str
    name: str
    version: str
    objects: tuple[ObjectInfo, ...]

    @property
    def has_manifest(self) -> bool:
        return any(info.key == manifest_key(self.owner, self.name, self.version) for info in self.objects)

    @property
    def touched_at(self) -> float:
        return max(info.modified_at for info in self.objects)


class Garbage:
    """Calls block: it looks at every version in the store."""

    def __init__(self, store: ObjectStore, pointer_files: PointerFiles, index: Index) -> None:
        self._store = store
        self._pointer_files = pointer_files
        self._index = index

    def collect(self, rules: GarbageRules, *, remove: bool) -> Iterator[GarbageFound]:
        """Every piece of garbage, as it is found; with `remove` it is gone when it is yielded, and each listing is right again."""
        for owner in folders_under(self._store, ADAPTERS_PREFIX):
            for name in folders_under(self._store, f"{ADAPTERS_PREFIX}{owner}/"):
                yield from self._collect(owner, name, rules, remove)
                if remove:
                    self._forget_old_marks(owner, name)
                    self._forget_old_trials(owner, name)
                    self._index.refresh(owner, name)

    def _collect(self, owner: str, name: str, rules: GarbageRules, remove: bool) -> Iterator[GarbageFound]:
        pointers, _ = self._pointer_files.read(owner, name)
        for stored in self._stored_versions(owner, name):
            why = _why_garbage(stored, pointers, rules, time.time())
            if why is not None:
                size_bytes = sum(info.size_bytes for info in stored.objects)
                removed = remove and self._remove(stored, rules)
                yield GarbageFound(owner, name, stored.version, why, len(stored.objects), size_bytes, removed)

    def _remove(self, stored: _StoredVersion, rules: GarbageRules) -> bool:
        """Mark, delete, mark as done. False when it is garbage no more, or the time for it ran out: the next run goes on."""
        owner, name, version = stored.owner, stored.name, stored.version
        deadline = time.monotonic() + REMOVAL_SECONDS * 2 / 3
        began = time.time()

        def mark(before: Pointers) -> Pointers:
            if _why_garbage(stored, before, rules, began) is None:
                raise _NotGarbage
            removing, uploading = {**before.removing, version: began}, without(before.uploading, version)
            return replace(before, removing=removing, uploading=uploading, pending=without(before.pending, version))

        try:
            self._pointer_files.update(owner, name, mark)
        except _NotGarbage:
            return False
        self._store.delete(manifest_key(owner, name, version))
        for info in objects_under(self._store, f"{versions_prefix(owner, name)}{version}/"):
            if time.monotonic() > deadline:
                return False
            self._store.delete(info.key)

        def done(before: Pointers) -> Pointers:
            if before.removing.get(version) != began:
                return before  # ours took too long, and somebody took over
            removed = {**before.removed, version: time.time()}
            return replace(before, removing=without(before.removing, version), retired=without(before.retired, version), removed=removed)

        self._pointer_files.update(owner, name, done)
        logger.info("garbage_removed", extra={"adapter": f"{owner}/{name}@{version}", "files": len(stored.objects)})
        return True

    def _forget_old_marks(self, owner: str, name: str) -> None:
        """Marks of removals long over, and announcements of uploads that died before their first file."""
        now = time.time()

        def change(before: Pointers) -> Pointers:
            removed = {version: when for version, when in before.removed.items() if now - when < REMOVED_KEPT_SECONDS}
            uploading = {version: when for version, when in before.uploading.items() if now - when < 2 * UPLOAD_SECONDS}
            died = before.uploading.keys() - uploading.keys()
            pending = {version: waits for version, waits in before.pending.items() if version not in died}
            return replace(
                before, removed=removed, uploading=uploading, pending=pending, rejected=remembered(before.rejected, before.retired)
            )

        pointers, _ = self._pointer_files.read(owner, name)
        if change(pointers) != pointers:
            self._pointer_files.update(owner, name, change)

    def _forget_old_trials(self, owner: str, name: str) -> None:
        """What was counted of canaries and shadows that ended a while ago."""
        pointers, _ = self._pointer_files.read(owner, name)
        for trial in folders_under(self._store, trials_prefix(owner, name)):
            counts = list(objects_under(self._store, trial_prefix(owner, name, trial)))
            if trial not in pointers.trials and all(time.time() - info.modified_at > TRIAL_KEPT_SECONDS for info in counts):
                for info in counts:
                    self._store.delete(info.key)

    def _stored_versions(self, owner: str, name: str) -> Sequence[_StoredVersion]:
        prefix = versions_prefix(owner, name)
        by_version: dict[str, list[ObjectInfo]] = {}
        for info in objects_under(self._store, prefix):
            by_version.setdefault(info.key.removeprefix(prefix).partition("/")[0], []).append(info)
        return [_StoredVersion(owner, name, version, tuple(objects)) for version, objects in by_version.items()]


def _why_garbage(stored: _StoredVersion, pointers: Pointers, rules: GarbageRules, now: float) -> str | None:
    """Why a version is garbage by what its adapter's pointers say now, or None."""
    version = stored.version
    if _younger(pointers.uploading, version, rules.unfinished_seconds, now) or _younger(pointers.removing, version, REMOVAL_SECONDS, now):
        return None  # somebody is at it
    if version in pointers.removing:
        return "unfinished"  # a removal that died
    if version in pointers.retired:
        return "retired" if now - pointers.retired[version] >= rules.grace_seconds else None
    if version in pointers.aliases.values() or pointers.tried_beside(version) is not None:
        return None
    died = not stored.has_manifest or version in pointers.uploading or version in pointers.removed
    return "unfinished" if died and now - stored.touched_at >= rules.unfinished_seconds else None


def _younger(times: Mapping[str, float], version: str, seconds: float, now: float) -> bool:
    return version in times and now - times[version] < seconds


class _NotGarbage(Exception):
    """It was, a moment ago."""
