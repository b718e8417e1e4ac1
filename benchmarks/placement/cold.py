"""Cold adapters on one replica: eight at once beside one, and what a stream that runs feels of twenty."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.placement.adapters import publish
from benchmarks.placement.cluster import KEY, RunningCluster
from benchmarks.placement.load import Asked, Load
from benchmarks.placement.settings import OURS, STEP_MS, ColdPart


@dataclass(frozen=True, slots=True)
class Cold:
    """One round. Times to the first token, of all eight where they come together; gaps are the longest between two tokens of a stream."""

    round: int
    one_ms: float
    together_ms: float
    gap_without_ms: float
    gap_with_ms: float

    @property
    def times(self) -> float:
        return self.together_ms / self.one_ms

    @property
    def extra_steps(self) -> float:
        return (self.gap_with_ms - self.gap_without_ms) / STEP_MS


def measure(cluster: RunningCluster, number: int, part: ColdPart) -> Cold:
    names = publish(cluster.store, f"cold-{number}", 3 + part.together + part.beside, cluster.base, part.shape)
    alone, together, beside = names[:3], names[3 : 3 + part.together], names[3 + part.together :]
    load = Load(cluster.urls[OURS], KEY, tokens=2)
    one = statistics.median(load.run([name], 1)[0].ttft_ms for name in alone)
    all_of_them = asyncio.run(_at_once(load, together))
    without = asyncio.run(_stream(load, cluster.base, part.stream_tokens, ()))
    with_loads = asyncio.run(_stream(load, cluster.base, part.stream_tokens, beside))
    return Cold(number, one, max(asked.ttft_ms for asked in all_of_them), without, with_loads)


async def _at_once(load: Load, names: Sequence[str]) -> list[Asked]:
    async with load.session() as session:
        return await asyncio.gather(*(load.ask(session, name) for name in names))


async def _stream(load: Load, base: str, tokens: int, cold: Sequence[str]) -> float:
    """The longest gap, in milliseconds, of a stream of the base during which the cold adapters are asked for, all at once."""
    async with load.session() as session:
        stream = asyncio.create_task(load.ask(session, base, tokens))
        await asyncio.sleep(tokens / 4 * STEP_MS / 1e3)
        others = await asyncio.gather(*(load.ask(session, name) for name in cold))
        asked = await stream
    for one in (asked, *others):
        if one.status != 200:
            raise RuntimeError(f"a request for {one.model} was answered with {one.status}")
    if any(one.ended > asked.ended for one in others):
        raise RuntimeError("the stream ended before the cold adapters were loaded: make it longer")
    return 1e3 * max(asked.gaps)


def line(found: Cold) -> str:
    return (
        f"  {found.round} cold: one {found.one_ms:6.1f} ms, together {found.together_ms:6.1f} ms = {found.times:.2f} times; longest gap "
        f"{found.gap_without_ms:5.1f} ms, with loads {found.gap_with_ms:5.1f} ms = {found.extra_steps:+.1f} steps"
    )
