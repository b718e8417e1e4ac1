"""Adapters nobody has asked for before: pulled once, without waiting for one another, and more of them than the engine holds.

What is on the disk of a node stays there between runs on a kept stack, so every run makes adapters of its own: their seeds are random.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.s3 import recorded_requests
from tests.system.asking import ask, user
from tests.system.stack import ROOM, TINY, Stack
from tests.tiny import make_random_adapter, reference_answers

CHAT = user("Name three animals that can fly.")
TOKENS = 16
PUSHES_AT_ONCE = 2


@dataclass(frozen=True, slots=True)
class Cold:
    """A published adapter that nobody has asked for yet, and the greedy token ids that are its own."""

    name: str
    version: str
    answer: list[int]


@pytest.fixture
def publish(stack: Stack, tmp_path: Path) -> Callable[[int], list[Cold]]:
    """Publishes as many new adapters of the tiny model as asked for."""

    def publish(count: int) -> list[Cold]:
        folders = [tmp_path / f"{number}-{secrets.token_hex(4)}" for number in range(count)]
        for folder in folders:
            make_random_adapter(folder, stack.tiny_folder, seed=secrets.randbelow(1 << 60), base_name=TINY)
        with ThreadPoolExecutor(PUSHES_AT_ONCE) as threads:
            exact = list(threads.map(lambda folder: stack.publish(folder, f"cold-start/{folder.name}"), folders))
        answers = [reference_answers(stack.tiny_folder, folder, [CHAT], TOKENS)[0] for folder in folders]
        assert len({tuple(answer) for answer in answers}) == count
        return [
            Cold(name, version, answer) for (name, _, version), answer in zip((each.partition("@") for each in exact), answers, strict=True)
        ]

    return publish


async def ask_each(stack: Stack, adapters: Sequence[Cold], *, at_once: bool) -> list[str | None]:
    """Ask every adapter, and check that each answered with its own weights; where each was found."""
    async with stack.async_client(timeout_seconds=300) as client:
        questions = [
            ask(client, cold.name, CHAT, tokens=TOKENS, stream=number % 2 == 0, return_token_ids=True)
            for number, cold in enumerate(adapters)
        ]
        answers = await asyncio.gather(*questions) if at_once else [await question for question in questions]
    for cold, answer in zip(adapters, answers, strict=True):
        assert answer.version == f"{cold.name}@{cold.version}"
        assert answer.token_ids == cold.answer, f"{cold.name} was answered with other weights"
    return [answer.cold for answer in answers]


async def test_64_first_requests_for_a_cold_adapter_are_answered_from_one_download(stack: Stack, publish) -> None:
    (cold,) = publish(1)
    with recorded_requests(stack.environment["AWS_ENDPOINT_URL"]) as requests:
        found = await ask_each(stack, [cold] * 64, at_once=True)
        again = await ask_each(stack, [cold], at_once=True)
    reads = Counter(path.rpartition("/")[2] for method, path in requests if method == "GET" and f"/versions/{cold.version}/" in path)
    reads.pop("manifest.json", None)  # the gateway's, to resolve the name
    assert reads == {"adapter_config.json": 1, "adapter_model.safetensors": 1}
    assert {"store"} <= set(found) <= {"store", "gpu"}, "who waited for the download found it in the store, who came later in its slot"
    assert again == ["gpu"]


async def test_8_first_requests_for_8_cold_adapters_are_all_answered(stack: Stack, publish) -> None:
    """That none waits for another's download: tests/deployments/test_engine_adapters.py, where a download can be held up."""
    assert await ask_each(stack, publish(8), at_once=True) == ["store"] * 8


async def test_more_adapters_than_the_engine_holds_are_served_in_turns(stack: Stack, publish) -> None:
    adapters = publish(2 * ROOM + 2)
    assert await ask_each(stack, adapters, at_once=False) == ["store"] * len(adapters)
    assert await ask_each(stack, adapters, at_once=False) == ["disk"] * len(adapters), "the engine gave back each before its next turn"
    await ask_each(stack, adapters, at_once=True)
