"""What becomes of chats on a cluster on which things die: each one's outcome, held against the one right answer of its model.

Every chat here has the same prompt, so a model has one greedy answer; a shorter one, or what came before an error, is its beginning.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx

from tests.system.asking import user

TOLD_SECONDS = 2.0  # after a kill, as long as an ended answer may take to end for its client
CHAT = user("Name three birds, and go on.")

# whole: all of the answer. told: some of it, then an error event. cut: some of it, then the connection broke. refused: nothing, an error.
End = Literal["whole", "told", "cut", "refused"]


@dataclass(frozen=True, slots=True)
class Right:
    """A model's name, the version that its name means, and the token ids of its greedy answer."""

    model: str
    version: str
    ids: list[int]


@dataclass(slots=True)
class Outcome:
    """How one chat ended; times on time.monotonic's clock. `detail` is what it was told instead of the rest."""

    right: Right
    stream: bool
    tokens: int
    began: float = field(default_factory=time.monotonic)
    end: End = "refused"
    version: str | None = None
    ids: list[int] = field(default_factory=list)
    ended: float = 0.0
    detail: Any = None

    def check(self) -> None:
        """Whatever came is of the right version and the right weights; all of it, unless the end says otherwise."""
        if self.version is not None:
            assert self.version == self.right.version, f"{self.right.model} was answered by {self.version}"
        assert self.ids == self.right.ids[: len(self.ids)], f"{self.right.model} was answered with other weights"
        if self.end == "whole":
            assert self.version is not None and len(self.ids) == self.tokens, f"{self.right.model}: {len(self.ids)} of {self.tokens} tokens"
        if self.end == "told":
            error = self.detail["error"]
            assert error.keys() == {"message", "type", "param", "code"} and error["code"] == "unavailable", error


@dataclass(frozen=True, slots=True)
class Toll:
    """What became of the chats around a kill. Each was checked for its version and weights when it ended."""

    outcomes: Sequence[Outcome]
    killed_at: float
    whole_seconds: float

    def ended(self, *ends: End) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.end in ends]

    def check(self) -> None:
        """Who had been sent nothing is answered; who had been sent something hears at once that no more will come."""
        assert not self.ended("refused"), [outcome.detail for outcome in self.ended("refused")]
        for outcome in self.ended("told", "cut"):
            assert outcome.stream and outcome.ids, f"nothing of it had been sent: {outcome.end}, {outcome.detail}"
            assert outcome.ended - self.killed_at < TOLD_SECONDS, f"it ended {outcome.ended - self.killed_at:.1f} s after the kill"

    def __str__(self) -> str:
        counts = Counter(outcome.end for outcome in self.outcomes)
        through = sum(outcome.began < self.killed_at < outcome.ended for outcome in self.ended("whole"))
        late = max((outcome.ended - self.killed_at for outcome in self.ended("told", "cut")), default=0.0)
        return (
            f"{counts['whole']} chats whole, {through} of them under way at the kill; of begun streams {counts['told']} ended with an "
            f"error event, {counts['cut']} were cut, after {late:.1f} s at most; {counts['refused']} refused, 0 wrong; "
            f"whole again after {self.whole_seconds:.1f} s"
        )


async def chat(client: httpx.AsyncClient, right: Right, *, tokens: int, stream: bool, begun: asyncio.Event | None = None) -> Outcome:
    """Ask for `tokens` greedy tokens, read whatever comes, and check it. `begun` is set when a stream's first token is here."""
    outcome = Outcome(right, stream, tokens)
    body: Mapping[str, Any] = {
        **{"model": right.model, "messages": CHAT, "max_tokens": tokens, "temperature": 0},
        **{"ignore_eos": True, "return_token_ids": True, "stream": stream},
    }
    try:
        async with client.stream("POST", "chat/completions", json=body) as response:
            if response.status_code == 200:
                outcome.version = response.headers["x-lorikeet-version"]
                await _read(response, outcome, begun)
            else:
                outcome.detail = (response.status_code, (await response.aread()).decode())
    except httpx.HTTPError as error:
        outcome.end, outcome.detail = "refused" if outcome.version is None else "cut", repr(error)
    outcome.ended = time.monotonic()
    outcome.check()
    return outcome


async def _read(response: httpx.Response, outcome: Outcome, begun: asyncio.Event | None) -> None:
    outcome.end = "cut"
    async for payload in _payloads(response) if outcome.stream else _whole(response):
        if payload == "[DONE]":
            outcome.end = "whole"
        elif "error" in payload:
            outcome.end, outcome.detail = "told", payload
        else:
            outcome.ids += [token for choice in payload["choices"] for token in choice.get("token_ids") or ()]
            if begun is not None and outcome.ids:
                begun.set()


async def _payloads(response: httpx.Response) -> AsyncIterator[Any]:
    """A stream's events, without the comments that a client gets while a model wakes."""
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            yield data if data == "[DONE]" else json.loads(data)


async def _whole(response: httpx.Response) -> AsyncIterator[Any]:
    yield json.loads(await response.aread())
    yield "[DONE]"
