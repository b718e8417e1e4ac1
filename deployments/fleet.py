"""A gateway's view of the replicas that it may call directly: which there are, how loaded they are, and what it has asked of each.

Serve says which replicas run (`router.py`), so one that is about to stop gets no more calls. Connections say at once which have died.
Load is what a replica last told of others' requests, and what this gateway has there itself; which of them ask for the same adapter, or
begin alike, a gateway knows of its own.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from deployments.calls import AdapterEncoder, CallSender, ReplicaAddress
from deployments.inbox import Inbox
from deployments.messages import GREETING, LOAD, ChatCall, ReplicaGone, WarmCall, load_from_payload
from deployments.placement import placed, ranking
from deployments.stream import FrameReceiver

logger = logging.getLogger(__name__)

REST_SECONDS = 1.0  # before a replica is called again whose connection broke; by then Serve mostly knows whether it lives


class Place(Protocol):
    """In which order to try replicas: `placement.placed`."""

    def __call__(self, key: bytes, replicas: Sequence[str], loads: Sequence[int], same: Sequence[int]) -> Sequence[int]: ...


class Fleet:
    """`known` tells the replicas of a base model that Serve has running now; the same object as long as they are the same."""

    def __init__(self, receiver: FrameReceiver, known: Callable[[str], Sequence[ReplicaAddress]], place: Place = placed) -> None:
        self._receiver = receiver
        self._known = known
        self._place = place
        self._encode = AdapterEncoder()
        self._seen: dict[str, Sequence[ReplicaAddress]] = {}
        self._replicas: dict[str, Replica] = {}

    def most(self, base: str) -> int:
        """Requests that a replica of `base` may hold at once; 0 while none is known."""
        return next((replica.most for replica in self._known(base)), 0)

    def knows(self, base: str) -> bool:
        """Whether `base` has a replica that runs, as far as Serve has told."""
        return bool(self._known(base))

    def choose(self, base: str, key: bytes, refused: Collection[str] = ()) -> Replica | None:
        """The replica that a call with this placement key goes to; None when it has to go through Serve."""
        replicas = self._usable(base, refused)
        if len(replicas) < 2:
            return replicas[0] if replicas else None
        loads, same = [replica.load for replica in replicas], [replica.running(key) for replica in replicas]
        return replicas[self._place(key, [replica.id for replica in replicas], loads, same)[0]]

    def beside(self, base: str, lost: Replica, refused: Collection[str] = ()) -> set[str]:
        """Ids of the replicas on the machine of `lost`, as far as one on another can be called instead; they may be lost with it."""
        if all(replica.machine == lost.machine for replica in self._usable(base, refused)):
            return set()
        return {at.id for at in self._known(base) if at.machine == lost.machine}

    def ranked(self, base: str, key: bytes) -> list[Replica]:
        """All replicas that can be called, in the order in which this placement key prefers them: the first is its home."""
        replicas = self._usable(base)
        return [replicas[index] for index in ranking(key, [replica.id for replica in replicas])]

    def keep(self, bases: Collection[str]) -> None:
        """Let go of the replicas of all other base models; what runs there ends."""
        for base in self._seen.keys() - set(bases):
            self._see(base, ())
            del self._seen[base]

    def close(self) -> None:
        for replica in self._replicas.values():
            replica.close()

    def _usable(self, base: str, refused: Collection[str] = ()) -> list[Replica]:
        addresses = self._known(base)
        if addresses is not self._seen.get(base):
            self._see(base, addresses)
        return [replica for at in addresses if at.id not in refused and (replica := self._replicas[at.id]).usable]

    def _see(self, base: str, addresses: Sequence[ReplicaAddress]) -> None:
        left = {at.id for at in self._seen.get(base, ())} - {at.id for at in addresses}
        self._seen[base] = addresses
        for id in left:
            self._replicas.pop(id).leave()
        for at in addresses:
            if at.id not in self._replicas:
                self._replicas[at.id] = Replica(at, self._receiver, self._encode)


class Replica:
    """One replica: the connection to it, and the requests that this gateway has there."""

    def __init__(self, at: ReplicaAddress, receiver: FrameReceiver, encode: AdapterEncoder) -> None:
        self.id = at.id
        self.machine = at.machine
        self._at = at
        self._receiver = receiver
        self._encode = encode
        self._inboxes: dict[bytes, Inbox] = {}
        self._keys: dict[bytes, bytes] = {}  # of the same requests, what they are placed by
        self._by_key: Counter[bytes] = Counter()
        self._warms: dict[bytes, Inbox] = {}  # no requests: kept apart from what is load
        self._others_load = 0
        self._epoch: bytes | None = None
        self._rests_until = 0.0
        self._leaves = False
        self._greeting: asyncio.TimerHandle | None = None  # until it is to hear that what was asked of it is nobody's
        receiver.listen(at.name, self)
        self._sender: CallSender | None = self._connect()

    @property
    def usable(self) -> bool:
        return self._sender is not None or time.monotonic() >= self._rests_until

    @property
    def load(self) -> int:
        return self._others_load + len(self._inboxes)

    def running(self, key: bytes) -> int:
        """Requests with this placement key that this gateway has here."""
        return self._by_key.get(key, 0)

    def begin(self, call: ChatCall, inbox: Inbox) -> None:
        """Send a call; `inbox` fails with ReplicaGone as soon as its answer cannot come any more. `end` it in any case."""
        sender = self._reached()
        self._inboxes[call.stream_id] = inbox
        key = self._keys[call.stream_id] = call.placement_key
        self._by_key[key] += 1
        if not sender.call(call):
            self._lose()

    def warm(self, call: WarmCall, inbox: Inbox) -> None:
        """Send a warm, as `begin` sends a chat; it is no part of the load."""
        sender = self._reached()
        self._warms[call.stream_id] = inbox
        if not sender.warm(call):
            self._lose()

    def cancel(self, stream_id: bytes) -> None:
        """Have the replica stop answering."""
        if self._sender is not None:
            self._sender.cancel(stream_id)

    def end(self, stream_id: bytes) -> None:
        self._inboxes.pop(stream_id, None)
        self._warms.pop(stream_id, None)
        key = self._keys.pop(stream_id, None)
        if key is not None:
            self._by_key[key] -= 1
            if not self._by_key[key]:
                del self._by_key[key]
        if self._leaves and not self._busy:
            self.close()

    def leave(self) -> None:
        """No more calls come; those that run end."""
        self._leaves = True
        if not self._busy:
            self.close()

    def close(self) -> None:
        self._receiver.ignore(self._at.name)
        if self._greeting is not None:
            self._greeting.cancel()
            self._greeting = None
        if self._sender is not None:
            self._sender.close()
            self._sender = None

    def put(self, kind: bytes, payload: bytes) -> None:
        """What the replica says about itself."""
        if kind == GREETING:
            epoch, again = payload[:-1], payload[-1:] == b"\1"
            if again or self._epoch not in (None, epoch):
                self._fail()  # frames of theirs may be among those lost, the last ones too
            self._epoch = epoch
        elif kind == LOAD:
            try:
                self._others_load = max(0, load_from_payload(payload) - len(self._inboxes))
            except struct.error:
                logger.warning("load_unreadable", extra={"replica": self.id})

    @property
    def _busy(self) -> bool:
        return bool(self._inboxes or self._warms or self._greeting)

    def _reached(self) -> CallSender:
        if self._sender is None:
            self._sender = self._connect()
        return self._sender

    def _connect(self) -> CallSender:
        return CallSender(self._at, self._receiver.address, self._encode, self._lose)

    def _lose(self) -> None:
        level = logging.WARNING if self._inboxes else logging.INFO  # one that was told to stop closes its side too
        logger.log(level, "replica_lost", extra={"replica": self.id, "requests": len(self._inboxes)})
        if self._sender is not None:
            self._sender.close()
            self._sender = None
        self._rests_until = time.monotonic() + REST_SECONDS
        self._others_load = 0
        if self._inboxes or self._warms:
            # Only the connection may have broken. Their CANCELs have no way now, and the engine would work for nobody until the next call.
            self._greeting = asyncio.get_running_loop().call_later(REST_SECONDS, self._greet)
        self._fail()

    def _greet(self) -> None:
        """Connect again, if nothing else has: the connection's GREETING has a replica that lives let go of what was asked before."""
        self._greeting = None
        self._reached()
        if self._leaves and not self._busy:
            self.close()

    def _fail(self) -> None:
        inboxes = {**self._inboxes, **self._warms}
        self._inboxes, self._warms = {}, {}
        for stream_id, inbox in inboxes.items():
            self.cancel(stream_id)
            inbox.fail(gone())
        if self._leaves and not self._busy:
            self.close()


def gone() -> ReplicaGone:
    return ReplicaGone("the model's replica stopped while it was answering: send the request again", retry_after_seconds=1.0)
