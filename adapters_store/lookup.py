"""What lies under an adapter's name right now: one listing, and aliases.json if it is new. Copied folders are adopted on the way
of who asks for a name, and not of who is about to change what it means.

Of a name that this process has not read before aliases.json is read while the listing is under way: nearly every cold start needs both,
and a store that is far takes as long for two at once as for one. What it says counts only when the listing names the same etag.

`registry.py` asks it first in each read; it also words what a name that serves nothing is told.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from adapters_store.adapter import Adapter
from adapters_store.adoption import COPIED_FILES, Adoption, AdoptionRules, copied_etags
from adapters_store.errors import InvalidAdapter, LorikeetError, NotFound, NotReady, StoreUnavailable, Unavailable
from adapters_store.index import Index
from adapters_store.layout import ALIASES_FILE, adapter_prefix
from adapters_store.names import PRODUCTION
from adapters_store.objects import ObjectInfo, ObjectStore
from adapters_store.pointer_files import NO_ETAG, PointerFiles
from adapters_store.pointers import Pointers
from adapters_store.publishing import Publishing
from adapters_store.recent import Recent

LOOKS = 4  # times that copied files may change under our eyes before we ask the client to come back
SHOWN_ALIASES = 10
RETRY_SECONDS = 30.0  # until a failed adoption is tried again for a name that is served without it
FAILURES_KEPT = 1000
AHEAD_AT_ONCE = 16  # reads beside listings; a listing that ends before its read has begun leaves none behind

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FoundName:
    """What one look at an adapter's name found. `direct` are the objects that lie directly under it."""

    owner: str
    name: str
    direct: Sequence[ObjectInfo]
    pointers: Pointers
    etag: str

    @property
    def awaits_adoption(self) -> bool:
        return len(self.copied) == len(COPIED_FILES) and self.copied != self.pointers.adopted

    @property
    def copied(self) -> dict[str, str]:
        """Etags of the files that lie copied under the name."""
        return copied_etags(self.direct)


class Lookup:
    def __init__(
        self, store: ObjectStore, pointer_files: PointerFiles, publishing: Publishing, index: Index, adoption: AdoptionRules | None
    ) -> None:
        self._store = store
        self._pointer_files = pointer_files
        self._index = index
        self._adoption = Adoption(store, publishing, adoption) if adoption else None
        self._ahead = ThreadPoolExecutor(AHEAD_AT_ONCE, thread_name_prefix="aliases-ahead")
        self._failed_at: Recent[tuple[str, str, tuple[str, ...]], float] = Recent(FAILURES_KEPT)

    def look(self, owner: str, name: str) -> FoundName:
        """One listing of what lies under the name, and the pointers; copied files are adopted first.

        Whoever copies a folder over a served adapter does not take it down, whatever becomes of the folder: as with a refused upload.

        Raises:
            NotFound: nothing is there. Where no alias is either, also what `Adoption.adopt` raises.
        """
        for _ in range(LOOKS):
            found = self.peek(owner, name)
            if self._adoption is None or not found.awaits_adoption or self._failed_lately(found):
                return found
            try:
                if self._adoption.adopt(owner, name, found.direct):
                    self._index.refresh(owner, name)
            except InvalidAdapter as error:
                error.of_private = found.pointers.private
                if not found.pointers.aliases:
                    raise
                return found
            except Exception as error:
                if not found.pointers.aliases:
                    raise
                logger.warning("adoption_failed", extra={"adapter": f"{owner}/{name}", "error": type(error).__name__}, exc_info=True)
                self._failed_at.put(_folder_id(found), time.monotonic())
                return found
        if found.pointers.aliases:
            return found
        raise Unavailable(f"the files of {owner}/{name} are being copied right now: try again when that is done", param="model")

    def _failed_lately(self, found: FoundName) -> bool:
        """Whether the copied folder could not be adopted a moment ago, and the name is served: each try downloads it whole."""
        failed_at = self._failed_at.get(_folder_id(found))
        return bool(found.pointers.aliases) and failed_at is not None and time.monotonic() - failed_at < RETRY_SECONDS

    def peek(self, owner: str, name: str) -> FoundName:
        """The same, and nothing is adopted: for who is about to change what the name means. Raises NotFound."""
        ahead = None if self._pointer_files.knows(owner, name) else self._ahead.submit(self._pointer_files.read, owner, name)
        try:
            page = self._store.list(adapter_prefix(owner, name), delimiter="/")
        finally:
            if ahead is not None and ahead.cancel():
                ahead = None
        if not page.objects and not page.folders:
            raise unknown_adapter(owner, name)
        etag = next((info.etag for info in page.objects if info.key.endswith(f"/{ALIASES_FILE}")), None)
        if etag is None and page.next_token is None:
            return FoundName(owner, name, page.objects, Pointers(), NO_ETAG)
        if ahead is not None and isinstance(error := ahead.exception(), StoreUnavailable):  # waits for it
            raise error
        pointers, etag = self._pointer_files.read(owner, name, etag=etag)
        return FoundName(owner, name, page.objects, pointers, etag)

    def copied_now(self, owner: str, name: str) -> dict[str, str]:
        """Etags of the copied files that lie under the name now."""
        return copied_etags(self._store.list(adapter_prefix(owner, name), delimiter="/").objects)


def _folder_id(found: FoundName) -> tuple[str, str, tuple[str, ...]]:
    return found.owner, found.name, tuple(found.copied.values())


def unknown_adapter(owner: str, name: str) -> NotFound:
    return NotFound(f"model '{owner}/{name}' does not exist: GET /api/v1/models lists those that do", param="model")


def after_copies(after: Pointers, found: FoundName, alias: str) -> Pointers:
    """A move comes after whatever was copied before it: files that nobody has asked for yet do not take `production` back."""
    return after.passing_over(found.copied) if alias == PRODUCTION else after


def no_alias(found: FoundName, alias: str) -> NotFound:
    """Why `alias` serves nothing, and what would."""
    adapter = f"{found.owner}/{found.name}"
    copied = found.copied
    if not found.pointers.aliases and 0 < len(copied) < len(COPIED_FILES):
        missing = next(file for file in COPIED_FILES if file not in copied)
        return NotFound(f"model '{adapter}' is not whole: {missing} has not been copied to it yet", param="model")
    if alias in found.pointers.aliases:
        return NotFound(f"the version that '{adapter}:{alias}' points to was retired: move the alias to another version", param="model")
    if not found.pointers.aliases:
        return unknown_adapter(found.owner, found.name)
    names = ", ".join(sorted(found.pointers.aliases)[:SHOWN_ALIASES])
    return NotFound(f"adapter '{adapter}' has no alias '{alias}': it has {names}", param="model")


def waiting_for(found: FoundName, alias: str) -> NotReady | None:
    """What `alias` will mean once it has been tried."""
    version = next((version for version, pending in found.pointers.pending.items() if pending.alias == alias), None)
    return None if version is None else NotReady(found.owner, found.name, version)


def not_served(adapter: Adapter, pointers: Pointers) -> LorikeetError:
    """Why no request may have a version that is there. That one waits or was rejected is its owner's to know, also of a public adapter."""
    error: LorikeetError
    if adapter.version in pointers.pending:
        error = NotReady(adapter.owner, adapter.name, adapter.version)
    elif adapter.version in pointers.rejected:
        reasons = " ".join(pointers.rejected[adapter.version].reasons)
        error = NotFound(f"adapter version {adapter.exact_name} was rejected: {reasons}", param="model")
    else:
        return NotFound(f"adapter version {adapter.exact_name} was retired: ask for another version", param="model")
    error.of_private = True
    return error
