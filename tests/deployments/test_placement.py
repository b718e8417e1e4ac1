"""Rendezvous hashing bounded by load: where keys live, how hot ones spread and shrink back, how little moves."""

from __future__ import annotations

import random
from collections import Counter, deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.placement import BATCH, LOAD_COST, placed, ranking

REPLICAS = [f"replica-{number}" for number in range(4)]
KEYS = [f"acme/a{number}@{number:064x}".encode() for number in range(2000)]
IDLE = [0] * len(REPLICAS)


class Cluster:
    """Replicas with requests on them, placed by one gateway that counts its own."""

    def __init__(self) -> None:
        self.running: list[Counter[bytes]] = [Counter() for _ in REPLICAS]
        self.order: deque[tuple[int, bytes]] = deque()

    @property
    def loads(self) -> list[int]:
        return [here.total() for here in self.running]

    def begin(self, key: bytes) -> int:
        chosen = placed(key, REPLICAS, self.loads, [here[key] for here in self.running])[0]
        self.running[chosen][key] += 1
        self.order.append((chosen, key))
        return chosen

    def end_oldest(self) -> None:
        chosen, key = self.order.popleft()
        self.running[chosen][key] -= 1

    def homes(self, key: bytes) -> int:
        """On how many replicas requests of `key` run."""
        return sum(1 for here in self.running if here[key])


def test_keys_spread_evenly() -> None:
    homes = Counter(ranking(key, REPLICAS)[0] for key in KEYS)
    assert max(homes.values()) < 1.15 * len(KEYS) / len(REPLICAS)


def test_every_gateway_ranks_alike_in_whatever_order_it_knows_the_replicas() -> None:
    backwards = REPLICAS[::-1]
    for key in KEYS[:100]:
        assert [REPLICAS[index] for index in ranking(key, REPLICAS)] == [backwards[index] for index in ranking(key, backwards)]


def test_a_replica_that_goes_moves_only_its_own_keys() -> None:
    left = REPLICAS[:-1]
    for key in KEYS:
        before = REPLICAS[ranking(key, REPLICAS)[0]]
        if before in left:
            assert left[ranking(key, left)[0]] == before


def test_a_cool_key_stays_on_its_replica() -> None:
    for key in KEYS[:50]:
        cluster = Cluster()
        home = ranking(key, REPLICAS)[0]
        assert [cluster.begin(key) for _ in range(BATCH)] == [home] * BATCH


def test_a_cool_key_is_not_driven_from_home_by_a_hot_neighbour_but_by_one_that_leaves_no_room() -> None:
    for key in KEYS[:50]:
        home = ranking(key, REPLICAS)[0]
        busy = [2 * BATCH if index == home else 2 for index in range(len(REPLICAS))]
        assert placed(key, REPLICAS, busy, IDLE)[0] == home
        busy[home] = BATCH + LOAD_COST + 1
        assert placed(key, REPLICAS, busy, IDLE)[0] != home


@pytest.mark.parametrize("in_flight", [2 * BATCH, 4 * BATCH, 8 * BATCH, 512])
def test_a_key_that_all_ask_for_is_served_by_all_alike(in_flight: int) -> None:
    cluster = Cluster()
    for _ in range(in_flight):
        cluster.begin(KEYS[0])
    for _ in range(4 * in_flight):  # requests come and go
        cluster.end_oldest()
        cluster.begin(KEYS[0])
    fair = in_flight / len(REPLICAS)
    assert max(cluster.loads) <= max(BATCH, 1.25 * fair + 1)
    if fair >= BATCH:
        assert min(cluster.loads) >= 0.75 * fair


def test_a_hot_key_that_cools_is_back_on_one_replica() -> None:
    cluster = Cluster()
    for _ in range(16 * BATCH):
        cluster.begin(KEYS[0])
    assert cluster.homes(KEYS[0]) == len(REPLICAS)
    while sum(cluster.loads) > 2:
        cluster.end_oldest()
    for _ in range(4):  # as seldom as that: two at a time
        cluster.end_oldest()
        cluster.begin(KEYS[0])
    assert cluster.homes(KEYS[0]) == 1
    assert cluster.begin(KEYS[0]) == ranking(KEYS[0], REPLICAS)[0]


def test_a_hot_key_costs_a_few_loads_and_cool_ones_none_beyond_their_first() -> None:
    """Zipf's law over 200 keys, 48 in flight: what leaves home is the few hot ones."""
    cluster, seen, random_ = Cluster(), set(), random.Random(0)
    keys = KEYS[:200]
    weights = [1 / place**1.1 for place in range(1, len(keys) + 1)]
    for number, key in enumerate(random_.choices(keys, weights, k=6000)):
        if number >= 48:
            cluster.end_oldest()
        seen.add((cluster.begin(key), key))
    places = Counter(key for _, key in seen)
    assert places[keys[0]] > 1, "the hottest is on several"
    assert sum(1 for count in places.values() if count == 1) >= 0.85 * len(places)


def test_where_nobody_counts_the_keys_a_hot_one_spreads_too() -> None:
    loads = [0] * len(REPLICAS)
    for _ in range(400):
        loads[placed(KEYS[0], REPLICAS, loads)[0]] += 1
    assert max(loads) <= 1.25 * sum(loads) / len(loads)
    assert placed(KEYS[0], REPLICAS, IDLE) == ranking(KEYS[0], REPLICAS)


@given(st.binary(max_size=40), st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=1, max_size=12))
def test_every_replica_is_tried_once_and_none_far_busier_than_another_goes_first(key: bytes, running: list[tuple[int, int]]) -> None:
    replicas = [str(number) for number in range(len(running))]
    loads, same = [mine + others for mine, others in running], [mine for mine, _ in running]
    order = placed(key, replicas, loads, same)
    assert sorted(order) == list(range(len(loads)))
    assert loads[order[0]] <= max(BATCH, min(loads)) + max(LOAD_COST, sum(loads) / len(loads))
