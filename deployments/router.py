"""Serve's request router for replicas: placement.py's order, taken at once where it can be.

Serve routes each request through a queue and a task of its own, and asks replicas for their load when it has not heard of it for a while:
in a burst that is most of what a first token waits for. Here a request whose preferred replica has room gets it in the same step; the
replica may still refuse what is too much (Serve's rejection protocol), and then Serve's own queue takes over.

It is also how a gateway hears which replicas run and where they take calls beside Serve (`fleet.py`): most requests never come here.
"""

from __future__ import annotations

from typing import Any

from ray.serve._private.common import ReplicaID
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from deployments.calls import ReplicaAddress
from deployments.messages import ChatCall
from deployments.placement import placed


class PlacementRouter(RequestRouter):
    """Affinity by adapter, by prompt for base models; bounded by load. `addresses` are those of the replicas that run."""

    addresses: tuple[ReplicaAddress, ...] = ()

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        self._note()

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        self._note()

    def _note(self) -> None:
        self._ids = [replica.replica_id.unique_id for replica in self._replicas_list]
        found = (ReplicaAddress.of(r.replica_id.unique_id, r.replica_metadata, r.max_ongoing_requests) for r in self._replicas_list)
        self.addresses = tuple(address for address in found if address is not None)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Each replica a rank of its own, the preferred one first."""
        return [[replica] for replica in self._order(pending_request)]

    async def _choose_replica_for_request(self, pending_request: PendingRequest, *, is_retry: bool = False) -> RunningReplica:
        # Whoever waits in Serve's queue goes first.
        if not is_retry and self._replicas_list and not self._pending_requests_by_id:
            for replica in self._order(pending_request):
                if self._load(replica) < replica.max_ongoing_requests:
                    return replica
        return await super()._choose_replica_for_request(pending_request, is_retry=is_retry)

    def _order(self, request: PendingRequest | None) -> list[RunningReplica]:
        replicas = self._replicas_list
        if len(replicas) < 2:
            return list(replicas)
        order = placed(_key(request), self._ids, [self._load(replica) for replica in replicas])
        return [replicas[index] for index in order]

    def _load(self, replica: RunningReplica) -> int:
        """Requests on `replica` as this gateway last heard; 0 when it has not heard for long, since then it has sent none either."""
        load: int = self._replica_queue_len_cache.get(replica.replica_id) or 0
        return load


def addresses_of(handle: DeploymentHandle[Any]) -> tuple[ReplicaAddress, ...]:
    """The replicas that a handle's router knows to run; none while it knows none, as when the model is asleep.

    Serve has no public way from a handle to its router.
    """
    router = getattr(getattr(handle._router, "_asyncio_router", None), "_request_router", None)
    return router.addresses if isinstance(router, PlacementRouter) else ()


def start_watching(handle: DeploymentHandle[Any]) -> None:
    """Have a handle's router hear of replicas from now on; otherwise it begins with the first call. On Serve's loop."""
    if not handle.is_initialized:
        handle._init()  # type: ignore[no-untyped-call]


def _key(request: PendingRequest | None) -> bytes:
    call: Any = request.args[0] if request is not None and request.args else None
    return call.placement_key if isinstance(call, ChatCall) else b""
