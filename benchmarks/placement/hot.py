"""One adapter that all ask for: what four replicas carry of it, over what its home carries alone; and where it is once it has cooled."""

from __future__ import annotations

import time
from dataclasses import dataclass

from benchmarks.placement.adapters import publish
from benchmarks.placement.cluster import KEY, RunningCluster
from benchmarks.placement.load import Asked, Load
from benchmarks.placement.settings import HOME, OURS, REPLICAS, TOKENS, HotPart, ZipfPart

COOL_REQUESTS, COOL_AT_ONCE = 40, 2


@dataclass(frozen=True, slots=True)
class Hot:
    """One round. `replicas` are those that answered while it was hot, `cooled` those that did once two asked at a time."""

    round: int
    home_alone_per_second: float
    spread_per_second: float
    replicas: int
    cooled: int
    cpu_seconds_per_second: float

    @property
    def times(self) -> float:
        return self.spread_per_second / self.home_alone_per_second


def measure(cluster: RunningCluster, number: int, part: HotPart) -> Hot:
    [name] = publish(cluster.store, f"hot-{number}", 1, cluster.base, ZipfPart().shape)
    alone, spread = (Load(cluster.urls[policy], KEY, TOKENS) for policy in (HOME, OURS))
    share = part.at_once // REPLICAS
    alone.run([name] * share, share)
    home_alone = _per_second(alone.run([name] * (part.measured // REPLICAS), share))
    spread.run([name] * part.at_once, part.at_once)
    began, cpu = time.monotonic(), sum(cluster.processes.cpu_seconds().values())
    before = cluster.answered()
    carried = _per_second(spread.run([name] * part.measured, part.at_once))
    cores = (sum(cluster.processes.cpu_seconds().values()) - cpu) / (time.monotonic() - began)
    hot = cluster.answered()
    spread.run([name] * COOL_REQUESTS, COOL_AT_ONCE)
    return Hot(number, home_alone, carried, len(hot - before), len(cluster.answered() - hot), cores)


def _per_second(answers: list[Asked]) -> float:
    """Answers per second between a quarter and three quarters of the time: while all clients were asking."""
    if any(answer.status != 200 for answer in answers):
        raise RuntimeError(f"{sum(answer.status != 200 for answer in answers)} of {len(answers)} requests failed")
    ended = sorted(answer.ended for answer in answers)
    quarter = len(ended) // 4
    return (2 * quarter) / (ended[-quarter - 1] - ended[quarter - 1])


def line(found: Hot) -> str:
    text = f"  {found.round} hot: home alone {found.home_alone_per_second:5.1f} req/s, {found.replicas} replicas "
    text += f"{found.spread_per_second:5.1f} req/s = {found.times:.2f} times; cooled: on {found.cooled}; "
    return text + f"{found.cpu_seconds_per_second:.2f} cores busy"
