"""Thousands of requests in a row, mixed and partly cancelled: every stream holds its own answer, whole and once, and nothing grows.

LORIKEET_SOAK is how many; 1,000 unless it says more (issue-sized: 10000).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.system.observed import parts_of
from tests.system.stack import TINY, Stack

REQUESTS = int(os.environ.get("LORIKEET_SOAK", "1000"))
AT_ONCE = 16
TOKENS = 16
PROMPTS = 24
OWNER = "soak"
WORDS = "red moon seven river quick bread north glass tiger under paper silver loud cold engine yes window sand mother zero".split()  # noqa: SIM905
GROWTH = 1.03

pytestmark = pytest.mark.timeout(600 + 2 * REQUESTS)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request and what its answer must be; `version` is what must have answered."""

    model: str
    version: str
    prompt: str
    text: str

    def body(self, *, stream: bool) -> dict[str, Any]:
        messages = [{"role": "user", "content": self.prompt}]
        usage = {"stream_options": {"include_usage": True}} if stream else {}
        fields = {"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, "stream": stream, **usage}
        return {"model": self.model, "messages": messages, **fields}


@pytest.fixture(scope="module")
def asked(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> list[Asked]:
    """Prompts to the base and to two adapters, each with an answer that no other has: a crossed one shows."""
    folder: Path = tmp_path_factory.mktemp("soak")
    versions = {TINY: TINY}
    for seed in (71, 72):
        name = f"{OWNER}/a{seed}"
        versions[name] = stack.push_random(folder / name, name, seed=seed)
    words = random.Random(3)
    found: dict[str, Asked] = {}
    with stack.client() as client:
        for model, version in versions.items():
            for number in range(PROMPTS):
                prompt = " ".join(words.sample(WORDS, 12)) + f" {number}?"
                unanswered = Asked(model, version, prompt, "")
                response = client.post("chat/completions", json=unanswered.body(stream=False))
                assert response.status_code == 200, response.text
                text = response.json()["choices"][0]["message"]["content"]
                found[text] = Asked(model, version, prompt, text)
    assert len(found) > len(versions) * PROMPTS // 2, "too many answers are the same"
    return list(found.values())


async def test_every_answer_is_its_own_and_nothing_grows(stack: Stack, asked: list[Asked]) -> None:
    parts = parts_of(stack, TINY)
    async with stack.async_client() as client:
        await _run(client, asked, 200, seed=0)  # fills what is kept for reuse
        await _run(client, asked, REQUESTS // 2, seed=1)
        first = parts.rss_bytes
        await _run(client, asked, REQUESTS - REQUESTS // 2, seed=2)
        second = parts.rss_bytes
    print(f"memory after {REQUESTS // 2} requests: {first}; after {REQUESTS}: {second}")
    for part in ("gateway", "replica"):
        assert second[part] <= first[part] * GROWTH, f"{part} grew from {first[part]} to {second[part]} bytes"


async def _run(client: httpx.AsyncClient, asked: list[Asked], count: int, *, seed: int) -> None:
    """So many requests, AT_ONCE at a time: streamed, whole and left in the middle."""
    pick = random.Random(seed)
    plans = iter(
        [(pick.choice(asked), pick.choices(("stream", "whole", "leave"), (6, 2, 2))[0], pick.randrange(1, 9)) for _ in range(count)]
    )
    ids: set[str] = set()

    async def work() -> None:
        for case, kind, events in plans:
            answer_id = await _ask(client, case, kind, events)
            assert answer_id not in ids, "two answers have the same id"
            ids.add(answer_id)

    async with asyncio.timeout(120.0 + count):
        await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    assert len(ids) == count


async def _ask(client: httpx.AsyncClient, case: Asked, kind: str, events: int) -> str:
    """Make the request and check all that comes of it; returns the answer's id."""
    if kind == "whole":
        response = await client.post("chat/completions", json=case.body(stream=False))
        assert response.status_code == 200, response.text
        answer = response.json()
        assert answer["choices"][0]["message"]["content"] == case.text, case
        assert answer["usage"]["completion_tokens"] == TOKENS
        _check_version(response.headers, answer, case)
        return str(answer["id"])
    async with client.stream("POST", "chat/completions", json=case.body(stream=True)) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["x-lorikeet-version"] == case.version
        lines: list[str] = []
        async for line in response.aiter_lines():
            if line:
                lines.append(line)
            if kind == "leave" and len(lines) == events:
                break
    return _check_stream(lines, case, whole=kind == "stream")


def _check_stream(lines: list[str], case: Asked, *, whole: bool) -> str:
    assert all(line.startswith("data: ") for line in lines), lines
    assert ("data: [DONE]" in lines) == (lines[-1] == "data: [DONE]") and lines.count("data: [DONE]") <= 1
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line != "data: [DONE]"]
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    assert [bool(choice["delta"].get("role")) for choice in choices] == [True] + [False] * (len(choices) - 1)
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    [answer_id] = {chunk["id"] for chunk in chunks}
    if not whole:
        assert case.text.startswith(text), (case, text)
        return str(answer_id)
    assert lines[-1] == "data: [DONE]"
    assert text == case.text, (case, text)
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["length"]
    assert chunks[-1]["usage"]["completion_tokens"] == TOKENS
    assert chunks[-1]["system_fingerprint"] == case.version
    return str(answer_id)


def _check_version(headers: Mapping[str, str], answer: Mapping[str, Any], case: Asked) -> None:
    assert headers["x-lorikeet-version"] == answer["system_fingerprint"] == case.version
    assert answer["model"] == case.model
