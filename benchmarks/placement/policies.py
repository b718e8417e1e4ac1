"""The ways to choose a replica, each in a gateway of its own, all before the same replicas.

bounded_load        the product's: `deployments/placement.py`, and calls straight to the replica
serve_multiplexed   Serve's: calls name their adapter (`multiplexed_model_id`), replicas report which they hold, and its default router
                    (power of two choices among those that hold it, else among those that hold fewest) chooses
random              chance, and calls straight to the replica
home_alone          each adapter's first choice, however busy, for the part `hot`

A gateway's process runs one policy, which the environment names; the router that Serve makes there looks at it. So nothing in the product
knows of policies.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import Any

from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter
from ray.serve.request_router import RequestRouter

from benchmarks.placement.settings import HOME, OURS, RANDOM, SERVE
from deployments.fleet import Place
from deployments.placement import placed, ranking
from deployments.router import PlacementRouter

POLICY = "LORIKEET_BENCH_PLACEMENT"


def by_chance(key: bytes, replicas: Sequence[str], loads: Sequence[int], same: Sequence[int]) -> Sequence[int]:
    return random.sample(range(len(replicas)), len(replicas))


def at_home(key: bytes, replicas: Sequence[str], loads: Sequence[int], same: Sequence[int]) -> Sequence[int]:
    return ranking(key, replicas)


PLACES: dict[str, Place] = {OURS: placed, SERVE: placed, RANDOM: by_chance, HOME: at_home}


class RouterOfPolicy:
    """What the deployment names as its router: becomes, in each process, Serve's own where its policy is Serve's.

    A gateway whose router is not ours does not learn where to call replicas straight, and so makes every call through Serve.
    """

    def __new__(cls, *args: Any, **options: Any) -> RequestRouter:  # type: ignore[misc]  # that is the point of it
        router = PowerOfTwoChoicesRequestRouter if os.environ.get(POLICY) == SERVE else PlacementRouter
        return router(*args, **options)


class MultiplexedHandle:
    """A Serve handle whose calls name their adapter, as an application that uses Serve's multiplexing writes them."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    @property
    def chat(self) -> Any:
        return self

    def remote(self, call: Any) -> Any:
        model = call.adapter.exact_name if call.adapter else ""
        return self._handle.options(multiplexed_model_id=model).chat.remote(call)
