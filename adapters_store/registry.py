"""Which adapters there are and what their names mean: publish, read, list, label. Over an object store; calls block.

The store is the only truth: nothing that can change is cached here (`resolver.py` does, under a lease). A version is written once
(versions.py, publishing.py), a name points to versions through aliases.json (pointers.py, moved in aliases.py, split in canaries.py,
taken away in retirement.py and garbage.py), what lies under a name is looked at in lookup.py, and a listing is a page of markers
(index.py), which each change here brings up to date before it returns.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from adapters_store.adapter import Adapter, version_of
from adapters_store.admission import Pending, remembered
from adapters_store.admissions import Admissions
from adapters_store.adoption import AdoptionRules
from adapters_store.aliases import Aliases
from adapters_store.canaries import Canaries
from adapters_store.canary import Canary, Shadow
from adapters_store.errors import InvalidName, NotFound, NotReady
from adapters_store.garbage import Garbage
from adapters_store.history import PUBLISH, Actor
from adapters_store.index import AdapterPage, Index, Listing
from adapters_store.labels import NO_CHANGE, LabelChange
from adapters_store.lookup import FoundName, Lookup, no_alias, not_served, unknown_adapter, waiting_for
from adapters_store.names import PRODUCTION, ModelRef, check_segment
from adapters_store.objects import ObjectStore
from adapters_store.pointer_files import PointerFiles
from adapters_store.pointers import Pointers, without
from adapters_store.publishing import Publishing
from adapters_store.resolved import CanaryArm, Resolved, ShadowArm
from adapters_store.retirement import Retirement
from adapters_store.versions import Versions, hash_files

if TYPE_CHECKING:
    from adapters_store.validate import Fit

EVERY_ADAPTER = Listing()

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Published:
    """`created` is False when the same content was a version already; `alias_moved` when the alias pointed there already.

    A `pending` one waits to be tried on a replica, and its alias with it. `alias` is the one that points at it now, of what was asked for.
    """

    adapter: Adapter
    created: bool
    alias_moved: bool
    pending: bool = False
    alias: str | None = None


@dataclass(frozen=True, slots=True)
class AdapterDetail:
    """Versions that are not retired, newest first; `etag` is aliases.json's, for `aliases.move(if_match=…)`."""

    versions: tuple[Adapter, ...]
    aliases: Mapping[str, str]
    etag: str
    tags: Mapping[str, str]
    private: bool
    canaries: Mapping[str, Canary]
    shadows: Mapping[str, Shadow]
    pending: tuple[str, ...] = ()  # versions that wait to be tried, and those that were rejected
    rejected: tuple[str, ...] = ()


