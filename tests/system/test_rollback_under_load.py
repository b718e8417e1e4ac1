"""Rolling back under 32 streams: no error, no mixed answer, nothing cold, and whatever begins after the call is the old version's.

How long first tokens took beside it is told at the end of the run and judged by nobody: two cores that run the clients too say little of
time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.report import Report
from tests.system.asking import Answer, ask, long_chat
from tests.system.stack import Stack
from tests.system.test_versions_under_load import TOKENS, Load

NAME = "rollback/support"
STREAMS = 32
ANSWERS = 4 * STREAMS  # on each side of the call

pytestmark = pytest.mark.timeout(900)


async def test_rolling_back_under_32_streams(stack: Stack, tmp_path: Path, report: Report) -> None:
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
    report(_first_tokens(load.answers, called))


def _first_tokens(answers: Sequence[Answer], called: float) -> str:
    """The longest wait for a first token since the call, beside the p95 of those before it."""
    warm = [answer.first - answer.began for answer in answers if answer.first < called]
    since = [answer.first - answer.began for answer in answers if answer.first >= called]
    p95, longest = statistics.quantiles(warm, n=20)[-1], max(since)
    return (
        f"a first token took {1e3 * longest:.0f} ms at most from the call on, {longest / p95:.2f} times the warm p95 ({1e3 * p95:.0f} ms)"
    )
