"""Runs the placement benchmark: `make bench-placement`.

python -m benchmarks.placement.run                            everything, about 15 minutes
python -m benchmarks.placement.run --quick --parts zipf       one round of less; writes nothing

zipf    200 adapters on 4 replicas under each policy, in turns         loads, ttft_p99, throughput
hot     one adapter that all ask for                                   hot_4
cold    cold adapters on one replica, and a stream beside              cold_8, cold_gap_steps
"""

from __future__ import annotations

import argparse
import dataclasses
import signal
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.models import Workload, null_workload
from benchmarks.placement import cluster, cold, hot, results, zipf
from benchmarks.placement.results import Measurements
from benchmarks.placement.settings import HOME, OURS, POLICIES, QUICK_ROUNDS, ROUNDS, ColdPart, HotPart, ZipfPart

RESULTS = Path(__file__).parents[1] / "results" / "placement.json"


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop the cluster then too
    workload = null_workload(Path(options.kept))
    rounds = range(1, (options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)) + 1)
    found = Measurements()
    for name in options.parts:
        with tempfile.TemporaryDirectory(prefix="lk-place-", ignore_cleanup_errors=True) as folder:
            print(f"{name}: starting the cluster", flush=True)
            found = PARTS[name](found, workload, Path(folder), rounds, options)
    print(results.table(found))
    if not options.quick:
        print(results.write(found, Path(options.out)))


def _zipf(found: Measurements, workload: Workload, folder: Path, rounds: range, options: argparse.Namespace) -> Measurements:
    part = ZipfPart(warm_up=200, measured=400) if options.quick else ZipfPart()
    measured = []
    with cluster.start(workload, folder, options.policies, batch=part.batch, held=part.held) as running:
        for number in rounds:
            turn = number % len(options.policies)
            for policy in options.policies[turn:] + options.policies[:turn]:  # nobody is always first
                measured.append(zipf.measure(running, policy, number, part))
                print(zipf.line(measured[-1]), flush=True)
    return dataclasses.replace(found, zipf=measured)


def _hot(found: Measurements, workload: Workload, folder: Path, rounds: range, options: argparse.Namespace) -> Measurements:
    part, measured = HotPart(), []
    with cluster.start(workload, folder, (OURS, HOME), batch=part.batch, held=ZipfPart().held) as running:
        for number in rounds:
            measured.append(hot.measure(running, number, part))
            print(hot.line(measured[-1]), flush=True)
    return dataclasses.replace(found, hot=measured)


def _cold(found: Measurements, workload: Workload, folder: Path, rounds: range, options: argparse.Namespace) -> Measurements:
    part, measured = ColdPart(), []
    with cluster.start(workload, folder, (OURS,), batch=ZipfPart().batch, held=part.held, replicas=1) as running:
        for number in range(1, (part.rounds if len(rounds) > 1 else 1) + 1):
            measured.append(cold.measure(running, number, part))
            print(cold.line(measured[-1]), flush=True)
    return dataclasses.replace(found, cold=measured)


PARTS: dict[str, Callable[[Measurements, Workload, Path, range, argparse.Namespace], Measurements]] = {
    "zipf": _zipf,
    "hot": _hot,
    "cold": _cold,
}


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    def names(text: str) -> tuple[str, ...]:
        return tuple(text.split(","))

    parser = argparse.ArgumentParser(description="Placement of adapters, beside Serve's multiplexing and chance.")
    parser.add_argument("--quick", action="store_true", help="one round of fewer requests; nothing is written")
    parser.add_argument("--rounds", type=int, help=f"{ROUNDS} by default")
    parser.add_argument("--parts", type=names, default=tuple(PARTS), help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--policies", type=names, default=POLICIES, help=f"of {', '.join(POLICIES)}, for zipf; all by default")
    parser.add_argument("--out", default=str(RESULTS), help="the file of the figures")
    kept = Path(tempfile.gettempdir()) / "lorikeet-bench"
    parser.add_argument("--kept", default=str(kept), help="folder of the model, kept for the next run")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
