"""What happened to an adapter's aliases: one entry for each move, kept in aliases.json, so that it is written by the same conditional put.

What begins, changes or ends a canary or a shadow has an entry too: one that moves from a version to itself, and has a note.

The newest HISTORY_KEPT entries are kept, and the newest move of every alias that is there beyond them: however busy one alias is, what
another one came from is not forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

HISTORY_KEPT = 100

PUBLISH, MOVE, ROLLBACK, DELETE_ALIAS = "publish", "move", "rollback", "delete_alias"
RETIRE, UNDELETE, ADOPT = "retire", "undelete", "adopt"
CANARY, PROMOTE, ABORT, GUARD = "canary", "promote", "abort", "guard"
SHADOW, UNSHADOW = "shadow", "unshadow"
_TAKES_BACK = (ROLLBACK, UNDELETE)


@dataclass(frozen=True, slots=True)
class Actor:
    """Who did it: the id of a key, never the key, with what it was called then, since keys may be gone by the time somebody asks."""

    key_id: str
    name: str = ""
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class AliasMove:
    """One move of one alias. `before` and `after` are versions; None where the alias was not, or is no more. `note` is for people."""

    at: float  # seconds since the epoch
    by: Actor
    why: str  # PUBLISH, MOVE, …; a newer release may have others
    alias: str
    before: str | None
    after: str | None
    note: str = ""
    unknown: Mapping[str, Any] = field(default_factory=dict)  # what a newer release says of it


def changes(before: Mapping[str, str], after: Mapping[str, str], *, by: Actor, why: str, at: float) -> tuple[AliasMove, ...]:
    """What moved between two states of the aliases, by alias."""
    names = sorted(before.keys() | after.keys())
    return tuple(AliasMove(at, by, why, name, before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name))


def trimmed(history: Sequence[AliasMove], aliases: Iterable[str]) -> tuple[AliasMove, ...]:
    """The part of `history` (oldest first) that is kept."""
    if len(history) <= HISTORY_KEPT:
        return tuple(history)
    recent = history[-HISTORY_KEPT:]
    quiet = set(aliases) - {move.alias for move in recent if move.before != move.after}
    kept: list[AliasMove] = []
    for move in reversed(history[:-HISTORY_KEPT]):
        if move.alias in quiet and move.before != move.after:
            quiet.discard(move.alias)
            kept.append(move)
    return (*reversed(kept), *recent)


def version_before(history: Sequence[AliasMove], alias: str, version: str) -> str | None:
    """What `alias` served before it came to `version`, where it is now; None when nobody knows.

    Rolling back twice goes back two steps: a version that was rolled away from is not come back to.
    """
    trail: list[str] = []
    for move in history:
        if move.alias != alias:
            continue
        if not trail and move.before is not None:
            trail.append(move.before)
        if move.after is None:
            continue
        if move.why in _TAKES_BACK and move.after in trail:
            while trail[-1] != move.after:
                trail.pop()
        elif not trail or trail[-1] != move.after:
            trail.append(move.after)
    # The trail ends where the alias is, unless something that kept no history moved it: then nothing is known.
    return trail[-2] if len(trail) > 1 and trail[-1] == version else None


def write_history(history: Sequence[AliasMove]) -> list[dict[str, Any]]:
    return [
        {
            **move.unknown,
            "at": move.at,
            "by": write_actor(move.by),
            "why": move.why,
            "alias": move.alias,
            "from": move.before,
            "to": move.after,
            **({"note": move.note} if move.note else {}),
        }
        for move in history
    ]


def read_history(rows: Any) -> tuple[AliasMove, ...]:
    """Raises ValueError, TypeError, KeyError or AttributeError for what is no history."""
    return tuple(_read_move(dict(row)) for row in rows)


def write_actor(by: Actor) -> dict[str, str]:
    return {"key_id": by.key_id, "name": by.name, "tenant": by.tenant}


def read_actor(row: Any) -> Actor:
    """Raises as `read_history`."""
    return Actor(str(row["key_id"]), str(row.get("name", "")), str(row.get("tenant", "")))


def _read_move(row: dict[str, Any]) -> AliasMove:
    return AliasMove(
        at=float(row.pop("at")),
        by=read_actor(row.pop("by")),
        why=str(row.pop("why")),
        alias=str(row.pop("alias")),
        before=row.pop("from"),
        after=row.pop("to"),
        note=str(row.pop("note", "")),
        unknown=row,
    )
