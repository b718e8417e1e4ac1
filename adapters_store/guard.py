"""Whether a canary has failed, by what was counted of it and of the version that its alias serves. Pure: `trials.py` keeps the counts."""

from __future__ import annotations

from dataclasses import dataclass

from adapters_store.canary import Guard
from adapters_store.tally import Tally

FEW_STREAMS = 20  # a p95 of fewer says nothing


@dataclass(frozen=True, slots=True)
class Verdict:
    """`failed` says why with the numbers, or is empty. `over`: as many requests were seen as the guard judges over."""

    failed: str
    over: bool


def judge(guard: Guard, stable: Tally, canary: Tally) -> Verdict:
    """Judge what was counted since the last verdict.

    Errors are judged from the first request on: when there are already more than would be borne in the whole, the rest is not waited for.
    """
    over = canary.requests >= guard.requests
    failed = _too_many_errors(guard, stable, canary) or (_too_slow(guard, stable, canary) if over else "")
    return Verdict(failed, over)


def _too_many_errors(guard: Guard, stable: Tally, canary: Tally) -> str:
    borne = (stable.error_rate + guard.error_points / 100) * max(guard.requests, canary.requests)
    if canary.errors <= borne:
        return ""
    return (
        f"{canary.errors:,} of {canary.requests:,} requests failed ({canary.error_rate:.1%}), against {stable.errors:,} of "
        f"{stable.requests:,} ({stable.error_rate:.1%}) of the old version; {guard.error_points:g} points more are borne over "
        f"{guard.requests:,}"
    )


def _too_slow(guard: Guard, stable: Tally, canary: Tally) -> str:
    enough = min(FEW_STREAMS, guard.requests)
    new, old = canary.p95_ttft_seconds(), stable.p95_ttft_seconds()
    if new is None or old is None or min(canary.streams, stable.streams) < enough or new <= guard.ttft_ratio * old:
        return ""
    return (
        f"p95 TTFT was {new:.3f} s over {canary.streams:,} streams, against {old:.3f} s over {stable.streams:,} of the old version; "
        f"{guard.ttft_ratio:g} times that is borne"
    )
