"""From measurements to figures: the table that is printed, and placement.json.

Every ratio is taken within one round, in which the policies were asked the same a minute apart; the figure is the median of the rounds.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.placement.cold import Cold
from benchmarks.placement.hot import Hot
from benchmarks.placement.settings import OURS, POLICIES, SERVE
from benchmarks.placement.zipf import Measured

TARGETS = {
    "loads": "≤ 0.5",
    "ttft_p99": "≤ 0.5",
    "throughput": "≥ 1.0",
    "hot_4": "≥ 3.4",
    "cold_8": "≤ 1.5",
    "cold_gap_steps": "≤ 2",
}


@dataclass(frozen=True, slots=True)
class Measurements:
    zipf: Sequence[Measured] = ()
    hot: Sequence[Hot] = ()
    cold: Sequence[Cold] = ()


def figures(found: Measurements) -> dict[str, list[float]]:
    """Each figure's value in each round, as far as it was measured. `loads`, `ttft_p99` and `throughput` are ours over Serve's own."""
    values = {
        "loads": _over_serve(found.zipf, lambda one: one.loads),
        "ttft_p99": _over_serve(found.zipf, lambda one: one.ttft_p99_ms),
        "throughput": _over_serve(found.zipf, lambda one: one.requests_per_second),
        "hot_4": [one.times for one in found.hot],
        "cold_8": [one.times for one in found.cold],
        "cold_gap_steps": [one.extra_steps for one in found.cold],
    }
    return {name: rounds for name, rounds in values.items() if rounds}


def _over_serve(measured: Sequence[Measured], field: Callable[[Measured], float]) -> list[float]:
    by = {(one.policy, one.round): field(one) for one in measured}
    rounds = sorted({one.round for one in measured})
    return [by[OURS, number] / by[SERVE, number] for number in rounds if (OURS, number) in by and by.get((SERVE, number))]


def table(found: Measurements) -> str:
    """Medians of every policy, then the figures with their spread and target."""
    lines = []
    if found.zipf:
        lines += ["", f"{'':<20}{'req/s':>8}{'TTFT p50':>10}{'p99':>9} ms{'loads':>9}{'pulls':>8} per 1,000{'CPU s':>9}"]
        lines += [_row(policy, [one for one in found.zipf if one.policy == policy]) for policy in POLICIES]
    lines += ["", f"{'figure':<20}{'median':>8}{'lowest':>9}{'highest':>9}  target"]
    for name, values in figures(found).items():
        lines.append(f"{name:<20}{statistics.median(values):8.3f}{min(values):9.3f}{max(values):9.3f}  {TARGETS[name]}")
    return "\n".join(lines)


def _row(policy: str, rounds: Sequence[Measured]) -> str:
    def median(field: Callable[[Measured], float]) -> float:
        return statistics.median([field(one) for one in rounds] or [0.0])

    row = f"{policy:<20}{median(lambda one: one.requests_per_second):8.1f}{median(lambda one: one.ttft_p50_ms):10.1f}"
    row += f"{median(lambda one: one.ttft_p99_ms):9.1f}   {median(lambda one: one.loads):9.1f}{median(lambda one: one.pulls):8.1f}"
    row += f"{'':10}{median(lambda one: one.cpu_seconds):9.1f}"
    failed = sum(one.failed for one in rounds)
    return row + (f"   {failed} requests failed" if failed else "")


def write(found: Measurements, file: Path) -> str:
    """Write the medians, flat, over those that the file has of parts not measured now; a line that names it."""
    before = json.loads(file.read_text()) if file.is_file() else {}
    medians = {name: round(statistics.median(values), 4) for name, values in figures(found).items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**before, **medians}, indent=2) + "\n")
    return f"written to {file}"
