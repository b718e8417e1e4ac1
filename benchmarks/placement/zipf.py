"""The Zipf mix: the same run of requests under each policy, in turns, round after round."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.placement.adapters import publish
from benchmarks.placement.cluster import KEY, RunningCluster
from benchmarks.placement.load import Asked, Load
from benchmarks.placement.settings import TOKENS, ZipfPart
from benchmarks.placement.traffic import ADAPTERS, zipf
from benchmarks.processes import spent


@dataclass(frozen=True, slots=True)
class Measured:
    """One policy in one round. Loads and pulls are the replicas' own counts, per 1,000 requests."""

    policy: str
    round: int
    requests: int
    failed: int
    requests_per_second: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    loads: float
    pulls: float
    cpu_seconds: float


def measure(cluster: RunningCluster, policy: str, number: int, part: ZipfPart) -> Measured:
    """Warm up with the first part of the round's requests, count over the rest."""
    owner = f"{policy.replace('_', '-')}-{number}"
    names = publish(cluster.store, owner, ADAPTERS, cluster.base, part.shape)
    asked = [names[index] for index in zipf(part.warm_up + part.measured, seed=number)]
    load = Load(cluster.urls[policy], KEY, TOKENS)
    load.run(asked[: part.warm_up], part.at_once)
    before, cpu_before = cluster.counts(), cluster.processes.cpu_seconds()
    answers = load.run(asked[part.warm_up :], part.at_once)
    counts = cluster.counts() - before
    cpu_seconds = spent(cpu_before, cluster.processes.cpu_seconds())
    return _measured(policy, number, answers, counts["adapter_loaded"], counts["adapter_pulled"], cpu_seconds)


def _measured(policy: str, number: int, answers: Sequence[Asked], loads: int, pulls: int, cpu_seconds: float) -> Measured:
    good = [answer for answer in answers if answer.status == 200]
    seconds = max(answer.ended for answer in answers) - min(answer.started for answer in answers)
    ttft = [answer.ttft_ms for answer in good]
    percentiles = statistics.quantiles(ttft, n=100)
    return Measured(
        policy=policy,
        round=number,
        requests=len(answers),
        failed=len(answers) - len(good),
        requests_per_second=len(good) / seconds,
        ttft_p50_ms=percentiles[49],
        ttft_p99_ms=percentiles[98],
        loads=1e3 * loads / len(answers),
        pulls=1e3 * pulls / len(answers),
        cpu_seconds=cpu_seconds,
    )


def line(found: Measured) -> str:
    text = f"  {found.round} {found.policy:<18}{found.requests_per_second:7.1f} req/s"
    text += f"  TTFT {found.ttft_p50_ms:7.1f}/{found.ttft_p99_ms:7.1f} ms"
    text += f"  loads {found.loads:6.1f}  pulls {found.pulls:6.1f} of 1,000  CPU {found.cpu_seconds:6.1f} s"
    return text + (f"  FAILED {found.failed}" if found.failed else "")
