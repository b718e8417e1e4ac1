"""When a canary has failed, and how counts of many gateways come together."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from adapters_store import garbage
from adapters_store.canary import Guard
from adapters_store.errors import InternalError
from adapters_store.garbage import GarbageRules
from adapters_store.guard import judge
from adapters_store.history import Actor
from adapters_store.layout import trial_counts_prefix
from adapters_store.objects import ObjectStore
from adapters_store.registry import Registry
from adapters_store.tally import GROWTH, Tally, read_tally, write_tally
from adapters_store.trials import CANARY, STABLE, Trials, Window
from adapters_store.validate import Fit

GUARD = Guard(requests=100, error_points=2.0, ttft_ratio=1.5)
WHO = ("acme", "support", "trial1")


def tally(requests: int, errors: int = 0, *, seconds: list[float] | None = None) -> Tally:
    made = Tally(requests, errors)
    for second in seconds or ():
        made.count_first_token(second)
    return made


def test_canary_as_good_as_the_old_version_goes_on() -> None:
    verdict = judge(GUARD, tally(900, 9, seconds=[0.1] * 900), tally(100, 1, seconds=[0.1] * 100))
    assert (verdict.failed, verdict.over) == ("", True)


def test_too_few_requests_are_no_verdict_yet() -> None:
    verdict = judge(GUARD, tally(900, seconds=[0.1] * 900), tally(99, 2, seconds=[1.0] * 99))
    assert (verdict.failed, verdict.over) == ("", False)


def test_more_errors_than_borne_fail_before_all_requests_are_seen() -> None:
    verdict = judge(GUARD, tally(900, 9), tally(4, 4))
    assert verdict.failed == (
        "4 of 4 requests failed (100.0%), against 9 of 900 (1.0%) of the old version; 2 points more are borne over 100"
    )
    assert judge(GUARD, tally(900, 9), tally(3, 3)).failed == "", "as many as 3 % of 100 are borne"


def test_errors_that_the_old_version_has_too_are_not_the_canarys() -> None:
    assert judge(GUARD, tally(100, 50), tally(100, 51)).failed == ""


def test_slow_canary_fails_when_enough_is_seen() -> None:
    verdict = judge(GUARD, tally(900, seconds=[0.1] * 900), tally(100, seconds=[0.1] * 90 + [0.3] * 10))
    assert verdict.failed.startswith("p95 TTFT was 0.3")
    assert "over 100 streams, against 0.1" in verdict.failed
    assert judge(GUARD, tally(900, seconds=[0.1] * 900), tally(100, seconds=[0.1] * 96 + [9.0] * 4)).failed == "", "p95, not the worst"


def test_few_streams_are_not_judged_by_their_time() -> None:
    assert judge(GUARD, tally(900, seconds=[0.1] * 900), tally(100, seconds=[9.0] * 19)).failed == ""
    assert judge(GUARD, tally(10, seconds=[0.1] * 10), tally(100, seconds=[9.0] * 100)).failed == ""


def test_percentile_is_right_to_a_tenth_however_counts_are_split() -> None:
    numbers = random.Random(1)
    times = [numbers.lognormvariate(-1, 1) for _ in range(5000)]
    parts = [tally(0, seconds=times[start::3]) for start in range(3)]
    exact = sorted(times)[round(0.95 * len(times)) - 1]
    measured = sum(parts, Tally()).p95_ttft_seconds()
    assert measured is not None
    assert exact / GROWTH <= measured <= exact * GROWTH
    assert Tally().p95_ttft_seconds() is None


def test_tally_survives_being_written_and_what_came_since_is_told() -> None:
    first, more = tally(10, 1, seconds=[0.1, 0.2]), tally(5, 2, seconds=[0.2, 5.0])
    assert read_tally(write_tally(first)) == first
    assert (first + more).since(first) == more


def test_counts_of_every_gateway_are_added_and_written_twice_count_once(store: ObjectStore) -> None:
    trials = Trials(store)
    trials.report(*WHO, "gateway1", {STABLE: tally(10, 1), CANARY: tally(2)})
    for _ in range(2):
        trials.report(*WHO, "gateway2", {STABLE: tally(5), CANARY: tally(1, 1)})
    totals = Trials(store).totals(*WHO)
    assert (totals[STABLE], totals[CANARY]) == (tally(15, 1), tally(3, 1))
    trials.report(*WHO, "gateway2", {STABLE: tally(6), CANARY: tally(1, 1)})
    assert trials.totals(*WHO)[STABLE] == tally(16, 1)


def test_window_is_moved_on_by_one_gateway_only(store: ObjectStore) -> None:
    trials = Trials(store)
    window, etag = trials.window(*WHO)
    assert (window, etag) == (Window(), None)
    moved = Window(1, {STABLE: tally(15, 1), CANARY: tally(3, 1)})
    assert trials.move_window(*WHO, moved, etag)
    assert not Trials(store).move_window(*WHO, moved, etag)
    found, etag = trials.window(*WHO)
    assert found == moved
    assert trials.move_window(*WHO, Window(2, moved.start), etag)
    assert not trials.move_window(*WHO, Window(2, moved.start), etag)


@pytest.mark.parametrize("damaged", [b"{", b"[]", b'{"stable": {}}'])
def test_damaged_counts_are_said_to_be(store: ObjectStore, damaged: bytes) -> None:
    store.put(f"{trial_counts_prefix(*WHO)}gateway1.json", damaged)
    with pytest.raises(InternalError, match="damaged"):
        Trials(store).totals(*WHO)


def test_counts_of_a_trial_that_is_over_are_collected(store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, trials, ann = Registry(store), Trials(store), Actor("key1")
    for content, alias in (("one", "production"), ("two", "beta")):
        folder = tmp_path / content
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_text(content)
        new = registry.publish(folder, "acme", "support", Fit("base", 4), created_by=ann, alias=alias)
    registry.canaries.start("acme", "support", "production", new.adapter.version, weight=1, guard=None, by=ann)
    running = registry.describe("acme", "support").canaries["production"].trial
    for trial in (running, "over"):
        trials.report("acme", "support", trial, "gateway1", {STABLE: tally(1)})

    def collect() -> list[Tally | None]:
        list(registry.garbage.collect(GarbageRules(0.0), remove=True))
        return [trials.totals("acme", "support", trial).get(STABLE) for trial in (running, "over")]

    assert collect() == [tally(1), tally(1)], "what has just ended may be looked at"
    monkeypatch.setattr(garbage, "TRIAL_KEPT_SECONDS", -60.0)
    assert collect() == [tally(1), None]
