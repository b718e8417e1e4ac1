"""What all gateways together have counted of a canary or a shadow. Calls block.

    trials/<owner>/<name>/<trial>/counts/<gateway>.json    what one gateway has counted since it began: only that gateway writes it
    trials/<owner>/<name>/<trial>/window.json              the sums where the guard last judged: changed by conditional puts

Each gateway writes its own sums whole, so a write that is sent twice, or lost with its answer, counts nothing twice; whoever wants to know
adds up what is there. The guard judges what came after window.json, and every gateway that finds the window full may be the judge: one of
them moves it on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from adapters_store.errors import Conflict, InternalError, NotFound
from adapters_store.layout import trial_counts_prefix, trial_window_key
from adapters_store.objects import ObjectStore
from adapters_store.paging import objects_under
from adapters_store.recent import Recent
from adapters_store.tally import Tally, read_tally, write_tally

STABLE, CANARY, SHADOW = "stable", "canary", "shadow"  # who was counted

COUNTS_KEPT = 1000

Sides = Mapping[str, Tally]


@dataclass(frozen=True, slots=True)
class Window:
    """Where the guard last judged: how often it did, and the sums at that time."""

    number: int = 0
    start: Sides = field(default_factory=dict)


class Trials:
    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._known: Recent[tuple[str, str], Sides] = Recent(COUNTS_KEPT)  # by key and etag

    def report(self, owner: str, name: str, trial: str, gateway: str, sides: Sides) -> None:
        """Write what `gateway` has counted since it began."""
        self._store.put(f"{trial_counts_prefix(owner, name, trial)}{gateway}.json", _write_sides(sides))

    def totals(self, owner: str, name: str, trial: str) -> Sides:
        """What every gateway has counted together: one listing, and one read of each count that is new."""
        totals: dict[str, Tally] = {}
        for info in objects_under(self._store, trial_counts_prefix(owner, name, trial)):
            for side, tally in self._counts(info.key, info.etag).items():
                totals[side] = totals.get(side, Tally()) + tally
        return totals

    def window(self, owner: str, name: str, trial: str) -> tuple[Window, str | None]:
        """Where the guard last judged, and the etag of that; None before it ever did."""
        try:
            data, etag = self._store.get(trial_window_key(owner, name, trial))
        except NotFound:
            return Window(), None
        body = _parsed(data)
        try:
            return Window(int(body["number"]), _read_sides(body["start"])), etag
        except (ValueError, TypeError, KeyError, AttributeError):
            raise _damaged() from None

    def move_window(self, owner: str, name: str, trial: str, window: Window, etag: str | None) -> bool:
        """Go on from `window`; False when another gateway has been quicker."""
        data = json.dumps({"number": window.number, "start": json.loads(_write_sides(window.start))}).encode()
        try:
            self._store.put(trial_window_key(owner, name, trial), data, if_match=etag, if_absent=etag is None)
        except Conflict:
            return False
        return True

    def _counts(self, key: str, etag: str) -> Sides:
        known = self._known.get((key, etag))
        if known is not None:
            return known
        try:
            data, etag = self._store.get(key)
        except NotFound:
            return {}  # the trial is over, and forgotten
        try:
            sides = _read_sides(_parsed(data))
        except (ValueError, TypeError, KeyError, AttributeError):
            raise _damaged() from None
        self._known.put((key, etag), sides)
        return sides


def _write_sides(sides: Sides) -> bytes:
    return json.dumps({side: write_tally(tally) for side, tally in sides.items()}).encode()


def _read_sides(body: Any) -> Sides:
    return {str(side): read_tally(row) for side, row in body.items()}


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        raise _damaged() from None


def _damaged() -> InternalError:
    return InternalError("the counts of a canary or shadow are damaged: end it, and begin another")
