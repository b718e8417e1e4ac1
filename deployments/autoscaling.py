"""Serve's autoscaler asks here how many replicas a base model wants (`scaling.py`); bounds and delays it keeps itself.

    engine ── load (engine/load.py) ──▶ replica ── record_autoscaling_stats ──▶ Serve's controller: EnginePolicy ──▶ replicas

Serve averages what replicas report over `average_seconds`, so that a burst is no trend.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.serve._private.common import RUNNING_REQUESTS_KEY  # the name under which Serve counts a replica's requests
from ray.serve.config import AutoscalingContext

from deployments.scaling import EngineLoad, Targets, wanted_replicas

POLICY = "deployments.autoscaling:EnginePolicy"  # by name: Serve's controller imports it
_RUNNING, _WAITING, _KV_CACHE_USE = "engine_running", "engine_waiting", "engine_kv_cache_use"


def stats(requests: int, engine: EngineLoad) -> dict[str, float]:
    """What a replica reports: `requests` are all that it holds."""
    return {RUNNING_REQUESTS_KEY: requests, _RUNNING: engine.running, _WAITING: engine.waiting, _KV_CACHE_USE: engine.kv_cache_use}


class EnginePolicy:
    """Serve makes one for each base model, from the settings (`serve_config.autoscaling_options`)."""

    def __init__(self, target_kv_cache_use: float) -> None:
        self._target_kv_cache_use = target_kv_cache_use

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        if context.current_num_replicas == 0:
            return context.target_num_replicas, {}  # Serve starts the first one itself, as soon as a request waits
        assert context.config is not None
        targets = Targets(context.config.get_target_ongoing_requests(), self._target_kv_cache_use)
        return wanted_replicas(context.total_num_requests, _engines(context.aggregated_metrics or {}), targets), {}


def _engines(reported: Mapping[str, Mapping[Any, float]]) -> list[EngineLoad]:
    """One for each replica that has reported, whatever it is called."""
    running, waiting, use = (reported.get(name, {}) for name in (_RUNNING, _WAITING, _KV_CACHE_USE))
    return [EngineLoad(running[replica], waiting.get(replica, 0.0), use.get(replica, 0.0)) for replica in running]
