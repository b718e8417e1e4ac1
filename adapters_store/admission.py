"""What an adapter's versions are before they are served, and those that never will be: parts of aliases.json (`pointers.py`).

    published ──▶ Pending ──▶ tried on a replica ──┬──▶ ready: neither of these, and the alias that it was published for points at it
                                                   └──▶ Rejected: every reason is kept, and it is never served

A version that no replica could be asked about yet stays pending. What is refused before it is stored, by its files alone, is Rejected too.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from adapters_store.history import Actor, read_actor, write_actor
from adapters_store.labels import NO_CHANGE, LabelChange, read_label_change, write_label_change

TOLD_SECONDS = 24 * 3600.0  # how long a rejection is told at least
MAX_TOLD = 50  # rejections that one name keeps of files that were not stored
MAX_REASONS = 100


@dataclass(frozen=True, slots=True)
class Pending:
    """A version that waits to be tried. `alias` is what will point at it; None when a later publish or move took its place.

    `labels` is what its publish changes of the name, which serves something else so far: made when it is ready, not when it is rejected.
    """

    alias: str | None
    by: Actor
    why: str  # PUBLISH or ADOPT
    at: float  # seconds since the epoch
    labels: LabelChange = NO_CHANGE


@dataclass(frozen=True, slots=True)
class Rejected:
    """A version that is never served, and every reason why."""

    reasons: tuple[str, ...]
    by: Actor
    at: float


def superseded(pending: Mapping[str, Pending], aliases: set[str]) -> dict[str, Pending]:
    """`pending`, none of which will be pointed at by one of `aliases`."""
    return {v: replace(p, alias=None) if p.alias in aliases else p for v, p in pending.items()}


def remembered(rejected: Mapping[str, Rejected], stored: Mapping[str, float]) -> dict[str, Rejected]:
    """The rejections that are kept: those whose files are there (`stored`), so that they are not taken for good ones; else for a day."""
    now = time.time()
    told = [v for v, r in sorted(rejected.items(), key=lambda row: row[1].at) if v not in stored and now - r.at < TOLD_SECONDS]
    return {v: r for v, r in rejected.items() if v in stored or v in told[-MAX_TOLD:]}


def write_pending(pending: Mapping[str, Pending]) -> dict[str, Any]:
    return {version: _write_pending(one) for version, one in pending.items()}


def read_pending(rows: Any) -> dict[str, Pending]:
    """Raises ValueError, TypeError, KeyError or AttributeError for what is none; so `read_rejected`."""
    return {str(version): _read_pending(row) for version, row in rows.items()}


def write_rejected(rejected: Mapping[str, Rejected]) -> dict[str, Any]:
    return {v: {"reasons": list(r.reasons), "by": write_actor(r.by), "at": r.at} for v, r in rejected.items()}


def read_rejected(rows: Any) -> dict[str, Rejected]:
    return {str(v): Rejected(tuple(map(str, row["reasons"])), read_actor(row["by"]), float(row["at"])) for v, row in rows.items()}


def _write_pending(pending: Pending) -> dict[str, Any]:
    labels = {} if pending.labels == NO_CHANGE else {"labels": write_label_change(pending.labels)}
    return {"alias": pending.alias, "by": write_actor(pending.by), "why": pending.why, "at": pending.at, **labels}


def _read_pending(row: Any) -> Pending:
    labels = read_label_change(row["labels"]) if "labels" in row else NO_CHANGE
    return Pending(row["alias"], read_actor(row["by"]), str(row["why"]), float(row["at"]), labels)
