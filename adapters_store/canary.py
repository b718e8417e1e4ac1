"""A second version beside the one that an alias serves: a canary, which answers some people, or a shadow, which answers nobody.

Both lie in aliases.json beside the alias (`pointers.py`), and are begun, changed and ended in `canaries.py`. Who gets which version is a
pure function of the alias and the person, so that every gateway says the same and asks nobody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from adapters_store.errors import InvalidRequest

ALL = 100.0  # percent

MAX_GUARD_REQUESTS = 1_000_000


@dataclass(frozen=True, slots=True)
class Guard:
    """When a canary has failed: judged over each `requests` of its requests against what the alias's own version did meanwhile.

    `error_points`: how many percentage points more of them may fail. `ttft_ratio`: how much longer their p95 TTFT may be.
    """

    requests: int = 200
    error_points: float = 2.0
    ttft_ratio: float = 1.5


@dataclass(frozen=True, slots=True)
class Canary:
    """`weight` percent of the people who ask for an alias are answered by `version`. `trial` is the id that it is counted under."""

    version: str
    weight: float
    guard: Guard | None
    trial: str
    started_at: float  # seconds since the epoch
    unknown: Mapping[str, Any] = field(default_factory=dict)  # what a newer release says of it


@dataclass(frozen=True, slots=True)
class Shadow:
    """`share` percent of the requests of an alias are copied to `version`, whose answers are counted and dropped."""

    version: str
    share: float
    trial: str
    started_at: float
    unknown: Mapping[str, Any] = field(default_factory=dict)


def place_of(alias: str, person: str) -> float:
    """Where `person` stands among all who ask for `alias` (`owner/name:alias`): evenly spread over 0 to below 100.

    A canary answers those who stand below its weight, so raising it adds people and takes none away.
    """
    digest = hashlib.sha256(f"{alias}\0{person}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48 * ALL  # 48 bits: exact as a float, and never rounded up to 100


def check_percent(what: str, percent: float) -> float:
    """`percent` if it is 0 to 100. Raises InvalidRequest."""
    if not 0 <= percent <= ALL:
        raise InvalidRequest(f"{what} is {percent:g}: give a percentage, 0 to 100", param=what)
    return percent


def check_guard(guard: Guard | None) -> Guard | None:
    """`guard` if a canary may have it. Raises InvalidRequest."""
    if guard is None:
        return None
    if not 1 <= guard.requests <= MAX_GUARD_REQUESTS:
        raise InvalidRequest(f"guard.requests is {guard.requests}: judge over 1 to {MAX_GUARD_REQUESTS} requests", param="guard.requests")
    if not 0 <= guard.error_points <= ALL:
        raise InvalidRequest(f"guard.error_points is {guard.error_points:g}: give percentage points, 0 to 100", param="guard.error_points")
    if not guard.ttft_ratio >= 1:
        raise InvalidRequest(
            f"guard.ttft_ratio is {guard.ttft_ratio:g}: give how many times the old version's p95 is borne, at least 1",
            param="guard.ttft_ratio",
        )
    return guard


def write_canaries(canaries: Mapping[str, Canary]) -> dict[str, Any]:
    return {
        alias: {
            **canary.unknown,
            "version": canary.version,
            "weight": canary.weight,
            "guard": _write_guard(canary.guard),
            "trial": canary.trial,
            "started_at": canary.started_at,
        }
        for alias, canary in canaries.items()
    }


def read_canaries(rows: Any) -> dict[str, Canary]:
    """Raises ValueError, TypeError, KeyError or AttributeError for what are no canaries."""
    return {str(alias): _read_canary(dict(row)) for alias, row in rows.items()}


def write_shadows(shadows: Mapping[str, Shadow]) -> dict[str, Any]:
    return {
        alias: {
            **shadow.unknown,
            "version": shadow.version,
            "share": shadow.share,
            "trial": shadow.trial,
            "started_at": shadow.started_at,
        }
        for alias, shadow in shadows.items()
    }


def read_shadows(rows: Any) -> dict[str, Shadow]:
    """Raises as `read_canaries`."""
    return {str(alias): _read_shadow(dict(row)) for alias, row in rows.items()}


def _write_guard(guard: Guard | None) -> dict[str, Any] | None:
    if guard is None:
        return None
    return {"requests": guard.requests, "error_points": guard.error_points, "ttft_ratio": guard.ttft_ratio}


def _read_canary(row: dict[str, Any]) -> Canary:
    guard = row.pop("guard")
    return Canary(
        version=str(row.pop("version")),
        weight=float(row.pop("weight")),
        guard=None if guard is None else Guard(int(guard["requests"]), float(guard["error_points"]), float(guard["ttft_ratio"])),
        trial=str(row.pop("trial")),
        started_at=float(row.pop("started_at")),
        unknown=row,
    )


def _read_shadow(row: dict[str, Any]) -> Shadow:
    return Shadow(
        version=str(row.pop("version")),
        share=float(row.pop("share")),
        trial=str(row.pop("trial")),
        started_at=float(row.pop("started_at")),
        unknown=row,
    )
