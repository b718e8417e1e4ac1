"""What an adapter's names point to now, how they came there, and its labels: the content of aliases.json, for `pointer_files.py`.

    {"aliases": {"production": "<version>"}, "retired": {"<version>": <when>}, "adopted": {"etags": {…}, "version": "<version>"},
     "history": [{"at", "by": {…}, "why", "alias", "from", "to"}], "tags": {"task": "chat"}, "private": false,
     "canaries": {"production": {"version", "weight", "guard", …}}, "shadows": {"production": {"version", "share", …}},
     "pending": {"<version>": {"alias", "by", "why", "at", "labels"}}, "rejected": {"<version>": {"reasons", "by", "at"}},
     "deleted": {"at", "aliases", "versions"}, "uploading": {"<version>": <when>}, "removing": {…}, "removed": {…},
     "manifests": {"<version>": {…}}}

Fields that this release does not know are kept as they are: a newer one may share the store.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from adapters_store.admission import (
    Pending,
    Rejected,
    read_pending,
    read_rejected,
    remembered,
    superseded,
    write_pending,
    write_rejected,
)
from adapters_store.canary import Canary, Shadow, read_canaries, read_shadows, write_canaries, write_shadows
from adapters_store.errors import Conflict, InternalError, InvalidRequest, NotFound
from adapters_store.history import Actor, AliasMove, changes, read_history, trimmed, write_history
from adapters_store.labels import LabelChange

MAX_ALIASES = 100

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Deleted:
    """What deleting the whole adapter took away: what undeleting gives back."""

    at: float  # seconds since the epoch
    aliases: Mapping[str, str]
    versions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pointers:
    """`adopted` is the etags of the copied files that were looked at last, by file name; `adopted_version` what they became."""

    aliases: Mapping[str, str] = field(default_factory=dict)
    retired: Mapping[str, float] = field(default_factory=dict)  # version -> seconds since the epoch
    adopted: Mapping[str, str] = field(default_factory=dict)
    adopted_version: str | None = None
    history: tuple[AliasMove, ...] = ()  # oldest first
    tags: Mapping[str, str] = field(default_factory=dict)
    private: bool = False
    canaries: Mapping[str, Canary] = field(default_factory=dict)  # by alias; so the shadows
    shadows: Mapping[str, Shadow] = field(default_factory=dict)
    pending: Mapping[str, Pending] = field(default_factory=dict)  # by version; so the rejected
    rejected: Mapping[str, Rejected] = field(default_factory=dict)
    deleted: Deleted | None = None
    uploading: Mapping[str, float] = field(default_factory=dict)  # versions that somebody began to upload -> when (see versions.py)
    removing: Mapping[str, float] = field(default_factory=dict)  # versions whose files are going, and went -> when (see garbage.py)
    removed: Mapping[str, float] = field(default_factory=dict)
    manifests: Mapping[str, Any] = field(default_factory=dict)  # of what aliases serve (see pointer_files.py)
    unknown: Mapping[str, Any] = field(default_factory=dict)

    def pointing(self, alias: str, version: str, *, by: Actor, why: str) -> Pointers:
        """With `alias` on `version`, which is no longer retired. Raises InvalidRequest for one alias too many."""
        if alias not in self.aliases and len(self.aliases) >= MAX_ALIASES:
            raise InvalidRequest(f"there are {len(self.aliases)} aliases, at most {MAX_ALIASES} are kept: delete one first", param="alias")
        moved = self.with_aliases({**self.aliases, alias: version}, by=by, why=why)
        return replace(moved, retired=without(self.retired, version), deleted=None)

    def with_aliases(self, aliases: Mapping[str, str], *, by: Actor, why: str) -> Pointers:
        """With these aliases and no others, and what that moved in the history. A move ends what stood beside the alias.

        A canary is compared with the version that its alias serves: with another, it would be another canary.
        """
        ended = {alias: self._beside(alias) for alias in (*self.canaries, *self.shadows)}
        moved = [
            replace(move, note=f"ended {ended[move.alias]}") if move.alias in ended else move
            for move in changes(self.aliases, aliases, by=by, why=why, at=time.time())
        ]
        gone = {move.alias for move in moved}
        return replace(
            self,
            aliases=aliases,
            canaries={alias: canary for alias, canary in self.canaries.items() if alias not in gone},
            shadows={alias: shadow for alias, shadow in self.shadows.items() if alias not in gone},
            pending=superseded(self.pending, gone),
            history=trimmed((*self.history, *moved), aliases),
        )

    def passing_over(self, copied: Mapping[str, str]) -> Pointers:
        """With the files that lie copied under the name (their etags) taken for looked at: who moves `production` comes after them."""
        return self if not copied or copied == self.adopted else replace(self, adopted=dict(copied), adopted_version=None)

    def noting(self, alias: str, *, by: Actor, why: str, note: str) -> Pointers:
        """With an entry in the history that says what happened to `alias`, which stays where it is."""
        version = self.aliases.get(alias)
        entry = AliasMove(time.time(), by, why, alias, version, version, note)
        return replace(self, history=trimmed((*self.history, entry), self.aliases))

    def served(self, alias: str) -> str | None:
        """The version that `alias` serves, or None: no such alias, or its version is retired."""
        version = self.aliases.get(alias)
        return None if version is None or self.is_gone(version) else version

    @property
    def serves(self) -> bool:
        """Whether any alias serves something."""
        return any(self.served(alias) is not None for alias in self.aliases)

    @property
    def in_use(self) -> frozenset[str]:
        """The versions that aliases serve."""
        return frozenset(version for version in self.aliases.values() if not self.is_gone(version))

    def tried_beside(self, version: str) -> str | None:
        """The alias that has `version` as its canary or shadow, or None."""
        arms: list[tuple[str, Canary | Shadow]] = [*self.canaries.items(), *self.shadows.items()]
        return next((alias for alias, arm in arms if arm.version == version), None)

    @property
    def trials(self) -> frozenset[str]:
        """Under which ids something is being counted."""
        return frozenset({*(canary.trial for canary in self.canaries.values()), *(shadow.trial for shadow in self.shadows.values())})

    def is_gone(self, version: str) -> bool:
        """Whether no new request may have `version`: it was taken away, waits to be tried, or was rejected."""
        return self.was_taken_away(version) or version in self.pending or version in self.rejected

    def was_taken_away(self, version: str) -> bool:
        """Whether `version` was retired, or its files are gone."""
        return version in self.retired or version in self.removing or version in self.removed

    def check_served(self, exact_name: str, version: str) -> None:
        """Raises NotFound where `version` was taken away or rejected, Conflict while it waits to be tried."""
        if version in self.pending:
            raise Conflict(f"{exact_name} waits to be tried on a replica: do this when it is ready")
        if version in self.rejected:
            raise NotFound(f"adapter version {exact_name} was rejected: {' '.join(self.rejected[version].reasons)}", param="version")
        if self.was_taken_away(version):
            raise NotFound(f"adapter version {exact_name} was retired: undelete it, or publish it again first", param="version")

    def holding(self, version: str, pending: Pending) -> Pointers:
        """With `version` waiting to be tried; it alone will get the alias that it is for."""
        if (known := self.pending.get(version)) is not None:
            pending = replace(pending, labels=pending.labels.over(known.labels))
        others = superseded(self.pending, {pending.alias}) if pending.alias is not None else dict(self.pending)
        rejected = without(self.rejected, version)
        return replace(self, pending={**others, version: pending}, rejected=rejected, retired=without(self.retired, version))

    def admitting(self, version: str) -> Pointers:
        """With `version` served: its alias points at it, and the name has its labels. Nothing changes unless it waits."""
        pending = self.pending.get(version)
        if pending is None:
            return self
        labels = pending.labels
        try:
            labels.tags_after(self.tags)
        except InvalidRequest:  # with tags that came since there would be too many: who may see it is what matters
            labels = LabelChange(private=labels.private)
        ready = replace(self, pending=without(self.pending, version)).labelled(labels, at=pending.at)
        return ready if pending.alias is None else ready.pointing(pending.alias, version, by=pending.by, why=pending.why)

    def rejecting(self, version: str, rejected: Rejected, *, stored: bool) -> Pointers:
        """With `version` never to be served. The files of one that is `stored` are garbage from now on."""
        pending = without(self.pending, version)
        retired = {**self.retired, version: rejected.at} if stored else self.retired
        return replace(self, pending=pending, rejected=remembered({**self.rejected, version: rejected}, retired), retired=retired)

    def labelled(self, change: LabelChange, *, at: float = math.inf) -> Pointers:
        """With other tags and visibility. What waits and was published before this was asked for (`at`) does not undo it.

        Raises InvalidRequest.
        """
        private = self.private if change.private is None else change.private
        pending = {v: replace(p, labels=p.labels.beside(change)) if p.at <= at else p for v, p in self.pending.items()}
        return replace(self, tags=change.tags_after(self.tags), private=private, pending=pending)

    def _beside(self, alias: str) -> str:
        """What stands beside `alias`, for people."""
        canary, shadow = self.canaries.get(alias), self.shadows.get(alias)
        return " and ".join(
            [
                *([f"the canary of {canary.version[:12]} at {canary.weight:g} %"] if canary else []),
                *([f"the shadow of {shadow.version[:12]} at {shadow.share:g} %"] if shadow else []),
            ]
        )


def write_pointers(pointers: Pointers) -> bytes:
    known = {
        "aliases": dict(pointers.aliases),
        "retired": dict(pointers.retired),
        "adopted": {"etags": dict(pointers.adopted), "version": pointers.adopted_version},
        "history": write_history(pointers.history),
        "tags": dict(pointers.tags),
        "private": pointers.private,
        "canaries": write_canaries(pointers.canaries),
        "shadows": write_shadows(pointers.shadows),
        "pending": write_pending(pointers.pending),
        "rejected": write_rejected(pointers.rejected),
        "deleted": _write_deleted(pointers.deleted),
        "uploading": dict(pointers.uploading),
        "removing": dict(pointers.removing),
        "removed": dict(pointers.removed),
        "manifests": dict(pointers.manifests),
    }
    return json.dumps({**pointers.unknown, **known}, indent=1).encode()


def read_pointers(data: bytes, owner: str, name: str) -> Pointers:
    """The pointers that `data` holds. Raises InternalError when it is damaged."""
    try:
        body = json.loads(data)
        adopted = body.pop("adopted", {})
        return Pointers(
            aliases={str(alias): str(version) for alias, version in body.pop("aliases").items()},
            retired=_times(body.pop("retired", {})),
            adopted={str(file): str(etag) for file, etag in adopted.get("etags", {}).items()},
            adopted_version=adopted.get("version"),
            history=read_history(body.pop("history", [])),
            tags={str(key): str(value) for key, value in body.pop("tags", {}).items()},
            private=bool(body.pop("private", False)),
            canaries=read_canaries(body.pop("canaries", {})),
            shadows=read_shadows(body.pop("shadows", {})),
            pending=read_pending(body.pop("pending", {})),
            rejected=read_rejected(body.pop("rejected", {})),
            deleted=_read_deleted(body.pop("deleted", None)),
            uploading=_times(body.pop("uploading", {})),
            removing=_times(body.pop("removing", {})),
            removed=_times(body.pop("removed", {})),
            manifests=dict(body.pop("manifests", {})),
            unknown=body,
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        raise InternalError(f"the aliases of {owner}/{name} are damaged: the operator has to repair aliases.json") from None


def without(entries: Mapping[str, V], version: str) -> dict[str, V]:
    """`entries` with none for `version`."""
    return {other: entry for other, entry in entries.items() if other != version}


def _times(rows: Any) -> dict[str, float]:
    return {str(version): float(when) for version, when in rows.items()}


def _write_deleted(deleted: Deleted | None) -> dict[str, Any] | None:
    if deleted is None:
        return None
    return {"at": deleted.at, "aliases": dict(deleted.aliases), "versions": list(deleted.versions)}


def _read_deleted(body: Any) -> Deleted | None:
    return Deleted(float(body["at"]), dict(body["aliases"]), tuple(body["versions"])) if body else None