class Registry:
    """`adoption` says how folders that were copied into the bucket are judged; without it they are left alone. With `tries`, new content
    is pending until somebody has tried it (`admissions`)."""

    def __init__(self, store: ObjectStore, *, adoption: AdoptionRules | None = None, tries: bool = False) -> None:
        self._store = store
        self._versions = Versions(store)
        self._pointer_files = PointerFiles(store, self._versions)
        self._index = Index(store, self._versions, self._pointer_files)
        self._publishing = Publishing(store, self._versions, self._pointer_files, tries=tries)
        self._lookup = Lookup(store, self._pointer_files, self._publishing, self._index, adoption)
        self.aliases = Aliases(self._versions, self._pointer_files, self._index, self._lookup)
        self.canaries = Canaries(self._versions, self._pointer_files, self._index, self._lookup)
        self.retirement = Retirement(self._versions, self._pointer_files, self._index, self._lookup)
        self.admissions = Admissions(store, self._versions, self._pointer_files, self._index)
        self.garbage = Garbage(store, self._pointer_files, self._index)

    def read(self, ref: ModelRef) -> Adapter:
        """The version that `ref` means now; raises what `resolve` does."""
        return self.resolve(ref).adapter

    def resolve(self, ref: ModelRef) -> Resolved:
        """What `ref` means now: one listing, and one read of aliases.json if it is new. The manifest is read where that has it not.

        Raises:
            NotFound: no such adapter, alias or version, or it is retired.
            InvalidName: a version prefix that means several.
            InvalidAdapter: files were copied there that no base model can serve, and nothing was published before.
            NotReady: what it means has not been tried yet. Unavailable: files are being copied there right now.
        """
        found = self._lookup.look(ref.owner, ref.name)
        try:
            adapter = self._version_of(ref, found)
            if ref.alias is None:
                return Resolved(adapter, found.pointers.private)
            return Resolved(adapter, found.pointers.private, *self._beside(ref, found.pointers))
        except (NotFound, InvalidName, NotReady) as error:
            error.of_private = error.of_private or _is_hidden(found.pointers)
            raise

    def _version_of(self, ref: ModelRef, found: FoundName) -> Adapter:
        if ref.version is not None:
            return _if_served(self._versions.find(ref.owner, ref.name, ref.version), found.pointers)
        alias = ref.alias or PRODUCTION
        version = found.pointers.served(alias)
        if version is None:
            raise waiting_for(found, alias) or no_alias(found, alias)
        return self._versions.find(ref.owner, ref.name, version)

    def _beside(self, ref: ModelRef, pointers: Pointers) -> tuple[CanaryArm | None, ShadowArm | None]:
        """The canary and the shadow of an alias, so far as they can be served."""
        canary, shadow = pointers.canaries.get(ref.alias or PRODUCTION), pointers.shadows.get(ref.alias or PRODUCTION)
        canary_adapter = self._tried(ref, pointers, canary)
        shadow_adapter = self._tried(ref, pointers, shadow)
        return (
            CanaryArm(canary, canary_adapter) if canary and canary_adapter else None,
            ShadowArm(shadow, shadow_adapter) if shadow and shadow_adapter else None,
        )

    def _tried(self, ref: ModelRef, pointers: Pointers, arm: Canary | Shadow | None) -> Adapter | None:
        return None if arm is None or pointers.is_gone(arm.version) else self._versions.get(ref.owner, ref.name, arm.version)

    def serving(self, owner: str, name: str, alias: str) -> tuple[Adapter, ...]:
        """Which versions answer for an alias now: its own, then its canary if it has one. None for what serves nothing.

        For who is about to change that: nothing is adopted on the way.
        """
        pointers, _ = self._pointer_files.read(owner, name)
        version, canary = pointers.served(alias), pointers.canaries.get(alias)
        adapter = self._versions.get(owner, name, version) if version is not None else None
        if adapter is None:
            return ()
        beside = self._tried(ModelRef(owner, name, alias, None), pointers, canary)
        return (adapter, beside) if beside is not None else (adapter,)

    def served(self, owner: str, name: str, version: str) -> Adapter:
        """One version, by its digest or a unique prefix of it, for who is about to point at it: raises as `read`, and adopts nothing."""
        pointers = self._lookup.peek(owner, name).pointers
        return _if_served(self._versions.find_now(owner, name, version), pointers)

    def is_private(self, owner: str, name: str) -> bool:
        """Whether only its owner may see this adapter. Raises NotFound where nothing ever was."""
        pointers = self._lookup.look(check_segment("owner", owner), check_segment("name", name)).pointers
        if not pointers.aliases and not pointers.history and not pointers.pending and not pointers.rejected:
            raise unknown_adapter(owner, name)  # an upload that is under way, or died
        return _is_hidden(pointers)

    def describe(self, owner: str, name: str) -> AdapterDetail:
        """Everything about one adapter. Raises NotFound."""
        found = self._lookup.look(check_segment("owner", owner), check_segment("name", name))
        kept = [adapter for adapter in self._versions.all(owner, name) if not found.pointers.is_gone(adapter.version)]
        pointers = found.pointers
        rejected = remembered(pointers.rejected, pointers.retired)
        if not kept and not pointers.pending and not rejected:
            raise unknown_adapter(owner, name)
        kept.sort(key=lambda adapter: (-adapter.created_at, adapter.version))
        return AdapterDetail(
            tuple(kept),
            dict(pointers.aliases),
            found.etag,
            dict(pointers.tags),
            pointers.private,
            dict(pointers.canaries),
            dict(pointers.shadows),
            tuple(sorted(pointers.pending)),
            tuple(sorted(rejected)),
        )

    def list_adapters(self, listing: Listing = EVERY_ADAPTER, *, start_after: str | None = None, limit: int = 100) -> AdapterPage:
        """A page of adapters by name, a few store calls whatever the store holds. `start_after` is `owner/name`.

        A copied folder is listed once it has been asked for by name.
        """
        if listing.owner is not None:
            check_segment("owner", listing.owner)
        return self._index.page(listing, start_after=start_after, limit=limit)

    def label(self, owner: str, name: str, change: LabelChange, *, if_match: str | None = None) -> str:
        """Change an adapter's tags and visibility; the new etag.

        Raises:
            NotFound: there is no such adapter. InvalidRequest: tags that none may have. Conflict: `if_match` is not its etag.
        """
        self.describe(owner, name)
        _, etag = self._pointer_files.update(owner, name, lambda before: before.labelled(change), if_match=if_match)
        self._index.refresh(owner, name)
        logger.info("labelled", extra={"adapter": f"{owner}/{name}", "tags": sorted(change.tags), "private": change.private})
        return etag

    def publish(
        self,
        folder: Path,
        owner: str,
        name: str,
        fit: Fit,
        *,
        created_by: Actor,
        alias: str | None = PRODUCTION,
        labels: LabelChange = NO_CHANGE,
    ) -> Published:
        """Make the files of `folder` a version, and point `alias` at it. The same content again is the same version.

        `folder` holds the adapter's files alone, and nobody writes to it. A version that was retired is served again.
        """
        check_segment("owner", owner)
        check_segment("name", name)
        if alias is not None:
            check_segment("alias", alias)
        labels.tags_after({})  # refuse them before anything is written
        files = hash_files(folder)
        wanted = Adapter(owner, name, version_of(files), fit.base, fit.rank, files, time.time(), created_by.key_id)
        moves = self._moves(owner, name, created_by, alias, labels)
        adapter, created = self._publishing.publish(folder, wanted, moves)
        self._index.refresh(owner, name)
        return self._published(adapter, created, moves)

    def publish_known(
        self, owner: str, name: str, version: str, *, created_by: Actor, alias: str = PRODUCTION, labels: LabelChange = NO_CHANGE
    ) -> Published | None:
        """What publishing this version's files again would do, without them; None where the version is not there or not served."""
        labels.tags_after({})
        try:
            pointers = self._lookup.peek(owner, name).pointers
            adapter = self._versions.find_now(owner, name, version)
            with contextlib.suppress(NotReady):
                _if_served(adapter, pointers)
        except NotFound:
            return None
        moves = self._moves(owner, name, created_by, alias, labels)
        if not self._publishing.point(adapter, moves):
            return None
        self._index.refresh(owner, name)
        return self._published(adapter, False, moves)

    def _published(self, adapter: Adapter, created: bool, moves: _Moves) -> Published:
        told = {"is_new": created, "alias": moves.alias, "alias_moved": moves.moved, "pending": moves.held}
        logger.info("published", extra={"adapter": adapter.exact_name, **told})
        return Published(adapter, created, moves.moved, moves.held, None if moves.held else moves.alias)

    def _moves(self, owner: str, name: str, by: Actor, alias: str | None, labels: LabelChange) -> _Moves:
        # A publish comes after whatever was copied before it: the copied files do not take `production` back.
        return _Moves(by, alias, labels, self._lookup.copied_now(owner, name) if alias == PRODUCTION else {})


