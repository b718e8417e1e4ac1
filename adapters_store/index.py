"""The listing of adapters: markers (`markers.py`) brought in line with aliases.json, and pages read off them.

Markers are derived. `registry.py` has them refreshed after each change, before it answers, and whatever a crash left wrong the next change
puts right. For a moment an adapter may have two sets of markers: a page shows the first.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from adapters_store.access import SEES_ALL, Viewer
from adapters_store.adapter import Adapter
from adapters_store.markers import AdapterSummary, base_facet, keys_of, listing_prefix, parse_key, tag_facet
from adapters_store.names import PRODUCTION, check_segment
from adapters_store.objects import ObjectStore
from adapters_store.pointer_files import PointerFiles
from adapters_store.pointers import Pointers
from adapters_store.versions import Versions

MAX_PAGE = 1000
REFRESHES = 8  # changes of one adapter that may race before the last of them is left to put the markers right
CALLS_PER_LISTING = 4  # a page reads at most two listings (public, and the viewer's own); one that finds too little by then ends short


@dataclass(frozen=True, slots=True)
class Listing:
    """What a listing is asked for. The first tag leads (the others, and the base with them, are looked for among those that have it)."""

    owner: str | None = None
    base: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    viewer: Viewer = SEES_ALL

    def has(self, adapter: AdapterSummary) -> bool:
        return self.base in (None, adapter.base) and self.tags.items() <= adapter.tags.items()

    @property
    def facet(self) -> str | None:
        for tag in self.tags.items():
            return tag_facet(*tag)
        return base_facet(self.base) if self.base is not None else None

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Where the adapters lie that the viewer may see: private ones, then public ones."""
        owner, tenant = self.owner, self.viewer.tenant
        public = listing_prefix(owner, private=False, facet=self.facet)
        if tenant is not None and owner not in (None, tenant):
            return (public,)
        return (listing_prefix(owner or tenant, private=True, facet=self.facet), public)


@dataclass(frozen=True, slots=True)
class AdapterPage:
    """Adapters in the order of their names. `next` is the `start_after` of the next page, or None on the last.

    A page may be shorter than asked for, or empty, and not be the last.
    """

    items: tuple[AdapterSummary, ...]
    next: str | None


class Index:
    def __init__(self, store: ObjectStore, versions: Versions, pointer_files: PointerFiles) -> None:
        self._store = store
        self._versions = versions
        self._pointer_files = pointer_files

    def refresh(self, owner: str, name: str) -> None:
        """Bring the markers in line with aliases.json. Whoever writes them last has looked last, so racing changes end up right."""
        pointers, etag = self._pointer_files.read(owner, name)
        written: dict[str, AdapterSummary | None] = {}  # also what another refresh took half away while we wrote it
        for _ in range(REFRESHES):
            self._show(owner, name, self._shown(owner, name, pointers), written)
            pointers, etag_after = self._pointer_files.read(owner, name)
            if etag_after == etag:
                return
            etag = etag_after

    def page(self, listing: Listing, *, start_after: str | None, limit: int) -> AdapterPage:
        """Up to `limit` (1 to 1000) adapters after the name `start_after` (`owner/name`). At most 8 store calls; most often 2."""
        limit = max(1, min(limit, MAX_PAGE))
        items: dict[str, AdapterSummary] = {}
        found = (self._walk(listing, prefix, start_after, limit) for prefix in listing.prefixes)
        for place, adapter in heapq.merge(*found, key=lambda row: row[0]):
            if adapter is None:
                return AdapterPage(tuple(items.values()), place.rstrip("/"))  # one listing was not looked at further than here
            if adapter.adapter_name in items:
                continue
            if len(items) == limit:
                return AdapterPage(tuple(items.values()), next(reversed(items)))
            items[adapter.adapter_name] = adapter
        return AdapterPage(tuple(items.values()), None)

    def _walk(self, listing: Listing, prefix: str, start_after: str | None, limit: int) -> Iterator[tuple[str, AdapterSummary | None]]:
        """What `listing` asks for of one range of keys, each with its place. Ends with the place of a None where it gave up."""
        after = _past(start_after, prefix, listing.facet) if start_after is not None else None
        conditions = len(listing.tags) + (listing.base is not None)
        place = ""
        for call in range(CALLS_PER_LISTING):
            size = min(MAX_PAGE, limit + 1) if call == 0 or conditions < 2 else MAX_PAGE
            page = self._store.list(prefix, start_after=after, limit=size)
            for info in page.objects:
                if (adapter := parse_key(info.key)) is None:
                    continue
                place = adapter.place
                if listing.has(adapter):
                    yield place, adapter
            if (after := page.next_token) is None:
                return
        if place:
            yield place, None

    def _shown(self, owner: str, name: str, pointers: Pointers) -> AdapterSummary | None:
        adapter = self._version_shown(owner, name, pointers)
        if adapter is None:
            return None
        created_at = int(adapter.created_at)
        return AdapterSummary(owner, name, adapter.base, adapter.rank, adapter.version, created_at, pointers.tags, pointers.private)

    def _version_shown(self, owner: str, name: str, pointers: Pointers) -> Adapter | None:
        """The version that a listing shows: production's, else that of the first alias, else the newest."""
        for alias in (PRODUCTION, *sorted(pointers.aliases)):
            version = pointers.served(alias)
            if version is not None and (adapter := self._versions.get(owner, name, version)) is not None:
                return adapter
        kept = (adapter for adapter in self._versions.all(owner, name) if not pointers.is_gone(adapter.version))
        return max(kept, key=lambda adapter: adapter.created_at, default=None)

    def _show(self, owner: str, name: str, shown: AdapterSummary | None, written: dict[str, AdapterSummary | None]) -> None:
        """Make the markers of `shown` the only ones of the name. The leading one is put first and deleted last: no other is without it."""
        wanted = keys_of(shown) if shown is not None else ()
        present = {
            info.key: parse_key(info.key)
            for private in (False, True)
            for info in self._store.list(listing_prefix(owner, name, private=private)).objects
        }
        for key in wanted:
            if key not in present:
                self._store.put(key, b"")
        obsolete = {key: adapter for key, adapter in {**written, **present}.items() if key not in wanted[:1]}
        for key, adapter in obsolete.items():
            for derived in reversed(keys_of(adapter) if adapter is not None else (key,)):
                self._store.delete(derived)
        written.update(dict.fromkeys(wanted[:1], shown))


def _past(adapter_name: str, prefix: str, facet: str | None) -> str:
    """The key after every marker of this name and before the next name's, among those of `prefix`. Raises InvalidName."""
    owner, _, name = adapter_name.partition("/")
    check_segment("owner", owner)
    check_segment("name", name)
    of_name = listing_prefix(owner, name, private=prefix.startswith("private"), facet=facet)
    return of_name[:-1] + chr(ord("/") + 1)
