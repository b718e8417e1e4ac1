"""A replica for gateways to call directly: real sockets, and answers as the test says. One engine's part is `answer`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from adapters_store.errors import LorikeetError
from deployments.calls import CallReceiver, ReplicaAddress
from deployments.messages import DATA, END, ERROR, HEAD, REFUSED, ChatCall, WarmCall, error_payload, head_payload
from deployments.stream import FrameSender

SECONDS = 10.0


class DirectReplica:
    """Keeps what it was asked; `answer` does with a call what the test wants.

    `held` are the exact names of adapters that it holds. A warm loads one unless `warm_error` says otherwise, once `loading` is set.
    """

    def __init__(
        self, id: str, answer: Callable[[DirectReplica, ChatCall], Awaitable[None]], most: int = 64, host: str = "127.0.0.1"
    ) -> None:
        self.calls: list[ChatCall] = []
        self.warms: list[WarmCall] = []
        self.held: set[str] = set()
        self.warm_error: LorikeetError | None = None
        self.loading = asyncio.Event()
        self.loading.set()
        self.cancelled: list[bytes] = []
        self.refused: list[bytes] = []
        self.forgotten: list[str] = []
        self.lost_gateways: list[str] = []
        self.refuses = False
        self._answer = answer
        self._tasks: dict[bytes, asyncio.Task[None]] = {}
        self.receiver = CallReceiver(host, self)
        self.sender = FrameSender(self.lost_gateways.append, self.receiver.name)
        address = ReplicaAddress.of(id, self.receiver.metadata, most)
        assert address is not None
        self.address = address

    def begin(self, call: ChatCall) -> None:
        self.calls.append(call)
        if self.refuses:
            self.refuse(call.frames_to, call.stream_id)
            return
        self._tasks[call.stream_id] = asyncio.ensure_future(self._answer(self, call))

    def warm(self, call: WarmCall) -> None:
        self.warms.append(call)
        if self.refuses:
            self.refuse(call.frames_to, call.stream_id)
            return
        self._tasks[call.stream_id] = asyncio.ensure_future(self._load(call))

    async def _load(self, call: WarmCall) -> None:
        if not call.instead_of or self.held & set(call.instead_of):
            await self.loading.wait()
            if self.warm_error is not None:
                self.send(call, ERROR, error_payload(self.warm_error))
                return
            found = "gpu" if call.adapter.exact_name in self.held else "store"
            self.held.add(call.adapter.exact_name)
            self.send(call, HEAD, head_payload(found, 0.25))
        self.send(call, END)

    def refuse(self, gateway: str, stream_id: bytes) -> None:
        self.refused.append(stream_id)
        self.sender.send(gateway, stream_id, REFUSED)

    def cancel(self, stream_id: bytes) -> None:
        self.cancelled.append(stream_id)
        self._tasks[stream_id].cancel()

    def forget(self, gateway: str) -> None:
        self.forgotten.append(gateway)

    def send(self, call: ChatCall | WarmCall, kind: bytes, payload: bytes = b"") -> None:
        self.sender.send(call.frames_to, call.stream_id, kind, payload)

    def die(self) -> None:
        """As a killed process: its sockets close, and nothing is said."""
        for task in self._tasks.values():
            task.cancel()
        self.receiver.close()
        self.sender.close()


async def answers(replica: DirectReplica, call: ChatCall) -> None:
    for part in (b"one ", b"two ", b"three"):
        replica.send(call, DATA, part)
        await asyncio.sleep(0.005)
    replica.send(call, END)


async def begins_and_hangs(replica: DirectReplica, call: ChatCall) -> None:
    replica.send(call, DATA, b"begun")
    await asyncio.sleep(3600)


async def hangs(replica: DirectReplica, call: ChatCall) -> None:
    await asyncio.sleep(3600)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110  (the condition has no event of its own)
            await asyncio.sleep(0.005)
