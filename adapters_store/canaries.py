"""Beginning, changing and ending what stands beside an alias: its canary and its shadow.

Each change and its entry in the history are one conditional put, as with aliases (`aliases.py`). Whatever moves the alias ends both.
`registry.py` puts this together; who gets which version is in `canary.py`, when a canary has failed in `guard.py`.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import replace

from adapters_store import history
from adapters_store.adapter import Adapter
from adapters_store.canary import Canary, Guard, Shadow, check_guard, check_percent
from adapters_store.errors import Conflict, NotFound
from adapters_store.history import Actor
from adapters_store.index import Index
from adapters_store.lookup import FoundName, Lookup, after_copies, no_alias
from adapters_store.names import check_segment, check_version
from adapters_store.pointer_files import PointerFiles
from adapters_store.pointers import Pointers
from adapters_store.versions import Versions

GUARD_ACTOR = "guard"  # stands for a key in the history, where no key did it

logger = logging.getLogger(__name__)


class Canaries:
    """Calls block. Each raises NotFound for what is not there, and Conflict when `if_match` is not the etag of the adapter's aliases."""

    def __init__(self, versions: Versions, pointer_files: PointerFiles, index: Index, lookup: Lookup) -> None:
        self._versions = versions
        self._pointer_files = pointer_files
        self._index = index
        self._lookup = lookup

    def start(
        self,
        owner: str,
        name: str,
        alias: str,
        version: str,
        *,
        weight: float,
        guard: Guard | None,
        by: Actor,
        if_match: str | None = None,
    ) -> tuple[Adapter, str]:
        """Have `version` (or a unique prefix of it) answer `weight` percent of the people who ask for `alias`; it, and the new etag.

        The same version again is the same canary with another weight or guard; another version takes its place.

        Raises:
            InvalidRequest: a weight or guard that none may have.
            NotFound: no such alias or version, or it is retired. Conflict: the alias serves that version already.
        """
        check_percent("weight", weight)
        check_guard(guard)
        found, adapter = self._find(owner, name, alias, version)

        def change(before: Pointers) -> Pointers:
            _check_beside(before, found, alias, adapter)
            known = before.canaries.get(alias)
            if known is None or known.version != adapter.version:
                canary = Canary(adapter.version, weight, guard, secrets.token_hex(8), time.time())
            else:
                canary = replace(known, weight=weight, guard=guard)
            if canary == known:
                return before
            noted = before.noting(alias, by=by, why=history.CANARY, note=f"{adapter.version[:12]} at {weight:g} %")
            return replace(noted, canaries={**before.canaries, alias: canary})

        _, etag = self._pointer_files.update(owner, name, change, if_match=if_match)
        logger.info("canary_set", extra={"adapter": adapter.exact_name, "alias": alias, "weight": weight})
        return adapter, etag

    def abort(self, owner: str, name: str, alias: str, *, by: Actor, if_match: str | None = None) -> str:
        """End the canary of `alias`: everybody is answered by the version that the alias serves. The new etag."""

        def change(before: Pointers) -> Pointers:
            canary = _canary_of(before, owner, name, alias)
            return _without_canary(before, alias, by, history.ABORT, f"{canary.version[:12]} at {canary.weight:g} %")

        return self._change(owner, name, alias, change, if_match, history.ABORT)

    def promote(self, owner: str, name: str, alias: str, *, by: Actor, if_match: str | None = None) -> tuple[Adapter, str]:
        """Point `alias` at its canary, which ends with that; the version, and the new etag. Rolling back goes to where it was."""
        found = self._lookup.peek(check_segment("owner", owner), check_segment("name", name))
        promoted = ""

        def change(before: Pointers) -> Pointers:
            nonlocal promoted
            promoted = _canary_of(before, owner, name, alias).version
            return after_copies(before.pointing(alias, promoted, by=by, why=history.PROMOTE), found, alias)

        etag = self._change(owner, name, alias, change, if_match, history.PROMOTE)
        return self._versions.find(owner, name, promoted), etag

    def trip(self, owner: str, name: str, alias: str, trial: str, reason: str) -> bool:
        """End the canary that is counted under `trial`, because it failed; False when it has ended, or another one began since."""
        tripped = False

        def change(before: Pointers) -> Pointers:
            nonlocal tripped
            canary = before.canaries.get(alias)
            tripped = canary is not None and canary.trial == trial
            if canary is None or not tripped:
                return before
            by = Actor(GUARD_ACTOR, GUARD_ACTOR, owner)
            return _without_canary(before, alias, by, history.GUARD, f"{canary.version[:12]} at {canary.weight:g} %: {reason}")

        self._pointer_files.update(owner, name, change)
        if tripped:
            logger.warning("canary_tripped", extra={"adapter": f"{owner}/{name}", "alias": alias, "reason": reason})
        return tripped

    def shadow(
        self, owner: str, name: str, alias: str, version: str, *, share: float, by: Actor, if_match: str | None = None
    ) -> tuple[Adapter, str]:
        """Have `share` percent of the requests of `alias` copied to `version`; that version, and the new etag. Raises as `start`."""
        check_percent("share", share)
        found, adapter = self._find(owner, name, alias, version)

        def change(before: Pointers) -> Pointers:
            _check_beside(before, found, alias, adapter)
            known = before.shadows.get(alias)
            if known is None or known.version != adapter.version:
                shadow = Shadow(adapter.version, share, secrets.token_hex(8), time.time())
            else:
                shadow = replace(known, share=share)
            if shadow == known:
                return before
            noted = before.noting(alias, by=by, why=history.SHADOW, note=f"{adapter.version[:12]} at {share:g} %")
            return replace(noted, shadows={**before.shadows, alias: shadow})

        _, etag = self._pointer_files.update(owner, name, change, if_match=if_match)
        logger.info("shadow_set", extra={"adapter": adapter.exact_name, "alias": alias, "share": share})
        return adapter, etag

    def unshadow(self, owner: str, name: str, alias: str, *, by: Actor, if_match: str | None = None) -> str:
        """Copy no more requests of `alias`; the new etag."""

        def change(before: Pointers) -> Pointers:
            shadow = before.shadows.get(alias)
            if shadow is None:
                raise NotFound(f"alias '{alias}' of {owner}/{name} has no shadow", param="alias")
            noted = before.noting(alias, by=by, why=history.UNSHADOW, note=f"{shadow.version[:12]} at {shadow.share:g} %")
            return replace(noted, shadows={other: kept for other, kept in before.shadows.items() if other != alias})

        return self._change(owner, name, alias, change, if_match, history.UNSHADOW)

    def _find(self, owner: str, name: str, alias: str, version: str) -> tuple[FoundName, Adapter]:
        check_segment("alias", alias)
        found = self._lookup.peek(check_segment("owner", owner), check_segment("name", name))
        return found, self._versions.find_now(owner, name, check_version(version))

    def _change(self, owner: str, name: str, alias: str, change: Callable[[Pointers], Pointers], if_match: str | None, why: str) -> str:
        check_segment("alias", alias)
        self._lookup.peek(check_segment("owner", owner), check_segment("name", name))
        _, etag = self._pointer_files.update(owner, name, change, if_match=if_match)
        self._index.refresh(owner, name)
        logger.info("canary_changed", extra={"adapter": f"{owner}/{name}", "alias": alias, "why": why})
        return etag


def _check_beside(before: Pointers, found: FoundName, alias: str, adapter: Adapter) -> None:
    """Whether `adapter` may stand beside `alias`."""
    if before.served(alias) is None:
        raise no_alias(found, alias)
    before.check_served(adapter.exact_name, adapter.version)
    if before.aliases[alias] == adapter.version:
        raise Conflict(f"alias '{alias}' serves {adapter.exact_name} already: try another version beside it")


def _canary_of(before: Pointers, owner: str, name: str, alias: str) -> Canary:
    canary = before.canaries.get(alias)
    if canary is None:
        raise NotFound(f"alias '{alias}' of {owner}/{name} has no canary", param="alias")
    return canary


def _without_canary(before: Pointers, alias: str, by: Actor, why: str, note: str) -> Pointers:
    noted = before.noting(alias, by=by, why=why, note=note)
    return replace(noted, canaries={other: canary for other, canary in before.canaries.items() if other != alias})
