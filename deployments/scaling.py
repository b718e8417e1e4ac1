"""How many replicas a base model should have, from what its engines feel. Pure; `autoscaling.py` is Serve's way to it.

Two things fill an engine up, and the one that needs more replicas decides:

- **Requests**, wherever they run or wait, over how many one replica should have.
- **The KV cache**: long chats fill it with few requests. What waits in an engine will need as much as what runs there does, so an engine
  whose cache is full asks for more than one that is as full and has nothing waiting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """One replica's engine: requests that run, requests that wait in it, and the part of its KV cache in use (0 to 1)."""

    running: float
    waiting: float = 0.0
    kv_cache_use: float = 0.0


@dataclass(frozen=True, slots=True)
class Targets:
    """What one replica should have: `requests` in all, and `kv_cache_use` of its cache."""

    requests: float
    kv_cache_use: float


def wanted_replicas(requests: float, engines: Sequence[EngineLoad], targets: Targets) -> float:
    """How many replicas would be at their targets, not rounded; 0 when there is nothing to do.

    `requests` are all of the model's, with those that no engine has yet: an adapter is on its way, or no replica has room.
    """
    cache = sum(map(_cache_demand, engines))
    return max(requests / targets.requests, cache / targets.kv_cache_use)


def _cache_demand(engine: EngineLoad) -> float:
    """In caches: what runs takes, and what waits will."""
    waiting = engine.waiting / engine.running if engine.running else 0.0  # nothing runs: it has just come, and tells nothing yet
    return engine.kv_cache_use * (1.0 + waiting)
