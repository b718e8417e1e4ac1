"""An adapter's whole life at once, over both stores: random publishes, moves, canaries, retirements and collections by threads and by
processes that are killed, while requests ask several gateways.

Every answer is held against the states that aliases.json really was in (`life_journal.py`), whoever brought them about.
LORIKEET_LIFE_STEPS=10000 takes as many steps as there may be; the default is for every day.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import random
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from adapters_store.canary import place_of
from adapters_store.errors import NotFound
from adapters_store.history import Actor
from adapters_store.layout import aliases_key, file_key
from adapters_store.names import ModelRef
from adapters_store.objects import ObjectStore, open_store
from adapters_store.pointers import Pointers
from adapters_store.registry import Registry
from adapters_store.resolver import Resolver, ResolverLimits
from adapters_store.validate import Fit
from tests.adapters_store.life_actor import (
    ALIASES,
    FILE,
    NAMES,
    NEW,
    OWNER,
    STORE_SECONDS,
    LifeActor,
    act_until_killed,
    content,
    make_folders,
)
from tests.adapters_store.life_journal import Journal, JournaledStore, State, states_of

STEPS = {"local": 3000, "s3": 600}
ASKED_PER_CHANGE = 3  # of the steps that threads take
WRITERS, ASKERS, GATEWAYS, DOOMED = 3, 12, 3, 2
LONGEST_LIFE_SECONDS = 3.0
LATE_SECONDS = 2.0  # what a killed process had sent may be done by the store that much later
LEASE_SECONDS = 0.2
# No patience with a slow store: what is known is served on then, past its lease, and that is on purpose (resolver.py).
LIMITS = ResolverLimits(lease_seconds=LEASE_SECONDS, patience_seconds=2 * STORE_SECONDS, timeout_seconds=2 * STORE_SECONDS)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request's name, and the version that it got; None where there was none."""

    ref: ModelRef
    person: str
    began: float
    ended: float
    version: str | None


