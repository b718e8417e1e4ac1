"""Moving an adapter's aliases: to a version, back to the one before, away; and what moved them so far.

Each move and its entry in the history are one conditional put (`pointer_files.py`). `registry.py` puts this together.
"""

from __future__ import annotations

import logging

from adapters_store.adapter import Adapter
from adapters_store.errors import Conflict
from adapters_store.history import DELETE_ALIAS, MOVE, ROLLBACK, Actor, AliasMove, version_before
from adapters_store.index import Index
from adapters_store.lookup import Lookup, after_copies, no_alias
from adapters_store.names import PRODUCTION, check_segment, check_version
from adapters_store.pointer_files import PointerFiles
from adapters_store.pointers import Pointers
from adapters_store.versions import Versions

logger = logging.getLogger(__name__)


class Aliases:
    """Calls block. Each raises NotFound for an adapter that is not there, and Conflict when `if_match` is not the etag of its aliases."""

    def __init__(self, versions: Versions, pointer_files: PointerFiles, index: Index, lookup: Lookup) -> None:
        self._versions = versions
        self._pointer_files = pointer_files
        self._index = index
        self._lookup = lookup

    def move(self, owner: str, name: str, alias: str, version: str, *, by: Actor, if_match: str | None = None) -> tuple[Adapter, str]:
        """Point `alias` at `version` (or a unique prefix of it); that version, and the new etag.

        Raises:
            NotFound: no such version, or it is retired.
        """
        check_segment("alias", alias)
        found = self._lookup.peek(check_segment("owner", owner), check_segment("name", name))
        adapter = self._versions.find_now(owner, name, check_version(version))

        def change(before: Pointers) -> Pointers:
            before.check_served(adapter.exact_name, adapter.version)
            return after_copies(before.pointing(alias, adapter.version, by=by, why=MOVE), found, alias)

        _, etag = self._pointer_files.update(owner, name, change, if_match=if_match)
        self._moved(adapter, alias, MOVE)
        return adapter, etag

    def roll_back(self, owner: str, name: str, alias: str = PRODUCTION, *, by: Actor, if_match: str | None = None) -> tuple[Adapter, str]:
        """Point `alias` at the version that it had before; that version, and the new etag. Twice goes back two versions.

        Raises:
            NotFound: there is no such alias.
            Conflict: it never had another version, or that one is retired, or its files are gone.
        """
        found = self._lookup.peek(check_segment("owner", owner), check_segment("name", name))
        target = ""

        def change(before: Pointers) -> Pointers:
            nonlocal target
            version = before.aliases.get(check_segment("alias", alias))
            if version is None:
                raise no_alias(found, alias)
            previous = version_before(before.history, alias, version)
            if previous is None:
                raise Conflict(f"alias '{alias}' of {owner}/{name} has no version before {version[:12]} to go back to: move it to one")
            if before.is_gone(previous):
                raise Conflict(
                    f"{owner}/{name}@{previous}, which '{alias}' had before, is retired: undelete it, or move the alias to another"
                )
            # The history outlives the marks that garbage collection leaves: what is there is asked of the store.
            if self._versions.get_now(owner, name, previous) is None:
                raise Conflict(f"the files of {owner}/{name}@{previous}, which '{alias}' had before, were removed: move it to another")
            target = previous
            return after_copies(before.pointing(alias, previous, by=by, why=ROLLBACK), found, alias)

        _, etag = self._pointer_files.update(owner, name, change, if_match=if_match)
        adapter = self._versions.find(owner, name, target)
        self._moved(adapter, alias, ROLLBACK)
        return adapter, etag

    def delete(self, owner: str, name: str, alias: str, *, by: Actor, if_match: str | None = None) -> str:
        """Forget `alias`; the new etag. Raises NotFound where it is unknown."""
        found = self._lookup.peek(check_segment("owner", owner), check_segment("name", name))

        def change(before: Pointers) -> Pointers:
            if alias not in before.aliases:
                raise no_alias(found, alias)
            kept = {other: version for other, version in before.aliases.items() if other != alias}
            return after_copies(before.with_aliases(kept, by=by, why=DELETE_ALIAS), found, alias)

        _, etag = self._pointer_files.update(owner, name, change, if_match=if_match)
        self._index.refresh(owner, name)
        logger.info("alias_deleted", extra={"adapter": f"{owner}/{name}", "alias": alias})
        return etag

    def history(self, owner: str, name: str) -> tuple[AliasMove, ...]:
        """Every move that is remembered, newest first, also of an adapter that was deleted. Raises NotFound where nothing ever was."""
        found = self._lookup.peek(check_segment("owner", owner), check_segment("name", name))
        return tuple(reversed(found.pointers.history))

    def _moved(self, adapter: Adapter, alias: str, why: str) -> None:
        self._index.refresh(adapter.owner, adapter.name)
        logger.info("alias_moved", extra={"adapter": adapter.exact_name, "alias": alias, "why": why})
