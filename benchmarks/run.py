"""Runs the benchmarks: every stack up at once, all but the one under load paused, in turns, over some rounds.

    python -m benchmarks.run                                                      everything: `make bench`
    python -m benchmarks.run --quick --stacks vllm,lorikeet --cases stream_128    a look while developing

Ratios are taken within a round, where the stacks had the same machine within a minute, and then their median over the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import results
from benchmarks.cases import NULL_CASES, REAL_CASES, SCALE_CASES, Case, shorter
from benchmarks.load import Load, Measurement, load_generator
from benchmarks.models import Workload, null_workload, real_workload
from benchmarks.stacks import DIRECT, DIRECT_BASE, LORIKEET, LORIKEET_2X2, RAY, VLLM, VLLM_PAIR, all_stacks
from benchmarks.stacks.stack import Stack

ROUNDS, QUICK_ROUNDS = 5, 2
SETTLE_SECONDS = 1.0  # what a stack gets after its pause to catch up with its own health checks


@dataclass(frozen=True, slots=True)
class Part:
    """Stacks that alternate with one another, and what is asked of them."""

    workload: str
    stacks: tuple[str, ...]
    cases: tuple[Case, ...]


PARTS = {
    "null": Part("null", (VLLM, LORIKEET, RAY, DIRECT, DIRECT_BASE), NULL_CASES),
    "scale": Part("null", (LORIKEET, LORIKEET_2X2, VLLM, VLLM_PAIR), SCALE_CASES),
    "real": Part("real", (VLLM, LORIKEET), REAL_CASES),
}


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop the stacks then too
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    kept = Path(options.kept)
    measurements: list[Measurement] = []
    with tempfile.TemporaryDirectory(prefix="lk-bench-", ignore_cleanup_errors=True) as folder, load_generator(Path(folder)) as load:
        for name in options.parts:
            part = _chosen(PARTS[name], options)
            if not part.stacks or not part.cases:
                continue
            workload = null_workload(kept) if part.workload == "null" else real_workload(kept)
            print(f"{name}: {', '.join(part.stacks)}; {', '.join(case.name for case in part.cases)}; {rounds} rounds", flush=True)
            part_folder = Path(folder) / name
            part_folder.mkdir()
            measurements += run_part(part, workload, part_folder, load, rounds, name)
            print(results.table(measurements), flush=True)
            if not options.quick:  # after each part: what stops a later one does not take this one's figures with it
                print(results.write(measurements, Path(options.out), rounds), flush=True)


def run_part(part: Part, workload: Workload, folder: Path, load: Load, rounds: int, name: str) -> list[Measurement]:
    """Start the part's stacks, measure every case on each in every round, stop them."""
    measurements: list[Measurement] = []
    with contextlib.ExitStack() as running:
        stacks = [running.enter_context(_started(stack, workload, folder, load)) for stack in part.stacks]
        for number in range(1, rounds + 1):
            turn = number % len(stacks)
            for stack in stacks[turn:] + stacks[:turn]:  # nobody is always first
                with _awake(stack, load):
                    for case in part.cases:
                        found = dataclasses.replace(load.measure(stack, case, number), workload=name)
                        print(results.line(found), flush=True)
                        measurements.append(found)
    return measurements


@contextlib.contextmanager
def _started(name: str, workload: Workload, folder: Path, load: Load) -> Iterator[Stack]:
    """The stack, warmed up and paused."""
    began = time.monotonic()
    with all_stacks()[name](workload, folder) as stack:
        load.warm_up(stack, is_new=True)
        gib = stack.processes.memory_bytes() / 2**30
        print(f"  {name} is up after {time.monotonic() - began:.0f} s, {gib:.1f} GiB{'; ' + stack.note if stack.note else ''}", flush=True)
        stack.processes.pause()
        yield stack


@contextlib.contextmanager
def _awake(stack: Stack, load: Load) -> Iterator[None]:
    """Let the stack run for the length of the block."""
    stack.processes.resume()
    try:
        time.sleep(SETTLE_SECONDS)
        load.warm_up(stack, is_new=False)
        yield
    finally:
        stack.processes.pause()


def _chosen(part: Part, options: argparse.Namespace) -> Part:
    cases = tuple(case for case in part.cases if not options.cases or case.name in options.cases)
    if options.quick:
        cases = tuple(shorter(case) for case in cases)
    stacks = tuple(stack for stack in part.stacks if not options.stacks or stack in options.stacks)
    return Part(part.workload, stacks, cases)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(description="Lorikeet beside bare vLLM and ray.serve.llm.")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds of fewer requests; nothing is written")
    parser.add_argument("--rounds", type=int, help=f"{ROUNDS} by default")
    parser.add_argument("--parts", type=names, help=f"of {', '.join(PARTS)}; all by default, null with --quick")
    parser.add_argument("--stacks", type=names, help=f"of {', '.join(all_stacks())}; all of the part's by default")
    parser.add_argument("--cases", type=names, help=f"of {', '.join(case.name for case in NULL_CASES)}; all of the part's by default")
    parser.add_argument("--out", default=str(Path(__file__).parent / "results"), help="folder for JSON and plots")
    parser.add_argument(
        "--kept", default=str(Path(tempfile.gettempdir()) / "lorikeet-bench"), help="folder of the models, kept for the next run"
    )
    options = parser.parse_args(arguments)
    options.parts = options.parts or (["null"] if options.quick else list(PARTS))
    return options


if __name__ == "__main__":
    main()
