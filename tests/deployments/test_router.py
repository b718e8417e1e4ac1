"""The router inside Serve's own machinery: real `RequestRouter`, replicas that only say how loaded they are."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass, field

import pytest
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID, RequestMetadata
from ray.serve._private.request_router.common import PendingRequest

from adapters_store.adapter import Adapter
from deployments.messages import ChatCall
from deployments.placement import BATCH
from deployments.router import PlacementRouter

DEPLOYMENT = DeploymentID(name="Replica", app_name="model-tiny")
MOST = 64


@dataclass
class Loaded:
    """A replica as the router sees it."""

    replica_id: ReplicaID
    load: int = 0
    max_ongoing_requests: int = MOST
    is_cross_language: bool = False
    multiplexed_model_ids: set[str] = field(default_factory=set)
    replica_metadata: dict[str, str] = field(default_factory=dict)

    async def get_queue_len(self, *, deadline_s: float) -> int:
        return self.load


def replicas(count: int) -> list[Loaded]:
    return [Loaded(ReplicaID(unique_id=f"r{number}", deployment_id=DEPLOYMENT)) for number in range(count)]


async def router_of(known: list[Loaded]) -> PlacementRouter:
    """A router as a gateway's handle has it, once it has heard of the replicas and their load."""
    router = PlacementRouter(DEPLOYMENT, DeploymentHandleSource.REPLICA, use_replica_queue_len_cache=True)
    router.initialize_state()
    router.update_replicas(known)  # type: ignore[arg-type]
    async with asyncio.timeout(5.0):
        while any(router.replica_queue_len_cache.get(replica.replica_id) is None for replica in known):  # noqa: ASYNC110  (it asks each by itself)
            await asyncio.sleep(0)
    return router


def request(number: int, adapter: str | None, said: str = "hi") -> PendingRequest:
    version = Adapter("acme", adapter, "5" * 64, "tiny", 8, (), 0.0, "test") if adapter else None
    body = json.dumps({"messages": [{"role": "user", "content": said}]}).encode()
    call = ChatCall(str(number), b"0" * 16, "", adapter or "tiny", version, body, stream=True)
    return PendingRequest(args=[call], kwargs={}, metadata=RequestMetadata(request_id=str(number), internal_request_id=f"i{number}"))


async def placed(router: PlacementRouter, asked: PendingRequest) -> str:
    """The replica that a request gets, which then runs there."""
    replica = await asyncio.wait_for(router._choose_replica_for_request(asked), 5.0)
    router.on_send_request(replica.replica_id)
    return str(replica.replica_id.unique_id)


async def test_an_adapter_stays_on_one_replica_and_gateways_agree_on_it() -> None:
    first, second = await router_of(replicas(4)), await router_of(replicas(4)[::-1])
    homes = {}
    for number in range(40):
        name = f"a{number % 10}"
        home = await placed(first, request(number, name))
        assert homes.setdefault(name, home) == home
        first.decrement_queue_len_cache(ReplicaID(unique_id=home, deployment_id=DEPLOYMENT))
        assert await placed(await router_of(replicas(4)), request(number, name)) == home
    assert len(set(homes.values())) > 1
    assert [await placed(second, request(99, name)) for name in homes] == list(homes.values())


async def test_a_hot_adapter_spreads_over_all_replicas() -> None:
    router = await router_of(replicas(4))
    got = Counter([await placed(router, request(number, "hot")) for number in range(4 * MOST // 2)])
    assert len(got) == 4 and max(got.values()) <= max(BATCH, 1.25 * MOST / 2 + 1)


async def test_base_requests_with_one_beginning_share_a_replica_and_others_spread() -> None:
    router = await router_of(replicas(4))
    shared = "You are a careful assistant. " * 40
    assert len({await placed(router, request(number, None, f"{shared} {number}")) for number in range(BATCH)}) == 1
    assert len({await placed(router, request(number, None, f"{number} {shared}")) for number in range(20, 60)}) == 4


async def test_a_full_replica_is_passed_by() -> None:
    known = replicas(2)
    router = await router_of(known)
    home = await placed(router, request(0, "a"))
    full = next(replica for replica in known if replica.replica_id.unique_id == home)
    full.load = MOST
    router.on_new_queue_len_info(full.replica_id, MOST)
    assert await placed(router, request(1, "a")) != home


async def test_when_all_are_full_a_request_waits_for_the_first_room() -> None:
    known = replicas(2)
    for replica in known:
        replica.load = MOST
    router = await router_of(known)
    waiting = asyncio.create_task(placed(router, request(0, "a")))
    late = asyncio.create_task(placed(router, request(1, "a")))
    await asyncio.sleep(0.1)
    assert not waiting.done() and not late.done()
    known[1].load = 0
    assert await asyncio.wait_for(asyncio.gather(waiting, late), 10.0) == ["r1", "r1"]


async def test_without_replicas_a_request_waits_until_one_comes() -> None:
    router = await router_of([])
    waiting = asyncio.create_task(placed(router, request(0, "a")))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(waiting), 0.1)
    router.update_replicas(replicas(1))  # type: ignore[arg-type]
    assert await asyncio.wait_for(waiting, 10.0) == "r0"