class Life:
    """One run of `steps` steps; what came of it is judged when it is over."""

    def __init__(self, store: ObjectStore, folder: Path, steps: int, seed: int) -> None:
        self._store = store
        self._folder = folder
        self._steps_left = steps
        self._changes = 0
        self._random = random.Random(seed)
        self._seed = seed
        self.versions = make_folders(folder / "contents")
        self.journal = Journal(folder / "journal")
        self.asked: list[Asked] = []
        self.killed: dict[int, float] = {}
        self.store = JournaledStore(store, self.journal)

    async def run(self) -> None:
        pool = ThreadPoolExecutor(WRITERS + 4 * GATEWAYS)
        LifeActor(self.store, self._folder / "contents", self.versions, self._seed).begin()
        gateways = [Resolver(Registry(JournaledStore(self._store, self.journal)), pool, LIMITS) for _ in range(GATEWAYS)]
        async with self._doomed_processes(), asyncio.TaskGroup() as group:
            for number in range(WRITERS):
                group.create_task(self._write(pool, number))
            for _ in range(ASKERS):
                group.create_task(self._ask(self._random.choice(gateways)))
        pool.shutdown()

    def _step(self) -> bool:
        self._steps_left -= 1
        return self._steps_left >= 0

    async def _write(self, pool: ThreadPoolExecutor, number: int) -> None:
        actor = LifeActor(JournaledStore(self._store, self.journal), self._folder / "contents", self.versions, self._seed + number)
        while self._step():
            self._changes += 1
            await asyncio.get_running_loop().run_in_executor(pool, actor.step)

    async def _ask(self, gateway: Resolver) -> None:
        """Keep asking as one person after the other would, at a pace that leaves the writers their part of the steps."""
        while self._step():
            name, alias = self._random.choice(NAMES), self._random.choice([*ALIASES, None])
            version = None if alias else self._random.choice(list(self.versions))
            ref, person = ModelRef(OWNER, name, alias, version), f"user {self._random.randrange(50)}"
            began = time.monotonic()
            try:
                found = (await gateway.resolve(ref)).for_person(ref, person).version
            except NotFound:
                found = None
            self.asked.append(Asked(ref, person, began, time.monotonic(), found))
            await asyncio.sleep(self._random.random() * LEASE_SECONDS / 4)
            while len(self.asked) > ASKED_PER_CHANGE * self._changes and self._steps_left > 0:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    @contextlib.asynccontextmanager
    async def _doomed_processes(self) -> AsyncIterator[None]:
        """Processes that do what the writers do, are killed at random points, and started again."""
        context = multiprocessing.get_context("forkserver")  # each a real process, without the seconds that an import takes
        context.set_forkserver_preload([act_until_killed.__module__, "adapters_store.s3"])
        tasks = [asyncio.create_task(self._keep_killing(context, 1000 * (number + 1))) for number in range(DOOMED)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            for ended in await asyncio.gather(*tasks, return_exceptions=True):
                if not isinstance(ended, asyncio.CancelledError):
                    raise AssertionError("a process to be killed ended by itself") from ended

    async def _keep_killing(self, context: multiprocessing.context.ForkServerContext, seed: int) -> None:
        for turn in range(10_000):
            ready = context.Event()
            paths = str(self.journal.path), str(self._folder / "contents")
            arguments = (self._store.url, *paths, self.versions, seed + turn, ready, dict(os.environ))
            process = context.Process(target=act_until_killed, args=arguments)
            process.start()
            try:
                while not ready.is_set() and process.is_alive():  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                await asyncio.sleep(self._random.random() ** 2 * LONGEST_LIFE_SECONDS)
                assert process.is_alive(), f"it ended with {process.exitcode}"
            finally:
                process.kill()
                process.join()
                self.killed[process.pid or 0] = time.monotonic() + LATE_SECONDS


def meant(pointers: Pointers, asked: Asked) -> set[str | None]:
    """What these pointers allow that request to be answered by: one thing, but for a version of which they do not tell if it is there.

    Without that one, an alias serves nothing, and a canary leaves its people to the alias.
    """
    ref = asked.ref
    if ref.alias is None:
        return if_there(pointers, None if pointers.is_gone(ref.version or "") else ref.version)
    version = pointers.served(ref.alias)
    canary = pointers.canaries.get(ref.alias)
    if version is None or canary is None or place_of(f"{ref.adapter_name}:{ref.alias}", asked.person) >= canary.weight:
        return if_there(pointers, version)
    assert not pointers.is_gone(canary.version), "a version is retired that is tried"
    tried = if_there(pointers, canary.version)
    return tried | if_there(pointers, version) if None in tried else tried


def if_there(pointers: Pointers, version: str | None) -> set[str | None]:
    return {version} if version is None or version in there(pointers) else {version, None}


def there(pointers: Pointers) -> set[str]:
    """Versions that have been pointed to and not been taken away: their files must be there, unless they are only coming again."""
    arms = (*pointers.canaries.values(), *pointers.shadows.values())
    told = {move.after for move in pointers.history if move.after is not None}
    every = {*pointers.aliases.values(), *(arm.version for arm in arms), *told}
    return {version for version in every if not pointers.is_gone(version) and version not in pointers.uploading}


def judge_answer(asked: Asked, states: list[State]) -> None:
    """It named what its name meant at a moment of the request, or within one lease before."""
    during = [state for state in states if state.since <= asked.ended and asked.began < state.until + LEASE_SECONDS]
    allowed = set().union(*(meant(state.pointers, asked) for state in during))
    told = [(state.since, state.until, dict(state.pointers.aliases), state.pointers.canaries, state.pointers.uploading) for state in during]
    assert asked.version in allowed, f"{asked.ref} was {asked.version} for {asked.person}, and could only be {allowed}: {told}"


def judge_versions(life: Life, store: ObjectStore, last: dict[str, Pointers]) -> int:
    """Every version that may be served is there, byte by byte what was published; how many there are."""
    count = 0
    for name, pointers in last.items():
        kept = {adapter.version for adapter in Registry(store).describe(OWNER, name).versions}
        assert there(pointers) <= kept, f"versions of {name} are lost"
        for version in kept:
            assert store.get(file_key(OWNER, name, version, FILE))[0] == content(life.versions[version]), f"{version} has changed"
            count += 1
    return count


@pytest.mark.parametrize("kind", ["local", "s3"])
async def test_no_answer_is_wrong_and_nothing_is_lost_whatever_happens_at_once(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    kept: ObjectStore = request.getfixturevalue(f"{kind}_store")
    store = open_store(kept.url, timeout_seconds=STORE_SECONDS)
    steps = int(os.environ.get("LORIKEET_LIFE_STEPS") or STEPS[kind])
    life = Life(store, tmp_path, steps, seed=int(os.environ.get("LORIKEET_LIFE_SEED") or random.randrange(10**6)))
    print("seed", life._seed)
    await life.run()

    LifeActor(life.store, tmp_path / "contents", life.versions, 1).collect(unfinished_seconds=0.0)  # what the killed ones left
    for name in NAMES:
        # Whoever comes later is served: nothing that was killed is in the way.
        Registry(life.store).publish(tmp_path / "contents" / str(NEW), OWNER, name, Fit("base", 4), created_by=Actor("last"))
        life.store.get(aliases_key(OWNER, name))
    lines = list(life.journal.lines())
    states = {name: states_of(lines, aliases_key(OWNER, name), life.killed) for name in NAMES}
    for asked in life.asked:
        judge_answer(asked, states[asked.ref.name])
    versions = judge_versions(life, store, {name: states[name][-1].pointers for name in NAMES})
    by_doomed = sum("stepped" in line for line in lines)
    canaried = sum(bool(state.pointers.canaries) for found in states.values() for state in found)
    print(
        f"{kind}: {steps} steps and {by_doomed} by {len(life.killed)} processes that were killed; {len(life.asked)} answers, "
        f"{sum(asked.version is not None for asked in life.asked)} of them a version; {sum(map(len, states.values()))} states of the "
        f"aliases, {canaried} with a canary; {versions} versions in the end"
    )
    assert life.killed
    assert any(asked.version for asked in life.asked)
    assert canaried
