"""Taking versions and whole adapters away, and giving them back while their files are there.

What is retired is unknown to new requests, and stays in the store for those that run; `garbage.py` removes it after a grace period.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from adapters_store.adapter import Adapter
from adapters_store.admission import Rejected
from adapters_store.errors import Conflict, NotFound
from adapters_store.history import RETIRE, UNDELETE, Actor
from adapters_store.index import Index
from adapters_store.lookup import Lookup, unknown_adapter
from adapters_store.names import PRODUCTION, check_segment, check_version
from adapters_store.pointer_files import PointerFiles
from adapters_store.pointers import Deleted, Pointers, without
from adapters_store.versions import Versions

logger = logging.getLogger(__name__)


class Retirement:
    """Calls block. Each raises NotFound for an adapter or version that is not there."""

    def __init__(self, versions: Versions, pointer_files: PointerFiles, index: Index, lookup: Lookup) -> None:
        self._versions = versions
        self._pointer_files = pointer_files
        self._index = index
        self._lookup = lookup

    def retire_version(self, owner: str, name: str, version: str) -> Adapter:
        """Let no new request have `version` (or a unique prefix of it). Its files stay for those that run.

        Raises:
            Conflict: `production` points at it, or it is some alias's canary or shadow.
        """
        adapter = self._find(owner, name, version)

        def change(before: Pointers) -> Pointers:
            if before.was_taken_away(adapter.version):
                raise NotFound(f"adapter version {adapter.exact_name} is retired already", param="version")
            if before.aliases.get(PRODUCTION) == adapter.version:
                raise Conflict(f"{adapter.exact_name} is what {PRODUCTION} serves: move that alias first, or delete the whole adapter")
            if (alias := before.tried_beside(adapter.version)) is not None:
                raise Conflict(f"{adapter.exact_name} is tried beside '{alias}': end that canary or shadow first")
            left = _withdrawn(before, adapter.version)
            return replace(left, retired={**left.retired, adapter.version: time.time()})

        self._change(owner, name, change)
        logger.info("version_retired", extra={"adapter": adapter.exact_name})
        return adapter

    def undelete_version(self, owner: str, name: str, version: str) -> Adapter:
        """Serve a retired version again, by its exact name and the aliases that still point at it.

        Raises:
            Conflict: its files are gone, or going.
        """
        adapter = self._find(owner, name, version)

        def change(before: Pointers) -> Pointers:
            _refuse_removed(before, adapter.exact_name, [adapter.version])
            if adapter.version in before.rejected:
                raise Conflict(f"{adapter.exact_name} was rejected, and is not served: publish a good one")
            return replace(before, retired=without(before.retired, adapter.version))

        self._change(owner, name, change)
        logger.info("version_undeleted", extra={"adapter": adapter.exact_name})
        return adapter

    def retire(self, owner: str, name: str, *, by: Actor) -> None:
        """Let no new request have any version of this adapter; its aliases are gone. Publishing to the name begins anew."""
        check_segment("owner", owner)
        check_segment("name", name)
        found = self._lookup.peek(owner, name)
        every = [adapter.version for adapter in self._versions.all(owner, name)]
        copied = self._lookup.copied_now(owner, name)

        def change(before: Pointers) -> Pointers:
            now = time.time()
            served = [version for version in {*every, *before.aliases.values()} if not before.is_gone(version)]
            if not served and not before.pending and not found.awaits_adoption:
                raise unknown_adapter(owner, name)
            gone = _withdrawn(before.with_aliases({}, by=by, why=RETIRE))
            retired = {**gone.retired, **dict.fromkeys(served, now)}
            # What only waited was nothing to give back: what the deletion before it took still is.
            deleted = Deleted(now, dict(before.aliases), tuple(sorted(served))) if served else before.deleted
            return replace(gone, retired=retired, deleted=deleted, adopted=copied, adopted_version=None)

        self._change(owner, name, change)
        logger.info("adapter_retired", extra={"adapter": f"{owner}/{name}"})

    def undelete(self, owner: str, name: str, *, by: Actor) -> None:
        """Give back what the last `retire` of this adapter took: its versions, and its aliases where they were.

        Raises:
            Conflict: it is not deleted, was published again since, or its files are gone.
        """
        self._lookup.peek(check_segment("owner", owner), check_segment("name", name))

        def change(before: Pointers) -> Pointers:
            if before.deleted is None:
                raise Conflict(f"{owner}/{name} is not deleted, or was published again since: undelete single versions of it")
            _refuse_removed(before, f"{owner}/{name}", before.deleted.versions)
            # The marks of a removal are dropped after a while, `deleted` is not: what is there is asked of the store.
            if any(self._versions.get_now(owner, name, version) is None for version in before.deleted.versions):
                raise _were_removed(f"{owner}/{name}")
            retired = {version: when for version, when in before.retired.items() if version not in before.deleted.versions}
            back = before.with_aliases(dict(before.deleted.aliases), by=by, why=UNDELETE)
            return replace(back, retired=retired, deleted=None)

        self._change(owner, name, change)
        logger.info("adapter_undeleted", extra={"adapter": f"{owner}/{name}"})

    def _find(self, owner: str, name: str, version: str) -> Adapter:
        self._lookup.peek(check_segment("owner", owner), check_segment("name", name))
        return self._versions.find(owner, name, check_version(version))

    def _change(self, owner: str, name: str, change: Callable[[Pointers], Pointers]) -> None:
        self._pointer_files.update(owner, name, change)
        self._index.refresh(owner, name)


def _withdrawn(before: Pointers, version: str | None = None) -> Pointers:
    """Without what waits to be tried (`version` alone, if given): it never was served, so nothing gives it back."""
    after = before
    for waiting, pending in before.pending.items():
        if version in (None, waiting):
            after = after.rejecting(waiting, Rejected(("it was retired before it had been tried.",), pending.by, time.time()), stored=True)
    return after


def _refuse_removed(pointers: Pointers, what: str, versions: Iterable[str]) -> None:
    if any(version in pointers.removing or version in pointers.removed for version in versions):
        raise _were_removed(what)


def _were_removed(what: str) -> Conflict:
    return Conflict(f"the files of {what} were removed after the grace period: publish it again")
