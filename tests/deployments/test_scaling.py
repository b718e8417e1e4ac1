"""How many replicas are wanted, from what engines feel."""

from __future__ import annotations

import math

import pytest

from deployments.scaling import EngineLoad, Targets, wanted_replicas

TARGETS = Targets(requests=32, kv_cache_use=0.8)


def whole(requests: float, *engines: EngineLoad) -> int:
    return math.ceil(wanted_replicas(requests, engines, TARGETS))


def test_nothing_to_do_wants_no_replica() -> None:
    assert whole(0) == whole(0, EngineLoad(0), EngineLoad(0)) == 0


def test_one_request_wants_one() -> None:
    assert whole(1) == whole(1, EngineLoad(1, 0, 0.001)) == 1


def test_requests_are_spread_to_their_target_wherever_they_wait() -> None:
    assert whole(64, EngineLoad(running=64)) == 2
    assert whole(65, EngineLoad(running=32, waiting=33)) == 3
    assert whole(96, EngineLoad(running=32)) == 3, "the rest waits for a replica, or for its adapter"


def test_long_chats_want_more_replicas_than_their_number_says() -> None:
    full = EngineLoad(running=4, kv_cache_use=0.9)
    assert whole(4, full) == 2
    assert whole(8, full, full) == 3


def test_what_waits_for_room_in_the_cache_counts_as_what_runs() -> None:
    assert whole(12, EngineLoad(running=4, waiting=8, kv_cache_use=1.0)) == 4


def test_a_cool_cache_does_not_hold_replicas_that_requests_do_not_need() -> None:
    assert whole(8, *[EngineLoad(running=2, kv_cache_use=0.05)] * 4) == 1


def test_the_same_load_on_more_replicas_wants_the_same() -> None:
    one = wanted_replicas(40, [EngineLoad(40, 0, 0.6)], TARGETS)
    two = wanted_replicas(40, [EngineLoad(20, 0, 0.3)] * 2, TARGETS)
    assert one == pytest.approx(two), "it would go up and down for ever"


def test_a_request_that_has_just_come_to_an_idle_engine_wants_no_second_one() -> None:
    assert whole(1, EngineLoad(running=0, waiting=1)) == 1
