"""Who calls: `Authorization: Bearer <key>` to the key's record, through a short cache.

A known key is looked up again every minute, an unknown one after a second, so a new key works and a removed one stops soon. The cache is
bounded: random keys cannot fill the memory, and looking them up takes one of few threads.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from concurrent.futures import Executor
from dataclasses import dataclass

from adapters_store.errors import NotAuthenticated, Overloaded, Unavailable
from adapters_store.keys import KeyRecord, KeyRing

KNOWN_SECONDS = 60.0
UNKNOWN_SECONDS = 1.0
STALE_SECONDS = 3600.0  # a known key is honoured this long while the store does not answer
CACHE_ENTRIES = 10_000
LOOKUPS_AT_ONCE = 256

_MISSING = "no API key: send the header Authorization: Bearer <key>"
_WRONG = "this API key is not known here: check it, or create one with `lorikeet keys create`"


@dataclass(frozen=True, slots=True)
class _Entry:
    record: KeyRecord | None
    read_at: float


class Authenticator:
    """Turns an Authorization header into the record of its key."""

    def __init__(self, keys: KeyRing, threads: Executor) -> None:
        self._keys = keys
        self._threads = threads
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()  # by the key's hash: no key is kept in memory
        self._lookups: dict[bytes, asyncio.Future[KeyRecord | None]] = {}

    async def authenticate(self, header: str | None) -> KeyRecord:
        """The record of the key in `header`. Raises NotAuthenticated, or StoreUnavailable when it cannot be looked up."""
        scheme, _, secret = (header or "").partition(" ")
        secret = secret.strip()
        if scheme.lower() != "bearer" or not secret:
            raise NotAuthenticated(_MISSING)
        digest = hashlib.sha256(secret.encode()).digest()
        entry = self._entries.get(digest)
        if entry is None or not _fresh(entry):
            entry = await self._look_up(digest, secret, entry)
        if entry.record is None:
            raise NotAuthenticated(_WRONG)
        return entry.record

    async def _look_up(self, digest: bytes, secret: str, old: _Entry | None) -> _Entry:
        started = time.monotonic()
        lookup = self._lookups.get(digest)
        if lookup is None:
            if len(self._lookups) >= LOOKUPS_AT_ONCE:
                raise Overloaded("too many unknown API keys are being looked up: try again shortly")
            lookup = asyncio.get_running_loop().run_in_executor(self._threads, self._keys.find, secret)
            self._lookups[digest] = lookup
            lookup.add_done_callback(lambda _: self._lookups.pop(digest, None))
        try:
            record = await asyncio.shield(lookup)
        except Unavailable:
            if old is not None and old.record is not None and started - old.read_at < STALE_SECONDS:
                return old
            raise
        entry = self._entries[digest] = _Entry(record, started)
        self._entries.move_to_end(digest)
        while len(self._entries) > CACHE_ENTRIES:
            self._entries.popitem(last=False)
        return entry


def _fresh(entry: _Entry) -> bool:
    age_seconds = time.monotonic() - entry.read_at
    return age_seconds < (UNKNOWN_SECONDS if entry.record is None else KNOWN_SECONDS)
