"""The gateway's side of a chat: a call to a replica, and the frames that answer it.

    open ──▶ a replica is known ──▶ call it directly (`fleet.py`) ──┐
        └──▶ none, or all full ───▶ handle.chat.remote(call) ───────┴──▶ first frame ──▶ Answer (head, parts) ──▶ closed: cancelled if it
                                                                                                                 still runs
Serve's call is one unary call that lasts as long as the request: it wakes a model that sleeps, waits for one that starts, and queues.
Either way tokens come through the side channel (`stream.py`). A replica that dies before the first token costs the client nothing: the
call is made again. After it, the stream ends with an error.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError, RequestCancelledError

from adapters_store.adapter import Adapter
from adapters_store.errors import InternalError, LorikeetError, Overloaded, Unavailable
from deployments.fleet import Fleet, Replica, gone
from deployments.inbox import Inbox
from deployments.messages import REQUEST_ID_BYTES, ChatCall, Refused, ReplicaGone
from deployments.stream import FrameReceiver

logger = logging.getLogger(__name__)

_ATTEMPTS = 3
_LAST_FRAME_SECONDS = 5.0  # frames may trail the Serve call's own result, by far less
_REPLICA_GONE = (RayActorError, ReplicaUnavailableError)


class ChatHandle(Protocol):
    """A Serve deployment handle, as far as it is used here."""

    @property
    def chat(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class DispatchLimits:
    requests_at_once: int
    stream_buffer_bytes: int
    request_timeout_seconds: float


class Answer:
    """The answer to one chat, as it comes. `cold` is where the adapter was found, None for a base model; `way` how the call went."""

    def __init__(self, inbox: Inbox, first: bytes, close: Callable[[], None], way: str) -> None:
        self.way = way
        self._inbox = inbox
        self._first = first
        self._close = close
        head = json.loads(inbox.head.payload) if inbox.head else {}
        self.cold: str | None = head.get("cold")
        self.wait_ms: float | None = head.get("wait_ms")

    async def parts(self, take: Callable[[bytes], bool] | None = None) -> AsyncIterator[bytes]:
        """The answer's bytes; raises the LorikeetError that ended it. Close the answer afterwards in any case.

        What comes while the next is waited for is first offered to `take`, and is not among the parts if that returns True.
        """
        self._inbox.offer_to(take)
        part = self._first
        while part:
            yield part
            part = await self._inbox.get()

    async def whole(self) -> bytes:
        """All of an answer that is not streamed."""
        return b"".join([part async for part in self.parts()])

    def close(self) -> None:
        """Let go of the request; the engine stops working on it if it has not ended. Idempotent."""
        self._close()


class Dispatch:
    """Sends chats to the replicas of a base model and brings their answers back."""

    def __init__(self, receiver: FrameReceiver, handle_of: Callable[[str], ChatHandle], fleet: Fleet, limits: DispatchLimits) -> None:
        self._receiver = receiver
        self._handle_of = handle_of
        self._fleet = fleet
        self._limits = limits

    async def open(self, request_id: str, base: str, model: str, adapter: Adapter | None, body: bytes, stream: bool) -> Answer:
        """Send a chat and wait for the first part of its answer.

        Raises what the replica answered with (InvalidRequest, …), Overloaded, Unavailable after the limit's time or when
        replicas kept dying. Cancelling it, or closing the answer, aborts the engine's request.
        """
        if self._receiver.open_count >= self._limits.requests_at_once:
            raise Overloaded(f"this gateway holds {self._limits.requests_at_once} requests, the most it may: try again shortly")
        refused: set[str] = set()
        attempts = 0
        while attempts < _ATTEMPTS:
            stream_id, most = secrets.token_bytes(REQUEST_ID_BYTES), self._fleet.most(base)
            call = ChatCall(request_id, stream_id, self._receiver.address, model, adapter, body, stream, most)
            replica = self._fleet.choose(base, call.placement_key, refused)
            flight: _Flight
            if replica is not None:
                flight = _DirectFlight(self._receiver, call, replica, self._limits)
            else:
                flight = _ServeFlight(self._receiver, call, self._handle_of(base), self._limits)
            try:
                return await flight.first()
            except Refused:
                flight.close()
                if replica is not None:
                    refused.add(replica.id)
            except ReplicaGone:
                flight.close()
                attempts += 1
                if replica is not None:  # a lost machine, whose connections break one by one, costs one attempt and not all
                    refused |= self._fleet.beside(base, replica, refused)
                logger.warning("chat_retried", extra={"request_id": request_id, "model": base, "attempt": attempts})
            except BaseException:
                flight.close()
                raise
        raise Unavailable(f"replicas of {base} stopped {_ATTEMPTS} times before answering: try again", retry_after_seconds=5.0)


class _Flight:
    """One call and its inbox."""

    way: str

    def __init__(self, receiver: FrameReceiver, call: ChatCall, limits: DispatchLimits) -> None:
        loop = asyncio.get_running_loop()
        self._receiver = receiver
        self._call = call
        self._aborted = False
        self._inbox = receiver.open(call.stream_id, limits.stream_buffer_bytes, self._abort)
        self._timer = loop.call_later(limits.request_timeout_seconds, self._expire, limits.request_timeout_seconds)

    async def first(self) -> Answer:
        part = await self._inbox.get()
        return Answer(self._inbox, part, self.close, self.way)

    def close(self) -> None:
        self._timer.cancel()
        self._receiver.forget(self._call.stream_id)
        if not self._inbox.ended:
            self._abort()

    def _abort(self) -> None:
        """Have the replica stop: nobody will read the rest."""
        if not self._aborted:
            self._aborted = True
            self._cancel()

    def _cancel(self) -> None:
        raise NotImplementedError

    def _expire(self, seconds: float) -> None:
        self._abort()
        self._inbox.fail(
            Unavailable(f"the answer took longer than {seconds:g} s: try again, or ask for fewer tokens", retry_after_seconds=5.0)
        )


class _DirectFlight(_Flight):
    """A call straight to a replica, which has the inbox fail when the replica is lost."""

    way = "direct"

    def __init__(self, receiver: FrameReceiver, call: ChatCall, replica: Replica, limits: DispatchLimits) -> None:
        super().__init__(receiver, call, limits)
        self._replica = replica
        replica.begin(call, self._inbox)

    def close(self) -> None:
        super().close()
        self._replica.end(self._call.stream_id)

    def _cancel(self) -> None:
        self._replica.cancel(self._call.stream_id)


class _ServeFlight(_Flight):
    """A call through Serve, whose result says how the request ended."""

    way = "serve"

    def __init__(self, receiver: FrameReceiver, call: ChatCall, handle: ChatHandle, limits: DispatchLimits) -> None:
        self._response = handle.chat.remote(call)
        super().__init__(receiver, call, limits)
        self._watch = asyncio.get_running_loop().create_task(self._watch_call())

    def close(self) -> None:
        super().close()
        self._watch.cancel()

    def _cancel(self) -> None:
        if not self._watch.done():
            self._response.cancel()

    async def _watch_call(self) -> None:
        try:
            await self._response
            await asyncio.sleep(_LAST_FRAME_SECONDS)
            error: LorikeetError = InternalError("the end of the answer was lost between the model's replica and the gateway")
        except asyncio.CancelledError:
            raise
        except _REPLICA_GONE:
            error = gone()
        except BackPressureError:
            error = Overloaded("the model's queue is full: try again shortly")
        except DeploymentUnavailableError:
            error = Unavailable("the model is not running: see GET /readyz", retry_after_seconds=5.0)
        except (RequestCancelledError, RayError) as failure:
            logger.warning("call_failed", extra={"request_id": self._call.request_id, "error": type(failure).__name__})
            error = gone()
        except Exception:
            logger.exception("call_failed", extra={"request_id": self._call.request_id})
            error = InternalError("the gateway lost this request")
        self._inbox.fail(error)
