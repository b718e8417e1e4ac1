"""The load: a closed loop that asks for a given run of models, and takes the time to each answer's first token.

`vllm bench serve` cannot give it: its `--lora-assignment` is random with equal odds, or round-robin.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import aiohttp

TIMEOUT_SECONDS = 120.0
_APART_SECONDS = 0.02  # clients begin so far apart, or they would go in step


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. `tokens` are the content chunks that came with at least one token; `cold` where its adapter was found."""

    model: str
    started: float
    first: float
    ended: float
    status: int
    chunks: int
    cold: str | None
    gaps: tuple[float, ...] = ()

    @property
    def ttft_ms(self) -> float:
        return 1e3 * (self.first - self.started)


class Load:
    """Asks one gateway, `at_once` requests at a time."""

    def __init__(self, url: str, key: str, tokens: int) -> None:
        self._url = f"{url}/api/v1/chat/completions"
        self._headers = {"Authorization": f"Bearer {key}"}
        self._tokens = tokens

    def run(self, models: Sequence[str], at_once: int) -> list[Asked]:
        return asyncio.run(self._run(models, at_once))

    async def _run(self, models: Sequence[str], at_once: int) -> list[Asked]:
        left: Iterator[str] = iter(models)
        async with self.session() as session:

            async def client(number: int) -> list[Asked]:
                await asyncio.sleep(_APART_SECONDS * number)
                return [await self.ask(session, model) for model in left]

            return [asked for each in await asyncio.gather(*map(client, range(at_once))) for asked in each]

    def session(self) -> aiohttp.ClientSession:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout, headers=self._headers)

    async def ask(self, session: aiohttp.ClientSession, model: str, tokens: int | None = None) -> Asked:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": "Tell me of the sea."}],
            "max_tokens": tokens or self._tokens,
            "ignore_eos": True,
            "stream": True,
        }
        started = last = time.perf_counter()
        first, gaps = 0.0, []
        async with session.post(self._url, data=json.dumps(body), headers={"content-type": "application/json"}) as answer:
            async for line in answer.content:
                if not line.startswith(b"data: {"):
                    continue
                now = time.perf_counter()
                if not first:
                    first = now
                else:
                    gaps.append(now - last)
                last = now
            ended = time.perf_counter()
            cold = answer.headers.get("x-lorikeet-cold")
            return Asked(model, started, first or ended, ended, answer.status, len(gaps) + 1, cold, tuple(gaps))
