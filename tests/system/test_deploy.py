"""`lorikeet deploy` on the running platform: models come, change and go, while requests to the others, and long ones, go on."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from cluster import run_file
from cluster.processes import of_run
from tests.system.asking import Answer, ask, begin, user
from tests.system.stack import BASE, TINY, Stack

ADDED = "org/added"
TOKENS = 8
DEPLOY_SECONDS = 400.0  # two starts of an engine, on a busy machine
MOST_REQUESTS = 20_000
ENDED_SECONDS = 60.0
PAUSE_SECONDS = 0.25  # between an asker's requests: steady load, and cores left for the engine that starts

pytestmark = pytest.mark.timeout(1500)  # four deploys, two of which start an engine: two minutes, or ten where others work too


class Load:
    """Askers of the models that no deploy is about; each answer must be whole. `answers` are what they got."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self._enough = asyncio.Event()
        self.answers: list[Answer] = []

    async def keep_asking(self, model: str, stream: bool) -> None:
        for _ in range(MOST_REQUESTS):
            if self._enough.is_set():
                return
            self.answers.append(await ask(self._client, model, user("Count to ten."), tokens=TOKENS, stream=stream))
            await asyncio.sleep(PAUSE_SECONDS)

    async def end(self, askers: list[asyncio.Task[None]]) -> None:
        self._enough.set()
        await asyncio.gather(*askers)


@asynccontextmanager
async def load(client: httpx.AsyncClient) -> AsyncIterator[Load]:
    """Requests to the other models for as long as the block lasts; fails when one of them failed."""
    running = Load(client)
    askers = [asyncio.create_task(running.keep_asking(model, stream)) for model, stream in ((BASE, True), (TINY, True), (TINY, False))]
    try:
        yield running
    finally:
        await running.end(askers)


class Deploys:
    """Runs the command with the stack's settings, changed as a test says."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self._stack = stack
        self._file = folder / "settings.yaml"
        self.original: dict[str, Any] = yaml.safe_load((stack.home / "config.yaml").read_text())

    def added(self, **fields: Any) -> dict[str, Any]:
        """One more base model: the tiny one by another name."""
        tiny = next(model for model in self.original["models"] if model["id"] == TINY)
        return {**tiny, "id": ADDED, "resources": {"cpus": 0.5}, **fields}

    async def __call__(self, *more: dict[str, Any], tiny: dict[str, Any] | None = None) -> dict[str, Any]:
        """Deploy the stack's models, with `tiny` changed, and `more` beside them; returns what the command says as JSON."""
        models = [{**model, **(tiny or {})} if model["id"] == TINY else model for model in self.original["models"]]
        self._file.write_text(yaml.safe_dump({**self.original, "models": [*models, *more]}))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cluster.cli", "deploy", "--config", str(self._file), "--yes", "--json"),
            env={**os.environ, "LORIKEET_HOME": str(self._stack.home)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(DEPLOY_SECONDS):
            out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        said: dict[str, Any] = json.loads(out)
        assert said["applied"]
        return said


def changes(said: dict[str, Any]) -> list[tuple[str, str, bool]]:
    return [(change["change"], change["model"], change["restarts"]) for change in said["changes"]]


def replicas(stack: Stack) -> set[int]:
    """The processes of replicas and gateways, by what Serve calls them."""
    run = run_file.read(stack.home)
    assert run is not None
    found = set()
    for process in of_run(run.run_id):
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if "ServeReplica" in title:
            found.add(process.pid)
    return found


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(ENDED_SECONDS):
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with stack.async_client(timeout_seconds=300) as client:
        yield client


@pytest.fixture
async def deploys(stack: Stack, tmp_path: Path) -> AsyncIterator[Deploys]:
    """The command; afterwards the stack serves what it did before."""
    deploys = Deploys(stack, tmp_path)
    yield deploys
    await deploys()


async def listed(client: httpx.AsyncClient) -> set[str]:
    """The base models that a gateway tells of, and is ready with."""
    ready = await client.get(f"{str(client.base_url).removesuffix('/api/v1/')}/readyz")
    assert ready.status_code == 200, ready.text
    return set(ready.json()["models"])


async def test_models_come_change_and_go_while_the_others_answer(stack: Stack, client: httpx.AsyncClient, deploys: Deploys) -> None:
    before = replicas(stack)
    assert len(before) == 3, "two base models and a gateway"
    async with load(client) as others:
        assert changes(await deploys(deploys.added())) == [("add", ADDED, False)]
        assert await listed(client) == {BASE, TINY, ADDED}
        assert (await ask(client, ADDED, user("hi"), tokens=TOKENS)).version == ADDED
        assert before < replicas(stack), "what was not in the deploy runs on"

        bounds = {"autoscaling": {"max_replicas": 2}}
        shorter = deploys.added(engine={**deploys.added()["engine"], "max_model_len": 512})
        deploying = asyncio.create_task(deploys(shorter, tiny=bounds))
        waiting = [asyncio.create_task(ask(client, ADDED, user("hi"), tokens=TOKENS)) for _ in range(4)]
        assert changes(await deploying) == [("change", TINY, False), ("change", ADDED, True)]
        assert {answer.version for answer in await asyncio.gather(*waiting)} == {ADDED}, "they waited for the replica's successor"
        refused = await client.post("chat/completions", json={"model": ADDED, "messages": user("hi"), "max_tokens": 1000})
        assert refused.status_code == 400, "the changed engine answers"
        assert before < replicas(stack), "another bound restarts nothing"
        assert (await deploys(shorter, tiny=bounds))["changes"] == []

        long = await begin(client, ADDED, user("Tell me a story."), tokens=400)
        assert changes(await deploys()) == [("remove", ADDED, False), ("change", TINY, False)]
        assert (await long).version == ADDED, "a stream that ran was not cut"
        gone = await client.post("chat/completions", json={"model": ADDED, "messages": user("hi")})
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")
        assert await listed(client) == {BASE, TINY}
        ended = time.monotonic()
        await until(lambda: any(answer.ended > ended for answer in others.answers))  # there is load to the end
    await until(lambda: replicas(stack) == before)  # Ray ends the process of a replica after Serve has forgotten it
    assert {answer.version for answer in others.answers} == {BASE, TINY}
