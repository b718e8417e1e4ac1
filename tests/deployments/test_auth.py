"""Keys: looked up once, known for a minute, unknown for a second, honoured while the store is away, bounded in memory."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from adapters_store.errors import NotAuthenticated, Overloaded, StoreUnavailable
from adapters_store.keys import KeyRecord
from deployments.api import auth
from deployments.api.auth import Authenticator

RECORD = KeyRecord("id", "test", "default", 0.0)


class Keys:
    """A key ring whose store can be away; counts its reads."""

    def __init__(self) -> None:
        self.known = {"good"}
        self.away = False
        self.reads: list[str] = []
        self.gate = threading.Event()
        self.gate.set()

    def find(self, secret: str) -> KeyRecord | None:
        self.reads.append(secret)
        assert self.gate.wait(10)
        if self.away:
            raise StoreUnavailable("the store does not answer")
        return RECORD if secret in self.known else None


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(auth, "time", clock)
    return clock


@pytest.fixture
async def authenticator(keys: Keys) -> AsyncIterator[Authenticator]:
    threads = ThreadPoolExecutor(4)
    yield Authenticator(keys, threads)  # type: ignore[arg-type]
    keys.gate.set()
    threads.shutdown(wait=True)


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Bearer    ", "good", "Basic good", "Token good"])
async def test_no_key_is_said_to_be_missing(authenticator: Authenticator, keys: Keys, header: str | None) -> None:
    with pytest.raises(NotAuthenticated, match="no API key"):
        await authenticator.authenticate(header)
    assert keys.reads == [], "the store was asked"


@pytest.mark.parametrize("header", ["Bearer good", "bearer good", "BEARER  good", "Bearer good "])
async def test_a_good_key_is_known(authenticator: Authenticator, header: str) -> None:
    assert await authenticator.authenticate(header) == RECORD


@pytest.mark.parametrize("secret", ["bad", "good2", "goo", "good good", "\xe9\xff", "x" * 10_000])
async def test_a_wrong_key_is_unknown(authenticator: Authenticator, secret: str) -> None:
    with pytest.raises(NotAuthenticated, match="not known") as raised:
        await authenticator.authenticate(f"Bearer {secret}")
    assert secret not in raised.value.message


async def test_a_known_key_is_read_once_a_minute(authenticator: Authenticator, keys: Keys, clock: Clock) -> None:
    for _ in range(5):
        await authenticator.authenticate("Bearer good")
    clock.now += auth.KNOWN_SECONDS - 1
    await authenticator.authenticate("Bearer good")
    assert len(keys.reads) == 1
    clock.now += 2
    keys.known.clear()
    with pytest.raises(NotAuthenticated):
        await authenticator.authenticate("Bearer good")


async def test_an_unknown_key_is_remembered_for_a_second(authenticator: Authenticator, keys: Keys, clock: Clock) -> None:
    for _ in range(5):
        with pytest.raises(NotAuthenticated):
            await authenticator.authenticate("Bearer new")
    assert len(keys.reads) == 1
    keys.known.add("new")
    clock.now += auth.UNKNOWN_SECONDS + 0.1
    assert await authenticator.authenticate("Bearer new") == RECORD


async def test_a_known_key_is_honoured_while_the_store_is_away(authenticator: Authenticator, keys: Keys, clock: Clock) -> None:
    await authenticator.authenticate("Bearer good")
    keys.away = True
    clock.now += auth.KNOWN_SECONDS + 1
    assert await authenticator.authenticate("Bearer good") == RECORD
    clock.now += auth.STALE_SECONDS
    with pytest.raises(StoreUnavailable):
        await authenticator.authenticate("Bearer good")


async def test_an_unknown_key_is_not_refused_for_the_stores_absence(authenticator: Authenticator, keys: Keys) -> None:
    """It may be good: 503, not 401."""
    keys.away = True
    with pytest.raises(StoreUnavailable):
        await authenticator.authenticate("Bearer good")
    keys.away = False
    assert await authenticator.authenticate("Bearer good") == RECORD


async def test_requests_that_come_together_share_one_read(authenticator: Authenticator, keys: Keys) -> None:
    keys.gate.clear()
    asking = [asyncio.create_task(authenticator.authenticate("Bearer good")) for _ in range(50)]
    await asyncio.sleep(0.05)
    asking[0].cancel()  # the first one's client leaves: the others' read goes on
    await asyncio.sleep(0)
    keys.gate.set()
    assert await asyncio.gather(*asking[1:]) == [RECORD] * 49
    assert keys.reads == ["good"]


async def test_unknown_keys_fill_neither_memory_nor_threads(
    authenticator: Authenticator, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "CACHE_ENTRIES", 10)
    monkeypatch.setattr(auth, "LOOKUPS_AT_ONCE", 5)
    keys.gate.clear()
    asking = [asyncio.create_task(authenticator.authenticate(f"Bearer random{i}")) for i in range(8)]
    async with asyncio.timeout(10):
        while sum(task.done() for task in asking) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    refused = [task for task in asking if task.done()]
    assert len(refused) == 3 and all(isinstance(task.exception(), Overloaded) for task in refused)
    keys.gate.set()
    await asyncio.gather(*asking, return_exceptions=True)
    for i in range(50):
        with pytest.raises(NotAuthenticated):
            await authenticator.authenticate(f"Bearer other{i}")
    assert len(authenticator._entries) == 10
    assert not authenticator._lookups


async def test_no_key_is_kept_in_memory(authenticator: Authenticator) -> None:
    await authenticator.authenticate("Bearer good")
    assert b"good" not in b"".join(authenticator._entries)