@dataclass(slots=True)
class _Moves:
    """What a publish does to the pointers; `moved` tells whether its alias pointed elsewhere before."""

    by: Actor
    alias: str | None
    labels: LabelChange
    copied: Mapping[str, str]  # etags of the files that lie copied under the name
    moved: bool = False
    held: bool = False

    def __call__(self, before: Pointers, adapter: Adapter, *, hold: bool) -> Pointers:
        labelled = before.labelled(self.labels)
        self.held = hold
        if hold:
            # What a name is served under changes with what it serves. One that serves nothing yet is hidden from the start.
            now, later = (before, self.labels) if before.serves else (labelled, NO_CHANGE)
            self.moved = False
            return now.holding(adapter.version, Pending(self.alias, self.by, PUBLISH, time.time(), later)).passing_over(self.copied)
        if self.alias is None:
            return replace(labelled, retired=without(labelled.retired, adapter.version))
        self.moved = labelled.aliases.get(self.alias) != adapter.version
        return labelled.pointing(self.alias, adapter.version, by=self.by, why=PUBLISH).passing_over(self.copied)


def _if_served(adapter: Adapter, pointers: Pointers) -> Adapter:
    """`adapter`, which is there; raises what `not_served` says where no request may have it."""
    if pointers.is_gone(adapter.version):
        raise not_served(adapter, pointers)
    return adapter


def _is_hidden(pointers: Pointers) -> bool:
    """Whether its owner alone may know the name: it is private, or nothing of it was ever served."""
    return pointers.private or (not pointers.aliases and not pointers.history and bool(pointers.pending or pointers.rejected))
