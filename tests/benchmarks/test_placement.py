"""The placement benchmark's own arithmetic: the mix that is asked, the ratios, the file of the figures."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from benchmarks.placement.cold import Cold
from benchmarks.placement.hot import Hot
from benchmarks.placement.results import TARGETS, Measurements, figures, table, write
from benchmarks.placement.settings import OURS, RANDOM, SERVE
from benchmarks.placement.traffic import ADAPTERS, least_loads, zipf
from benchmarks.placement.zipf import Measured


def measured(policy: str, number: int, *, loads: float, p99: float = 100.0, rate: float = 40.0) -> Measured:
    return Measured(policy, number, 1500, 0, rate, 10.0, p99, loads, 5.0, 12.0)


def test_every_policy_is_asked_the_same_and_each_round_something_else() -> None:
    assert zipf(500, seed=1) == zipf(500, seed=1)
    assert zipf(500, seed=1) != zipf(500, seed=2)


def test_popularity_follows_the_law() -> None:
    asked = Counter(zipf(200_000, seed=3)).most_common()
    weights = [1 / place**1.1 for place in range(1, ADAPTERS + 1)]
    for place in (1, 2, 10, 50):
        share = asked[place - 1][1] / 200_000
        assert abs(share - weights[place - 1] / sum(weights)) < 0.1 * share + 0.001


def test_the_more_are_held_the_fewer_loads_are_left() -> None:
    assert least_loads(0) == 1000.0
    assert least_loads(ADAPTERS) == 0.0
    assert 130 < least_loads(64) < 170


def test_figures_are_ours_over_serves_within_a_round() -> None:
    found = Measurements(
        zipf=[
            measured(OURS, 1, loads=100, p99=50, rate=44),
            measured(SERVE, 1, loads=200, p99=200, rate=40),
            measured(RANDOM, 1, loads=500),
            measured(SERVE, 2, loads=300),
            measured(OURS, 2, loads=90),
        ],
        hot=[Hot(1, 6.5, 24.7, 4, 1, 0.9)],
        cold=[Cold(1, 200.0, 250.0, 30.0, 55.0)],
    )
    values = figures(found)
    assert values["loads"] == [0.5, 0.3]
    assert values["ttft_p99"] == [0.25, 1.0]
    assert values["throughput"] == [1.1, 1.0]
    assert [values[name][0] for name in ("hot_4", "cold_8", "cold_gap_steps")] == [3.8, 1.25, 1.0]
    assert values.keys() == TARGETS.keys()
    assert "bounded_load" in table(found)


def test_a_part_that_was_not_measured_keeps_its_figures(tmp_path: Path) -> None:
    file = tmp_path / "placement.json"
    write(Measurements(hot=[Hot(1, 5.0, 18.0, 4, 1, 0.9)]), file)
    write(Measurements(cold=[Cold(1, 200.0, 250.0, 30.0, 55.0)]), file)
    assert json.loads(file.read_text()) == {"hot_4": 3.6, "cold_8": 1.25, "cold_gap_steps": 1.0}
