"""A replica's requests, from when they arrive to their last frame: straight from gateways, or through Serve.

    CallReceiver ── begin ──▶ room? ──┬──▶ answer(call) ──▶ END or ERROR
    Serve ───────── chat ───▶ wait ───┘
    CallReceiver ── warm ──▶ warm(call) ──▶ END or ERROR    beside them: it takes no room and is no load

Serve counts only the calls that it carries, so the rest of what it does for a replica is done here: a bound on how many there are, their
load for its autoscaler, an end to those that nobody waits for, and staying until the last has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from adapters_store.errors import InternalError, LorikeetError
from deployments.calls import CallReceiver
from deployments.messages import END, ERROR, HEAD, REFUSED, ChatCall, WarmCall, error_payload, head_payload
from deployments.room import Room
from deployments.stream import FrameSender

if TYPE_CHECKING:
    from deployments.engine.adapters import UsedAdapter

logger = logging.getLogger(__name__)

WARMS_MOST = 64  # under way and waiting; more are refused, since a replica that is so far behind does nobody a favour
TELL_SECONDS = 0.5  # how often gateways hear of this replica's load
_LEAVE_SECONDS = 0.05  # how often one that stops looks whether its last request has ended


class Reception:
    """`answer` makes the answer to a call, by frames of its own to `frames`; raises the LorikeetError that ended it.

    `warm` loads what a warm asks for; None where it asks for nothing of this replica.
    """

    def __init__(
        self, host: str, answer: Callable[[ChatCall], Awaitable[None]], warm: Callable[[WarmCall], Awaitable[UsedAdapter | None]]
    ) -> None:
        self._answer = answer
        self._warm = warm
        self._room = Room()
        self._stopping = False
        self._tasks: dict[str, dict[bytes, asyncio.Task[None]]] = defaultdict(dict)  # by gateway and stream id
        self._direct: dict[bytes, asyncio.Task[None]] = {}  # those of them that did not come through Serve
        self._warms: set[bytes] = set()  # stream ids of those that are warms
        self._calls = CallReceiver(host, self)
        self.frames = FrameSender(self._abort_gateway, self._calls.name)
        self._telling = asyncio.get_running_loop().create_task(self._tell_load())

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What gateways have to know to call here (`ReplicaAddress.of`)."""
        return self._calls.metadata

    @property
    def load(self) -> int:
        """Requests that run here or wait for it."""
        return self._room.load

    async def chat(self, call: ChatCall) -> None:
        """Serve's call; returns when the answer, or the error that ended it, has been sent. Cancelling it stops the answer."""
        task = asyncio.current_task()
        assert task is not None
        mine = self._tasks[call.frames_to]
        mine[call.stream_id] = task
        try:
            await self._room.wait(call.most)
            try:
                await self._respond(call)
            finally:
                self._room.give()
        finally:
            mine.pop(call.stream_id, None)

    def begin(self, call: ChatCall) -> None:
        """A gateway's call: answered, or refused at once."""
        if self._stopping or not self._room.take(call.most):
            self.refuse(call.frames_to, call.stream_id)
            return
        self.frames.reach(call.frames_to)
        task = asyncio.get_running_loop().create_task(self._respond(call))
        self._tasks[call.frames_to][call.stream_id] = self._direct[call.stream_id] = task
        task.add_done_callback(lambda _: self._ended(call))

    def warm(self, call: WarmCall) -> None:
        """A gateway's wish that an adapter is loaded: answered when it is, or refused at once."""
        if self._stopping or len(self._warms) >= WARMS_MOST:
            self.refuse(call.frames_to, call.stream_id)
            return
        self.frames.reach(call.frames_to)
        self._warms.add(call.stream_id)
        task = asyncio.get_running_loop().create_task(self._respond_warm(call))
        self._tasks[call.frames_to][call.stream_id] = self._direct[call.stream_id] = task
        task.add_done_callback(lambda _: self._ended_warm(call))

    def refuse(self, gateway: str, stream_id: bytes) -> None:
        """Have the gateway ask elsewhere."""
        self.frames.send(gateway, stream_id, REFUSED)

    def cancel(self, stream_id: bytes) -> None:
        """Nobody waits for that call of a gateway any more."""
        task = self._direct.get(stream_id)
        if task is not None:
            task.cancel()

    def forget(self, gateway: str) -> None:
        """A gateway connects anew: what it has called here before it has lost sight of."""
        for stream_id in self._tasks.get(gateway, {}).keys() & self._direct.keys():
            self._direct[stream_id].cancel()

    async def close(self) -> None:
        """Take no more, wait until the last request has ended, and close the sockets."""
        self._stopping = True
        while self._room.load or self._warms:  # noqa: ASYNC110  (nobody else looks)
            await asyncio.sleep(_LEAVE_SECONDS)
        self._telling.cancel()
        self._calls.close()
        await asyncio.sleep(_LEAVE_SECONDS)  # the last frames leave after the tasks that are ready now
        self.frames.close()

    def _ended(self, call: ChatCall) -> None:
        self._forget_direct(call)
        self._room.give()

    def _ended_warm(self, call: WarmCall) -> None:
        self._forget_direct(call)
        self._warms.discard(call.stream_id)

    def _forget_direct(self, call: ChatCall | WarmCall) -> None:
        del self._direct[call.stream_id]
        self._tasks.get(call.frames_to, {}).pop(call.stream_id, None)

    async def _respond(self, call: ChatCall) -> None:
        send, to, stream_id = self.frames.send, call.frames_to, call.stream_id
        try:
            await self._answer(call)
            send(to, stream_id, END)
        except LorikeetError as error:
            send(to, stream_id, ERROR, error_payload(error))
        except Exception:
            logger.exception("chat_failed", extra={"request_id": call.request_id})
            send(to, stream_id, ERROR, error_payload(InternalError("the model failed to answer this request")))

    async def _respond_warm(self, call: WarmCall) -> None:
        send, to, stream_id = self.frames.send, call.frames_to, call.stream_id
        try:
            used = await self._warm(call)
            if used is not None:
                send(to, stream_id, HEAD, head_payload(used.cold, used.wait_seconds))
            send(to, stream_id, END)
        except LorikeetError as error:
            send(to, stream_id, ERROR, error_payload(error))
        except Exception:
            logger.exception("warm_failed", extra={"adapter": call.adapter.exact_name})
            send(to, stream_id, ERROR, error_payload(InternalError(f"{call.adapter.exact_name} could not be loaded")))

    def _abort_gateway(self, gateway: str) -> None:
        """Nobody is left to read these answers: stop making them."""
        for task in self._tasks.pop(gateway, {}).values():
            task.cancel()

    async def _tell_load(self) -> None:
        while True:
            await asyncio.sleep(TELL_SECONDS)
            self.frames.tell_load(self._room.load)
