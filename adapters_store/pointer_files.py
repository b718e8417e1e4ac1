"""Reads and changes aliases.json, an adapter's only mutable object, by conditional puts alone. What is in it is in `pointers.py`."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from adapters_store.errors import Conflict, NotFound
from adapters_store.layout import aliases_key
from adapters_store.objects import ObjectStore
from adapters_store.pointers import Pointers, read_pointers, write_pointers
from adapters_store.recent import Recent

NO_ETAG = ""  # stands for an aliases.json that does not exist yet

POINTERS_KEPT = 10_000
TRIES = 64  # a conditional put that loses is tried again; each time somebody else got ahead
LONGEST_PAUSE_SECONDS = 0.1


class PointerFiles:
    """Calls block."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._known: Recent[tuple[str, str], tuple[str, Pointers]] = Recent(POINTERS_KEPT)  # the content read last, with its etag

    def knows(self, owner: str, name: str) -> bool:
        """Whether this was read before, be it that nothing was there."""
        return self._known.get((owner, name)) is not None

    def read(self, owner: str, name: str, *, etag: str | None = None) -> tuple[Pointers, str]:
        """The pointers and their etag now. `etag` is what a listing just said it is: then content known by it needs no read."""
        if etag is not None and (known := self._known.get((owner, name))) is not None and known[0] == etag:
            return known[1], etag
        try:
            data, etag = self._store.get(aliases_key(owner, name))
            pointers = read_pointers(data, owner, name)
        except NotFound:
            pointers, etag = Pointers(), NO_ETAG
        self._known.put((owner, name), (etag, pointers))
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
                return after, self._write(owner, name, after, etag)
            except Conflict:
                # Not a wait for a condition: it spreads those who lost over time.
                time.sleep(random.random() * min(LONGEST_PAUSE_SECONDS, 0.002 * 2**attempt))  # noqa: S311
        raise Conflict(f"the aliases of {owner}/{name} were changed by somebody else: read them and try again")

    def _write(self, owner: str, name: str, pointers: Pointers, etag: str) -> str:
        if etag == NO_ETAG:
            return self._store.put(aliases_key(owner, name), write_pointers(pointers), if_absent=True)
        return self._store.put(aliases_key(owner, name), write_pointers(pointers), if_match=etag)
