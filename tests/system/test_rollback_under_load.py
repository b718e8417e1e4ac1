"""Rolling back under 32 streams: no error, no mixed answer, nothing cold, and whatever begins after the call is the old version's.

How long first tokens took beside it is written to the test's report (`--junitxml`, `-s`) and judged by nobody: two cores that run the
clients too say little of time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.system.asking import Answer, ask, long_chat
from tests.system.stack import Stack
from tests.system.test_versions_under_load import TOKENS, Load

NAME = "rollback/support"
STREAMS = 32
ANSWERS = 4 * STREAMS  # on each side of the call

pytestmark = pytest.mark.timeout(900)


async def test_rolling_back_under_32_streams(stack: Stack, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    old, new = (stack.push_random(tmp_path / str(seed), NAME, seed=seed) for seed in (951, 952))
    async with stack.async_client(timeout_seconds=300) as client:
        texts = {exact: (await ask(client, exact, long_chat(), tokens=TOKENS)).text for exact in (old, new)}
        async with Load(client, NAME, askers=STREAMS, streams=True) as load:
            await load.wait_for(ANSWERS)
            called = time.monotonic()
            response = await client.post(f"adapters/{NAME}/aliases/production/rollback")
            returned = time.monotonic()
            assert response.status_code == 200, response.text
            await load.wait_for(ANSWERS, begun_after=returned)
    for answer in load.answers:
        assert answer.text == texts[answer.version], f"an answer of {answer.version} is not its own"
        assert answer.cold in ("gpu", "cpu"), "a request waited for a load"
    assert {answer.version for answer in load.answers if answer.ended < called} == {new}
    assert {answer.version for answer in load.answers if answer.began > returned} == {old}
    _report(load.answers, called, record_property)


def _report(answers: Sequence[Answer], called: float, record_property: Callable[[str, object], None]) -> None:
    """The longest wait for a first token since the call, over the p95 of those before it."""
    warm = [answer.first - answer.began for answer in answers if answer.first < called]
    since = [answer.first - answer.began for answer in answers if answer.first >= called]
    p95 = statistics.quantiles(warm, n=20)[-1]
    figures = {"ttft_warm_p95_ms": 1e3 * p95, "ttft_since_max_ms": 1e3 * max(since), "ttft_max_over_p95": max(since) / p95}
    for name, value in figures.items():
        record_property(name, round(value, 2))
    print({name: round(value, 2) for name, value in figures.items()})
