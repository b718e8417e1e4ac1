"""Figures are what performance is judged by: each from the right stacks, within one round."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.cases import STREAM_128, TTFT_1
from benchmarks.load import Measurement
from benchmarks.stacks import DIRECT, DIRECT_BASE, LORIKEET, VLLM


def measured(stack: str, round_number: int, tokens_per_second: float, *, case: str = STREAM_128, ttft_ms: float = 10.0) -> Measurement:
    return Measurement(
        workload="null",
        stack=stack,
        case=case,
        at_once=128,
        round=round_number,
        completed=1,
        failed=0,
        duration_seconds=1.0,
        tokens_per_second=tokens_per_second,
        requests_per_second=1.0,
        cpu_seconds_per_1000_tokens=0.1,
        load_cpu_seconds=1.0,
        ttft_p50_ms=ttft_ms,
        ttft_p99_ms=2 * ttft_ms,
        tpot_p50_ms=5.0,
        tpot_p99_ms=6.0,
    )


def test_ratios_are_taken_within_a_round() -> None:
    found = [measured(VLLM, 1, 100.0), measured(LORIKEET, 1, 90.0), measured(VLLM, 2, 10.0), measured(LORIKEET, 2, 12.0)]
    assert results.figures(found)["stream_128"] == pytest.approx([0.9, 1.2])


def test_a_round_that_one_stack_missed_does_not_count() -> None:
    found = [measured(VLLM, 1, 100.0), measured(LORIKEET, 1, 90.0), measured(LORIKEET, 2, 12.0)]
    assert results.figures(found)["stream_128"] == pytest.approx([0.9])


def test_direct_streaming_is_represented_by_its_faster_set_up() -> None:
    found = [measured(LORIKEET, 1, 110.0), measured(DIRECT, 1, 50.0), measured(DIRECT_BASE, 1, 100.0)]
    assert results.figures(found)["stream_128_over_direct_streaming"] == pytest.approx([1.1])


def test_extra_latency_is_a_difference() -> None:
    found = [measured(VLLM, 1, 1.0, case=TTFT_1, ttft_ms=8.0), measured(LORIKEET, 1, 1.0, case=TTFT_1, ttft_ms=9.5)]
    assert results.figures(found) == {"ttft_1_extra_ms": pytest.approx([1.5])}


def test_latest_holds_the_median_of_each_figure(tmp_path: Path) -> None:
    found = [measured(stack, n, speed) for n, speed in enumerate((80.0, 100.0, 90.0), 1) for stack in (VLLM,)]
    found += [measured(LORIKEET, n, 90.0) for n in (1, 2, 3)]
    results.write(found, tmp_path, rounds=3)
    assert json.loads((tmp_path / "latest.json").read_text())["stream_128"] == 1.0
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".png"}
