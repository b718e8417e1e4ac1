"""Requests for a model that has no replica, since it sleeps or its replicas have died: they wait while it wakes, so many and so long.

    a replica is known ──▶ dispatch's opening, until the first token is overdue
    otherwise: opening ──▶ answered soon ─────────────────────────▶ Answer, as ever
                      └──▶ not yet. Has the model a replica? ─ yes ─▶ on, until the first token is overdue
                                                             └ no ──▶ one of those that wait: up to the model's wake time, a stream's
                                                                      client gets its headers and now and then a comment

`dispatch.py` knows nothing of it: the Serve call is under way all the time, and is what wakes the model. A look at the models' states
costs a question to Serve's controller a second, and only while something takes longer than that.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adapters_store.errors import Overloaded, Unavailable
from configs.settings import AutoscalingSettings, ModelSettings
from deployments.dispatch import Answer

_WITHOUT_REPLICA = ("asleep", "starting", "unhealthy")  # of `readiness.py`: a replica is coming, or will be tried
_RETRY_AFTER_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Patience:
    """`first_token_seconds` counts where there is a replica; between looks at a model's state, and between comments, is the rest."""

    first_token_seconds: float
    look_seconds: float = 1.0
    comment_seconds: float = 5.0


class Waking:
    """Opens chats, and counts those that wait for a replica of each base model."""

    def __init__(
        self, states: Callable[[], Awaitable[Mapping[str, str]]], patience: Patience, awake: Callable[[str], bool] = lambda _: False
    ) -> None:
        """`states` tells each base model's state (`readiness.py`), `awake` whether a replica is known anyway (`fleet.py`)."""
        self._states = states
        self._awake = awake
        self._patience = patience
        self._scaling: Mapping[str, AutoscalingSettings] = {}
        self._waiting: Counter[str] = Counter()

    def serve(self, models: Sequence[ModelSettings]) -> None:
        """From now on these models' settings say how many may wait, and how long."""
        self._scaling = {model.id: model.autoscaling for model in models}

    @property
    def count(self) -> int:
        """Requests that wait for a replica now."""
        return self._waiting.total()

    async def open(self, base: str, opening: Callable[[], Coroutine[Any, Any, Answer]], *, stream: bool) -> Answer | Opening:
        """Open a chat by `opening`. For a stream whose model has no replica, returns before the answer is there.

        Raises what `opening` raises, Unavailable when it took too long, Overloaded when too many wait already.
        """
        if self._awake(base):
            return await self._in_time(opening)
        pending = Opening(self, base, opening)
        try:
            while not await pending.look():
                if stream and pending.waits:
                    return pending
            return pending.answer
        except BaseException:
            pending.close()
            raise

    async def _in_time(self, opening: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
        """The common case, which must cost nothing: there is a replica, and the only question is when the first token comes."""
        try:
            async with asyncio.timeout(self._patience.first_token_seconds) as bound:
                return await opening()
        except TimeoutError:
            if not bound.expired():
                raise
            raise _no_token(self._patience.first_token_seconds) from None

    def _of(self, base: str) -> AutoscalingSettings:
        return self._scaling.get(base) or AutoscalingSettings()


class Opening:
    """An answer that may be still to come. Read like one (`parts`); close it in any case."""

    cold: str | None = None  # not known yet
    wait_ms: float | None = None

    def __init__(self, waking: Waking, base: str, opening: Callable[[], Coroutine[Any, Any, Answer]]) -> None:
        self._waking = waking
        self._base = base
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + waking._patience.first_token_seconds
        self.waits = False
        if waking._waiting[base]:  # others have looked
            self._enter()
        self._task = self._loop.create_task(opening())

    @property
    def answer(self) -> Answer:
        """The answer, once `look` has said that it is there; raises what came instead."""
        return self._task.result()

    async def look(self) -> bool:
        """Wait a little for the answer; whether it, or an error instead, is there. If not, see whether the model has a replica.

        Raises Unavailable when the time is up, Overloaded when too many wait already.
        """
        left = max(0.0, self._deadline - self._loop.time())
        await asyncio.wait((self._task,), timeout=min(self._waking._patience.look_seconds, left))
        if not self._task.done():
            await self._judge()
        if self._task.done():
            self._leave()
            return True
        if self._loop.time() >= self._deadline:
            raise self._overdue()
        return False

    async def parts(self, take: Callable[[bytes], bool] | None = None) -> AsyncIterator[bytes]:
        """Comments while the model wakes, then the answer's parts; raises the LorikeetError that ended it. `take` as of an Answer's."""
        comment, seconds = f": waking {self._base}\n\n".encode(), self._waking._patience.comment_seconds
        yield comment
        next_at = self._loop.time() + seconds
        while not await self.look():
            if self._loop.time() >= next_at:
                yield comment
                next_at = self._loop.time() + seconds
        async for part in self.answer.parts(take):
            yield part

    def close(self) -> None:
        """Let go of the request, whether it is answered or not. Idempotent."""
        self._leave()
        if not self._task.done():
            self._task.cancel()
        elif not self._task.cancelled() and self._task.exception() is None:
            self._task.result().close()

    async def _judge(self) -> None:
        """Count this one in or out of those that wait, by the model's state. Does not outlast the answer: a controller may be away."""
        looking = asyncio.ensure_future(self._waking._states())
        try:
            await asyncio.wait((self._task, looking), return_when=asyncio.FIRST_COMPLETED)
            if not looking.done():
                return
            state = looking.result().get(self._base)
        finally:
            looking.cancel()
        if state in _WITHOUT_REPLICA and not self.waits:
            self._enter()
        elif state == "ready" and self.waits:
            self._leave()
            self._deadline = self._loop.time() + self._waking._patience.first_token_seconds

    def _enter(self) -> None:
        scaling, waiting = self._waking._of(self._base), self._waking._waiting
        if waiting[self._base] >= scaling.max_waking_requests:
            raise Overloaded(
                f"{self._base} is waking, and {scaling.max_waking_requests} requests wait for it already, the most that may: try again",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )
        waiting[self._base] += 1
        self.waits = True
        self._deadline = self._loop.time() + scaling.wake_timeout_seconds

    def _leave(self) -> None:
        if self.waits:
            self.waits = False
            self._waking._waiting[self._base] -= 1

    def _overdue(self) -> Unavailable:
        if self.waits:
            seconds = self._waking._of(self._base).wake_timeout_seconds
            return Unavailable(
                f"{self._base} was waking and had no replica within {seconds:g} s: try again later",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )
        return _no_token(self._waking._patience.first_token_seconds)


def _no_token(seconds: float) -> Unavailable:
    return Unavailable(f"no token came within {seconds:g} s: try again, or ask for fewer tokens", retry_after_seconds=5.0)
