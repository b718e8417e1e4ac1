"""The gateway's side of a warm: which replicas are to load an adapter before it is asked for, and their answers.

    load      ──▶ the first of its placement ranking: there it will be asked for
    succeed   ──▶ all replicas, asked at once: load it where you hold what it takes the place of ──▶ any did? its home too

All of it is direct calls (`fleet.py`): one request makes several at once, which Serve's handles cannot take. A warm is no chat, so it is in
no count of them. Nothing here wakes a model.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from adapters_store.adapter import Adapter
from adapters_store.errors import LorikeetError, Unavailable
from deployments.fleet import Fleet, Replica
from deployments.inbox import Inbox
from deployments.messages import REQUEST_ID_BYTES, Refused, WarmCall, adapter_key
from deployments.stream import FrameReceiver

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Warmed:
    """A replica holds the adapter. `found` is where it found it: gpu, cpu, disk or store; `wait_ms` how long loading it took."""

    found: str
    wait_ms: float


@dataclass(frozen=True, slots=True)
class Loaded:
    """The replicas that hold an adapter now, its home first; of `running` that could be asked."""

    warmed: tuple[Warmed, ...]
    running: int


_Answer = Warmed | LorikeetError | None  # None: the replica holds nothing that the adapter takes the place of


class Warmer:
    def __init__(self, receiver: FrameReceiver, fleet: Fleet) -> None:
        self._receiver = receiver
        self._fleet = fleet

    def reaches(self, base: str) -> bool:
        """Whether a base model that is served has a replica that runs."""
        return self._fleet.knows(base)

    async def load(self, adapter: Adapter, replicas: int, timeout_seconds: float) -> Loaded:
        """Have the first `replicas` of its placement ranking hold `adapter`; all of them, where fewer run.

        Raises Unavailable where none runs; what the first of them failed with, where all did.
        """
        ranked = self._fleet.ranked(adapter.base, adapter_key(adapter))
        if not ranked:
            raise Unavailable(
                f"{adapter.base} has no replica that runs, so {adapter.exact_name} cannot be loaded: a warm does not wake a model that "
                "sleeps, a chat does. Try again when GET /readyz says that it is ready",
                retry_after_seconds=10.0,
            )
        answers = await self._ask_all(ranked[:replicas], adapter, (), timeout_seconds)
        warmed = tuple(answer for answer in answers if isinstance(answer, Warmed))
        error = next((answer for answer in answers if isinstance(answer, LorikeetError)), None)
        if not warmed and error is not None:
            raise error
        return Loaded(warmed, len(ranked))

    async def succeed(self, adapter: Adapter, olds: Sequence[Adapter], timeout_seconds: float) -> None:
        """Have `adapter` loaded wherever one of `olds`, which it takes the place of, is: returns when it is, or the time is up.

        Its home is another than theirs, and gets the first requests: it loads it too, where they are in use anywhere. What fails is logged.
        """
        ranked = self._fleet.ranked(adapter.base, adapter_key(adapter))
        names = tuple(old.exact_name for old in olds if old.base == adapter.base)
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_seconds
        # Of an old version of another base no replica of this one can tell whether it is in use.
        answers: list[_Answer] = await self._ask_all(ranked, adapter, names, timeout_seconds) if names else [None] * len(ranked)
        in_use = not names or any(answer is not None for answer in answers)
        left = until - loop.time()
        if ranked and answers[0] is None and in_use and left > 0:
            answers[:1] = await self._ask_all(ranked[:1], adapter, (), left)
        held = [answer.found for answer in answers if isinstance(answer, Warmed)]
        logger.info("warmed", extra={"adapter": adapter.exact_name, "replicas": len(held), "of": len(ranked), "found": ", ".join(held)})

    async def _ask_all(
        self, replicas: Sequence[Replica], adapter: Adapter, instead_of: tuple[str, ...], timeout_seconds: float
    ) -> list[_Answer]:
        return await asyncio.gather(*(self._try(replica, adapter, instead_of, timeout_seconds) for replica in replicas))

    async def _try(self, replica: Replica, adapter: Adapter, instead_of: tuple[str, ...], timeout_seconds: float) -> _Answer:
        error: LorikeetError
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self._ask(replica, adapter, instead_of)
        except TimeoutError:
            error = Unavailable(f"{adapter.exact_name} was not loaded within {timeout_seconds:g} s: try again", retry_after_seconds=5.0)
        except Refused:
            error = Unavailable(f"a replica of {adapter.base} takes no more adapters to load, or stops: try again", retry_after_seconds=5.0)
        except LorikeetError as failure:
            error = failure
        extra = {"adapter": adapter.exact_name, "replica": replica.id, "error": type(error).__name__, "reason": error.message}
        logger.warning("warm_failed", extra=extra)
        return error

    async def _ask(self, replica: Replica, adapter: Adapter, instead_of: tuple[str, ...]) -> Warmed | None:
        call = WarmCall(secrets.token_bytes(REQUEST_ID_BYTES), self._receiver.address, adapter, instead_of)
        inbox = Inbox(0)  # its answer has no DATA
        self._receiver.listen(call.stream_id, inbox)  # `open` is for chats, which are counted
        try:
            replica.warm(call, inbox)
            await inbox.get()
        finally:
            self._receiver.ignore(call.stream_id)
            if not inbox.ended:
                replica.cancel(call.stream_id)
            replica.end(call.stream_id)
        if inbox.head is None:
            return None
        head = json.loads(inbox.head.payload)
        return Warmed(head["cold"], head["wait_ms"])
