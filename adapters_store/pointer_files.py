"""Reads and changes aliases.json, an adapter's only mutable object, by conditional puts alone. What is in it is in `pointers.py`.

The manifests of what aliases serve are in it too, so that who reads where a name points need not ask what is there. A manifest is put in
when its version begins to be served, as the store has it then, and goes out when that ends: while a version is served, neither its manifest
nor its files are changed or removed by any of us (`garbage.py`). Not those of canaries and shadows: whether they are there is asked, since
without them their people have the alias.
"""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from adapters_store.adapter import Adapter
from adapters_store.errors import Conflict, InternalError, NotFound, StoreUnavailable
from adapters_store.layout import aliases_key
from adapters_store.manifest import adapter_of, manifest_body
from adapters_store.objects import ObjectStore
from adapters_store.pointers import Pointers, read_pointers, write_pointers
from adapters_store.recent import Recent
from adapters_store.versions import Versions

NO_ETAG = ""  # stands for an aliases.json that does not exist yet

POINTERS_KEPT = 10_000
ABSENT_KEPT = 1_000  # a memory of its own, so that random names do not push out good ones
TRIES = 64  # a conditional put that loses is tried again; each time somebody else got ahead
LONGEST_PAUSE_SECONDS = 0.1

logger = logging.getLogger(__name__)


class PointerFiles:
    """Calls block."""

    def __init__(self, store: ObjectStore, versions: Versions) -> None:
        self._store = store
        self._versions = versions
        self._known: Recent[tuple[str, str], tuple[str, Pointers]] = Recent(POINTERS_KEPT)  # the content read last, with its etag
        self._absent: Recent[tuple[str, str], bool] = Recent(ABSENT_KEPT)

    def knows(self, owner: str, name: str) -> bool:
        """Whether this was read before, be it that nothing was there."""
        return self._known.get((owner, name)) is not None or self._absent.get((owner, name)) is not None

    def read(self, owner: str, name: str, *, etag: str | None = None) -> tuple[Pointers, str]:
        """The pointers and their etag now. `etag` is what a listing just said it is: then content known by it needs no read."""
        if etag is not None and (known := self._known.get((owner, name))) is not None and known[0] == etag:
            return known[1], etag
        try:
            data, etag = self._store.get(aliases_key(owner, name))
            pointers = read_pointers(data, owner, name)
        except NotFound:
            self._absent.put((owner, name), True)
            return Pointers(), NO_ETAG
        self._note_manifests(owner, name, pointers)
        self._known.put((owner, name), (etag, replace(pointers, manifests={})))  # they are noted, and only `update` writes them on
        return pointers, etag

    def update(self, owner: str, name: str, change: Callable[[Pointers], Pointers], *, if_match: str | None = None) -> tuple[Pointers, str]:
        """Apply `change` to what is there and write it, again from the start when somebody else wrote in between.

        With `if_match` (NO_ETAG: nothing is there) it is applied to that content only. A change that changes nothing is not written.

        Raises:
            Conflict: `if_match` is not what is there, or too many others write at once.
        """
        for attempt in range(TRIES):
            before, etag = self.read(owner, name)
            if if_match is not None and if_match != etag:
                break
            after = change(before)
            if after == before:
                return before, etag
            try:
                after = replace(after, manifests=self._manifests(owner, name, before, after))
                return after, self._write(owner, name, after, etag)
            except Conflict:
                # Not a wait for a condition: it spreads those who lost over time.
                time.sleep(random.random() * min(LONGEST_PAUSE_SECONDS, 0.002 * 2**attempt))  # noqa: S311
        raise Conflict(f"the aliases of {owner}/{name} were changed by somebody else: read them and try again")

    def _write(self, owner: str, name: str, pointers: Pointers, etag: str) -> str:
        if etag == NO_ETAG:
            return self._store.put(aliases_key(owner, name), write_pointers(pointers), if_absent=True)
        return self._store.put(aliases_key(owner, name), write_pointers(pointers), if_match=etag)

    def _manifests(self, owner: str, name: str, before: Pointers, after: Pointers) -> dict[str, Any]:
        """Those of what `after` serves. What was served `before` has not changed since; of the rest the store is asked.

        One may be missing, and is read from its own file then.
        """
        manifests = {version: before.manifests[version] for version in self._adapters(owner, name, before).keys() & after.in_use}
        for version in after.in_use - before.in_use:
            with contextlib.suppress(InternalError, StoreUnavailable):
                if (adapter := self._versions.get_now(owner, name, version)) is not None:
                    manifests[version] = manifest_body(adapter)
        return manifests

    def _note_manifests(self, owner: str, name: str, pointers: Pointers) -> None:
        for adapter in self._adapters(owner, name, pointers).values():
            self._versions.note(adapter)

    def _adapters(self, owner: str, name: str, pointers: Pointers) -> dict[str, Adapter]:
        """What the manifests in `pointers` describe, so far as it is served and they are whole."""
        adapters = {}
        for version in pointers.in_use & pointers.manifests.keys():
            try:
                adapters[version] = adapter_of(pointers.manifests[version], owner, name, version)
            except InternalError:  # somebody wrote into aliases.json
                logger.warning("manifest_damaged", extra={"adapter": f"{owner}/{name}@{version}"})
        return adapters
