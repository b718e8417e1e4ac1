"""Counts of requests and of how long their first tokens took, small enough to be kept for every trial, and to be added up.

Times are counted in buckets that grow by a tenth each, so a percentile is right to a tenth, whoever counted what.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

SHORTEST_SECONDS = 0.001
GROWTH = 1.1
BUCKETS = 150  # the last one holds all beyond half an hour


@dataclass(slots=True)
class Tally:
    """`requests` that were answered or failed by our fault, `errors` of them; what a client did wrong or broke off is in neither.

    `ttft` is of streams alone: the first part of any other answer is its end. `dropped` are copies that were not made (`shadow`).
    """

    requests: int = 0
    errors: int = 0
    dropped: int = 0
    ttft: Counter[int] = field(default_factory=Counter)  # bucket -> streams

    def count(self, *, failed: bool) -> None:
        self.requests += 1
        self.errors += failed

    def count_first_token(self, seconds: float) -> None:
        self.ttft[_bucket(seconds)] += 1

    @property
    def streams(self) -> int:
        return self.ttft.total()

    @property
    def error_rate(self) -> float:
        """0 to 1; 0 where nothing was counted."""
        return self.errors / self.requests if self.requests else 0.0

    def p95_ttft_seconds(self) -> float | None:
        """What 95 % of the streams stayed within, rounded up to a bucket; None without streams."""
        wanted, seen = 0.95 * self.streams, 0
        for bucket, streams in sorted(self.ttft.items()):
            seen += streams
            if seen >= wanted:
                return SHORTEST_SECONDS * GROWTH**bucket
        return None

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.requests + other.requests, self.errors + other.errors, self.dropped + other.dropped, Counter(self.ttft) + other.ttft
        )

    def since(self, before: Tally) -> Tally:
        """What was counted after `before`, which is of the same counts."""
        ttft = Counter(self.ttft)
        ttft.subtract(before.ttft)
        return Tally(self.requests - before.requests, self.errors - before.errors, self.dropped - before.dropped, +ttft)


def write_tally(tally: Tally) -> dict[str, Any]:
    ttft = {str(bucket): streams for bucket, streams in sorted(tally.ttft.items())}
    return {"requests": tally.requests, "errors": tally.errors, "dropped": tally.dropped, "ttft": ttft}


def read_tally(row: Any) -> Tally:
    """Raises ValueError, TypeError, KeyError or AttributeError for what is no tally."""
    ttft = Counter({int(bucket): int(streams) for bucket, streams in row["ttft"].items()})
    return Tally(int(row["requests"]), int(row["errors"]), int(row["dropped"]), ttft)


def _bucket(seconds: float) -> int:
    if seconds <= SHORTEST_SECONDS:
        return 0
    return min(math.ceil(math.log(seconds / SHORTEST_SECONDS, GROWTH)), BUCKETS)
