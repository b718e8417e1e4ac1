"""Versions are loaded before they are asked for: by hand, and before an alias moves under load, so that a change has no cold request."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from tests.system.asking import Answer, ask, user
from tests.system.stack import ROOM, TINY, Stack
from tests.system.test_versions_under_load import AFTER, BEFORE, Load
from tests.tiny import make_random_adapter
from tests.uploading import files_of, parts

NAME = "warm/support"
IN_THE_ENGINE = {"gpu", "cpu"}

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with stack.async_client(timeout_seconds=300) as client:
        yield client


@pytest.fixture(scope="module")
def others(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """As many adapters as the engine keeps."""
    return [stack.push_random(tmp_path_factory.mktemp("other"), f"warm/other-{number}", seed=700 + number) for number in range(ROOM)]


async def fill_engine(client: httpx.AsyncClient, others: list[str]) -> None:
    """Have the engine hold the others and nothing else."""
    for name in others:
        await ask(client, name, user("hi"), tokens=1)


async def test_a_version_that_was_warmed_by_hand_is_there_for_its_first_request(
    stack: Stack, client: httpx.AsyncClient, others: list[str], tmp_path: Path
) -> None:
    exact = stack.push_random(tmp_path / "one", "warm/by-hand", seed=710)
    await fill_engine(client, others)
    adapter, version = exact.split("@")
    response = await client.post(f"adapters/{adapter}/versions/{version}/warm")
    assert response.status_code == 200, response.text
    told = response.json()
    assert (told["id"], told["base"], told["replicas"], told["running"]) == (exact, TINY, 1, 1)
    assert told["found"][0] in ("store", "disk"), "it was in the engine before: the test shows nothing"
    assert (await ask(client, exact, user("hi"), tokens=4)).cold == "gpu"
    again = (await client.post(f"adapters/{adapter}/versions/{version}/warm", params={"replicas": 9})).json()
    assert (again["replicas"], again["found"]) == (1, ["gpu"])


async def test_an_alias_that_moves_under_load_has_no_cold_request(
    stack: Stack, client: httpx.AsyncClient, others: list[str], tmp_path: Path
) -> None:
    """The new version is in the store and not in the engine; the old one is asked for all the time."""
    old = stack.push_random(tmp_path / "old", NAME, seed=720)
    new = await push(stack, client, tmp_path / "new", seed=721, alias="staging")
    await fill_engine(client, others)

    async def move() -> str:
        response = await client.put(f"adapters/{NAME}/aliases/production", json={"version": new.partition("@")[2]})
        assert response.status_code == 200, response.text
        return new

    await change_under_load(client, move, old)


async def test_a_push_under_load_has_no_cold_request(stack: Stack, client: httpx.AsyncClient, others: list[str], tmp_path: Path) -> None:
    old = stack.push_random(tmp_path / "old", NAME, seed=730)
    await fill_engine(client, others)
    await change_under_load(client, lambda: push(stack, client, tmp_path / "new", seed=731), old)


async def push(stack: Stack, client: httpx.AsyncClient, folder: Path, *, seed: int, alias: str = "production") -> str:
    """Publish new content under NAME; its exact name."""
    make_random_adapter(folder, stack.tiny_folder, seed=seed, rank=8, base_name=TINY)
    response = await client.post(f"adapters/{NAME}/versions", files=parts(files_of(folder)), params={"alias": alias})
    assert response.status_code == 201, response.text
    exact: str = response.json()["id"]
    return exact


async def change_under_load(client: httpx.AsyncClient, change: Callable[[], Awaitable[str]], old: str) -> None:
    """Make `change`, which moves NAME from `old` to the version that it returns, under load; no answer of that one waited for a load."""
    async with Load(client, NAME) as load:
        await load.wait_for(BEFORE)
        assert {answer.version for answer in load.answers} == {old}
        new = await change()
        await load.wait_for(AFTER, begun_after=time.monotonic())
    answers: list[Answer] = [answer for answer in load.answers if answer.version == new]
    assert len(answers) >= AFTER
    assert {answer.cold for answer in answers} <= IN_THE_ENGINE, "a request waited for the new version to be loaded"
