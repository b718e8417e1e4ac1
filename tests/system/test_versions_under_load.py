"""Versions change while requests run: every answer comes whole from one version, and says from which.

All requests share one long prompt, so that a prefix cache that mixed versions would show.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.system.asking import Answer, ask, begin, long_chat, user
from tests.system.stack import CONTEXT, TINY, Stack
from tests.tiny import make_random_adapter, reference_answers

NAME = "under-load/support"
ASKERS = 16
TOKENS = 24
LONG_TOKENS = CONTEXT - 100
BEFORE, AFTER = 2 * ASKERS, 3 * ASKERS  # answers to wait for on each side of a change
MOST_REQUESTS = 400  # of one asker
LOAD_SECONDS = 400.0

pytestmark = pytest.mark.timeout(900)


@dataclass(frozen=True, slots=True)
class Version:
    """A version's exact name under NAME, the folder it is published from, and its own answer to the shared prompt."""

    exact: str
    folder: Path
    text: str


@pytest.fixture(scope="module")
def versions(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> tuple[Version, Version]:
    """Two versions whose answers are known beforehand: their content is also published as other adapters, and asked for exactly."""
    folders = [tmp_path_factory.mktemp("versions") / str(number) for number in (1, 2)]
    known = [stack.push_random(folder, f"under-load/known-{folder.name}", seed=900 + int(folder.name)) for folder in folders]

    async def ask_each() -> list[Answer]:
        async with stack.async_client(timeout_seconds=300) as client:
            return [await ask(client, exact, long_chat(), tokens=TOKENS) for exact in known]

    answers = asyncio.run(ask_each())
    assert [answer.version for answer in answers] == known
    first, second = (
        Version(f"{NAME}@{exact.partition('@')[2]}", folder, answer.text)
        for exact, folder, answer in zip(known, folders, answers, strict=True)
    )
    assert first.text != second.text
    return first, second


class Load:
    """Askers that keep asking for `name`, streamed and unstreamed in turns (or all streamed), until the test has seen enough."""

    def __init__(self, client: httpx.AsyncClient, name: str = NAME, *, askers: int = ASKERS, streams: bool = False) -> None:
        self._client = client
        self._name = name
        self._count = askers
        self._streams = streams
        self._enough = asyncio.Event()
        self.answers: list[Answer] = []

    async def __aenter__(self) -> Load:
        self._askers = [asyncio.create_task(self._keep_asking(number)) for number in range(self._count)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._enough.set()
        await asyncio.gather(*self._askers)

    async def wait_for(self, count: int, *, begun_after: float = 0.0) -> None:
        """Wait until `count` answers are here to requests that began after a moment; fails when an asker failed."""
        async with asyncio.timeout(LOAD_SECONDS):
            while sum(answer.began > begun_after for answer in self.answers) < count:
                failed = next((asker for asker in self._askers if asker.done()), None)
                if failed is not None:
                    failed.result()
                    raise AssertionError(f"an asker has asked {MOST_REQUESTS} times, and still not enough answers are here")
                await asyncio.sleep(0.05)

    async def _keep_asking(self, number: int) -> None:
        for turn in range(MOST_REQUESTS):
            if self._enough.is_set():
                return
            stream = self._streams or (number + turn) % 2 == 0
            self.answers.append(await ask(self._client, self._name, long_chat(), tokens=TOKENS, stream=stream))


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with stack.async_client(timeout_seconds=300) as client:
        yield client


async def change_under_load(client: httpx.AsyncClient, change: Callable[[], Awaitable[Any]], old: Version, new: Version) -> None:
    """Make `change`, which moves NAME from `old` to `new`, while askers ask and one long answer runs; judge every answer."""
    async with Load(client) as load:
        await load.wait_for(BEFORE)
        long = await begin(client, NAME, user("Tell me a story."), tokens=LONG_TOKENS)
        began_change = time.monotonic()
        await change()
        changed = time.monotonic()
        await load.wait_for(AFTER, begun_after=changed)
    told = {old.exact: old.text, new.exact: new.text}
    for answer in load.answers:
        assert answer.text == told[answer.version], f"an answer of {answer.version} is not its own"
        assert answer.fingerprint == answer.version
    assert {answer.version for answer in load.answers if answer.ended < began_change} == {old.exact}
    assert {answer.version for answer in load.answers if answer.began > changed} == {new.exact}, "the old version was served after the move"
    await judge_long(client, await long, old, began_change)


async def judge_long(client: httpx.AsyncClient, long: Answer, version: Version, began_change: float) -> None:
    """The answer that was running stayed with its version to the end, which came after `began_change`."""
    assert long.ended > began_change, "the long answer ended too early to show anything"
    alone = await ask(client, version.exact, user("Tell me a story."), tokens=LONG_TOKENS)
    assert (long.version, long.text) == (version.exact, alone.text)


async def test_publishing_a_second_version_under_load_mixes_nothing(
    stack: Stack, client: httpx.AsyncClient, versions: tuple[Version, Version]
) -> None:
    first, second = versions
    assert stack.push(first.folder, NAME) == first.exact
    files = [("files", (path.name, path.read_bytes())) for path in sorted(second.folder.iterdir())]

    async def publish() -> None:
        response = await client.post(f"adapters/{NAME}/versions", files=files)
        assert response.status_code in (200, 201), response.text

    await change_under_load(client, publish, first, second)


async def test_shared_prompt_is_answered_by_each_from_its_own_weights(
    stack: Stack, client: httpx.AsyncClient, versions: tuple[Version, Version], tmp_path: Path
) -> None:
    """Base, both versions, and a third adapter in turns and at once: what one left in the prefix cache serves no other."""
    third = tmp_path / "third"
    make_random_adapter(third, stack.tiny_folder, seed=903, base_name=TINY)
    folders: Mapping[str, Path | None] = {
        TINY: None,
        **{f"under-load/known-{number}": version.folder for number, version in enumerate(versions, 1)},
        stack.push(third, "under-load/third"): third,
    }
    expected = {name: reference_answers(stack.tiny_folder, folder, [long_chat()], TOKENS)[0] for name, folder in folders.items()}
    assert len({tuple(answer) for answer in expected.values()}) == len(expected)
    for _ in range(2):
        for name, token_ids in expected.items():
            answer = await ask(client, name, long_chat(), tokens=TOKENS, return_token_ids=True)
            assert answer.token_ids == token_ids, name
    questions = [ask(client, name, long_chat(), tokens=TOKENS, return_token_ids=True) for name in [*folders] * 4]
    for name, answer in zip([*folders] * 4, await asyncio.gather(*questions), strict=True):
        assert answer.token_ids == expected[name], name
