"""On a cluster whose nodes come and go: each part is killed under load, and then a model wakes from no node at all, five times over.

One cluster for all of it, in this order: what was killed has to be whole again for the nodes to go and come afterwards. What was counted
is said at the end of the run.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest

from tests.report import Report
from tests.system.elastic import GATEWAYS, MAX_RANK, Elastic, running_elastic, until
from tests.system.outcomes import CHAT, Outcome, Right, Toll, chat
from tests.system.stack import TINY
from tests.tiny import make_random_adapter, references

CYCLES = 5
SHORT = 8  # tokens
LONG = 900
AT_ONCE = 4  # of each model and kind, long
PAUSE_SECONDS = 0.1  # between an asker's requests: steady load, and cores left for what starts
BEGUN_SECONDS = 30.0
WAKE_SECONDS = 200.0  # a node, and an engine on it, on a busy machine; a third of that on an idle one
SLEEP_SECONDS = 60.0
ENDED_SECONDS = 20.0

pytestmark = pytest.mark.timeout(1500)

Parts = Callable[[], list[psutil.Process]]


@pytest.fixture(scope="module")
def elastic(embedded_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elastic]:
    with running_elastic(tmp_path_factory.mktemp("elastic"), embedded_model) as elastic:
        yield elastic


@pytest.fixture(scope="module")
def rights(elastic: Elastic, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> list[Right]:
    """The base and two adapters of it, published, with what transformers + peft say that each answers."""
    stack, folders = elastic.stack, [tmp_path_factory.mktemp(name) for name in ("one", "two")]
    names = [TINY, "elastic/one", "elastic/two"]
    for seed, folder in enumerate(folders):
        make_random_adapter(folder, stack.tiny_folder, seed=seed, rank=MAX_RANK, base_name=TINY)
    versions = [TINY, *(stack.publish(folder, name) for folder, name in zip(folders, names[1:], strict=True))]
    answers = references(stack.tiny_folder, [None, *folders], [CHAT], LONG)
    rights = [Right(name, version, ids) for name, version, [ids] in zip(names, versions, answers, strict=True)]
    assert len({tuple(right.ids[:SHORT]) for right in rights}) == len(rights), "an answer tells whose weights it is of"
    return rights


class Load:
    """Chats of every model, streamed and not. Long ones that are under way when something is killed, and short ones all the time."""

    def __init__(self, client: httpx.AsyncClient, rights: Sequence[Right]) -> None:
        self._client = client
        self._rights = rights
        self._enough = asyncio.Event()
        self._longs: list[asyncio.Task[Outcome]] = []
        self.outcomes: list[Outcome] = []

    async def keep_asking(self, right: Right, stream: bool) -> None:
        while not self._enough.is_set():
            self.outcomes.append(await chat(self._client, right, tokens=SHORT, stream=stream))
            await asyncio.sleep(PAUSE_SECONDS)

    async def begin(self) -> None:
        """Have long chats under way: of streams the first token is here, of the others nothing."""
        several = [right for right in self._rights for _ in range(AT_ONCE)]
        begun = [asyncio.Event() for _ in several]
        streams = [chat(self._client, right, tokens=LONG, stream=True, begun=event) for right, event in zip(several, begun, strict=True)]
        others = [chat(self._client, right, tokens=LONG, stream=False) for right in several]
        self._longs = [asyncio.create_task(each) for each in (*streams, *others)]
        async with asyncio.timeout(BEGUN_SECONDS):
            await asyncio.gather(*(event.wait() for event in begun))
        assert not any(long.done() for long in self._longs), "they are to be under way, not over"

    async def flows(self, seconds: float) -> None:
        """Every asker gets a whole answer to what it asks from now on."""
        now = time.monotonic()
        async with asyncio.timeout(seconds):
            while not all(any(o.right is right and o.stream is stream for o in self._since(now)) for right, stream in self.kinds):  # noqa: ASYNC110
                await asyncio.sleep(0.1)

    async def end(self, askers: Sequence[asyncio.Task[None]]) -> None:
        self._enough.set()
        self.outcomes += await asyncio.gather(*self._longs)
        await asyncio.gather(*askers)

    @property
    def kinds(self) -> list[tuple[Right, bool]]:
        return [(right, stream) for right in self._rights for stream in (True, False)]

    def _since(self, moment: float) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.began >= moment and outcome.end == "whole"]


@asynccontextmanager
async def load(elastic: Elastic, rights: Sequence[Right]) -> AsyncIterator[Load]:
    """Load on a model that is awake, for as long as the block lasts."""
    async with elastic.stack.async_client(timeout_seconds=WAKE_SECONDS) as client:
        running = Load(client, rights)
        askers = [asyncio.create_task(running.keep_asking(right, stream)) for right, stream in running.kinds]
        try:
            await running.flows(WAKE_SECONDS)
            await running.begin()
            yield running
        finally:
            await running.end(askers)


@dataclass(frozen=True, slots=True)
class Kill:
    """One of `parts`, of which there are `count`; with all that it has started, if it is a whole `machine`. `spares`: what lives on."""

    parts: Parts
    spares: tuple[Parts, ...]
    count: int = 1
    machine: bool = False

    def __call__(self) -> list[psutil.Process]:
        """Kill it now; what it was, the first of it the part itself."""
        victim, *_ = self.parts()
        with_it = [victim, *victim.children(recursive=True)]
        for process in with_it if self.machine else [victim]:
            process.kill()
        return with_it


async def under_load(kill: Kill, elastic: Elastic, rights: Sequence[Right], report: Report) -> Toll:
    """Kill under load, wait until all is whole again without a hand, and check what the clients heard."""
    async with load(elastic, rights) as running:
        spared = [part() for part in kill.spares]
        killed_at = time.monotonic()
        victim, *with_it = kill()
        replaced = partial(until, lambda: victim not in kill.parts() and len(kill.parts()) == kill.count, "another is there instead")
        await asyncio.to_thread(replaced, WAKE_SECONDS)
        await asyncio.to_thread(until, lambda: _is_ready(elastic), "all is ready", WAKE_SECONDS)
        await running.flows(WAKE_SECONDS)
        whole_seconds = time.monotonic() - killed_at
        assert [part() for part in kill.spares] == spared, "what was not killed goes on"
    _, alive = await asyncio.to_thread(psutil.wait_procs, with_it, ENDED_SECONDS)
    assert not alive, f"it left processes behind: {alive}"
    toll = Toll(running.outcomes, killed_at, whole_seconds)
    report(str(toll))
    toll.check()
    return toll


def _is_ready(elastic: Elastic) -> bool:
    """Whether each model has a replica, as a gateway tells."""
    response = httpx.get(f"{elastic.stack.url}/readyz", timeout=30.0)
    return response.status_code == 200 and set(response.json()["models"].values()) == {"ready"}


def _is_gone(elastic: Elastic) -> bool:
    """Whether the model sleeps, and neither a node nor a process of its replica is there."""
    return not (elastic.nodes() or elastic.replicas() or elastic.engines())


async def test_killed_gateway_costs_its_begun_streams_alone(elastic: Elastic, rights: list[Right], report: Report) -> None:
    kill = Kill(elastic.gateways, count=GATEWAYS, spares=(elastic.controllers, elastic.nodes, elastic.replicas))
    toll = await under_load(kill, elastic, rights, report)
    assert not toll.ended("told")
    assert toll.ended("cut"), "it had some of the long streams"
    assert any(outcome.stream and outcome.tokens == LONG for outcome in toll.ended("whole")), "the other gateway had the rest"


async def test_killed_replica_costs_its_begun_streams_alone(elastic: Elastic, rights: list[Right], report: Report) -> None:
    toll = await under_load(Kill(elastic.replicas, spares=(elastic.controllers, elastic.gateways)), elastic, rights, report)
    assert not toll.ended("cut")
    assert len(toll.ended("told")) >= AT_ONCE * len(rights)


async def test_lost_node_costs_its_begun_streams_alone(elastic: Elastic, rights: list[Right], report: Report) -> None:
    """Its raylet, and with it all that runs there: nobody is left to tell that a replica has died."""
    kill = Kill(elastic.nodes, machine=True, spares=(elastic.controllers, elastic.gateways))
    toll = await under_load(kill, elastic, rights, report)
    assert not toll.ended("cut")
    assert len(toll.ended("told")) >= AT_ONCE * len(rights)


async def test_killed_controller_costs_nobody_anything(elastic: Elastic, rights: list[Right], report: Report) -> None:
    kill = Kill(elastic.controllers, spares=(elastic.gateways, elastic.nodes, elastic.replicas))
    toll = await under_load(kill, elastic, rights, report)
    assert not toll.ended("told", "cut")


async def test_a_model_without_a_node_wakes_for_requests_and_goes_again_five_times(
    elastic: Elastic, rights: list[Right], report: Report
) -> None:
    woke, slept, answered = [], [], 0
    await asyncio.to_thread(until, lambda: _is_gone(elastic), "no node and no replica", SLEEP_SECONDS)
    async with elastic.stack.async_client(timeout_seconds=WAKE_SECONDS) as client:
        for _ in range(CYCLES):
            began = time.monotonic()
            asking = [chat(client, right, tokens=SHORT, stream=stream) for right in rights for stream in (True, False)]
            outcomes = await asyncio.gather(*asking)
            assert {outcome.end for outcome in outcomes} == {"whole"}, [outcome.detail for outcome in outcomes]
            answered += len(outcomes)
            woke.append(time.monotonic() - began)
            assert len(elastic.nodes()) == len(elastic.replicas()) == 1
            slept.append(await asyncio.to_thread(until, lambda: _is_gone(elastic), "no node and no replica", SLEEP_SECONDS))
    report(
        f"{answered} of {answered} requests answered over {CYCLES} cycles, 0 wrong; a node and a replica were there for them after "
        f"{_spread(woke)}, and gone after {_spread(slept)}"
    )


def _spread(seconds: Sequence[float]) -> str:
    return f"{min(seconds):.0f} to {max(seconds):.0f} s"
