"""What a replica loads before anybody asks: over the real bookkeeping of a small fake engine (`test_engine_adapters.py`)."""

from __future__ import annotations

import asyncio

import pytest

from adapters_store.adapter import Adapter
from adapters_store.errors import StoreUnavailable
from deployments.messages import WarmCall
from deployments.warms import AT_ONCE, Warms
from tests.deployments.test_engine_adapters import ROOM, House, house, until

__all__ = ["house"]


def a_warm(adapter: Adapter, *instead_of: Adapter) -> WarmCall:
    return WarmCall(b"s" * 16, "tcp://127.0.0.1:1", adapter, tuple(old.exact_name for old in instead_of))


async def test_what_was_warmed_is_there_for_its_first_request(house: House) -> None:
    [adapter] = house.publish_many(1)
    warms = Warms(house.adapters)
    warmed = await warms.load(a_warm(adapter))
    assert warmed is not None and warmed.cold == "store"
    assert (await house.ask(adapter)).cold == "gpu"
    again = await warms.load(a_warm(adapter))
    assert again is not None and again.cold == "gpu"
    assert len(house.engine.loads) == 1


async def test_a_version_is_loaded_only_where_the_one_before_it_is(house: House) -> None:
    old, older, new = house.publish_many(3)
    warms = Warms(house.adapters)
    assert await warms.load(a_warm(new, old)) is None
    assert not house.engine.loads
    await house.ask(old)
    warmed = await warms.load(a_warm(new, older, old))
    assert warmed is not None and warmed.cold == "store"


async def test_what_was_warmed_counts_as_just_used_and_holds_no_place(house: House) -> None:
    """It outlives what was asked for before it, and is given back like any other."""
    warmed, *others = house.publish_many(ROOM + 1)
    await house.ask(others[0])
    await Warms(house.adapters).load(a_warm(warmed))
    for adapter in others[1:]:
        await house.ask(adapter)
    assert not house.adapters.holds(others[0].exact_name)
    assert house.adapters.holds(warmed.exact_name)
    await house.ask(others[0])
    assert not house.adapters.holds(warmed.exact_name)


async def test_few_are_loaded_at_once_and_requests_do_not_wait_for_them(house: House) -> None:
    *warmed, asked = house.publish_many(AT_ONCE + 2)
    house.engine.loading.clear()
    warms = Warms(house.adapters)
    loading = [asyncio.create_task(warms.load(a_warm(adapter))) for adapter in warmed]
    await until(lambda: len(house.engine.loads) == AT_ONCE)
    request = asyncio.create_task(house.ask(asked))
    await until(lambda: len(house.engine.loads) == AT_ONCE + 1)
    assert house.engine.loads[-1][0] == asked.exact_name
    house.engine.loading.set()
    assert all(await asyncio.gather(*loading)) and await request


async def test_a_warm_that_nobody_waits_for_gives_its_place_back(house: House) -> None:
    adapters = house.publish_many(AT_ONCE + 1)
    house.engine.loading.clear()
    warms = Warms(house.adapters)
    loading = [asyncio.create_task(warms.load(a_warm(adapter))) for adapter in adapters]
    await until(lambda: len(house.engine.loads) == AT_ONCE)
    loading[0].cancel()
    await until(lambda: len(house.engine.loads) == AT_ONCE + 1)
    house.engine.loading.set()
    assert all(await asyncio.gather(*loading[1:]))


async def test_a_store_that_is_away_is_told(house: House) -> None:
    [adapter] = house.publish_many(1)
    house.store.down = True
    with pytest.raises(StoreUnavailable):
        await Warms(house.adapters).load(a_warm(adapter))
