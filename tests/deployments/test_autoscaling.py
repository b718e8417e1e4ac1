"""Serve's autoscaler with our policy: what replicas report becomes what Serve decides."""

from __future__ import annotations

from typing import Any

import pytest
from ray.serve._private.autoscaling_state import _resolve_policy_callable
from ray.serve.autoscaling_policy import _apply_autoscaling_config
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from configs.settings import AutoscalingSettings, ModelSettings
from deployments.autoscaling import stats
from deployments.scaling import EngineLoad
from deployments.serve_config import autoscaling_options

QUICK = {"max_replicas": 8, "up_delay_seconds": 0.0, "down_delay_seconds": 0.0}


def decided(*replicas: tuple[int, EngineLoad], queued: float = 0.0, state: dict[str, Any] | None = None, **settings: Any) -> int:
    """What Serve decides when these replicas report their requests and their engines' load."""
    model = ModelSettings(id="m", source="/m", autoscaling=AutoscalingSettings(**{**QUICK, **settings}))
    config = AutoscalingConfig(**autoscaling_options(model))
    policy = _apply_autoscaling_config(_resolve_policy_callable(config.policy))
    reports = [stats(requests, engine) for requests, engine in replicas]
    context = AutoscalingContext(
        deployment_id=None,  # type: ignore[arg-type]
        deployment_name="Replica",
        app_name="model-m",
        current_num_replicas=len(replicas),
        target_num_replicas=len(replicas),
        running_replicas=[],
        total_num_requests=queued + sum(requests for requests, _ in replicas),
        total_queued_requests=queued,
        aggregated_metrics={name: {index: report[name] for index, report in enumerate(reports)} for name in stats(0, EngineLoad(0))},  # type: ignore[misc]
        raw_metrics={},
        capacity_adjusted_min_replicas=config.min_replicas,
        capacity_adjusted_max_replicas=config.max_replicas,
        policy_state={} if state is None else state,
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=1000.0,
        config=config,
    )
    return policy(context)[0]


def test_requests_decide_where_the_cache_is_cool() -> None:
    assert decided((65, EngineLoad(32, 33, 0.1))) == 3


def test_a_full_cache_decides_where_requests_are_few() -> None:
    assert decided((12, EngineLoad(4, 8, 1.0))) == 4
    assert decided((12, EngineLoad(4, 8, 1.0)), target_kv_cache_use=1.0) == 3


def test_an_idle_model_sleeps_where_it_may() -> None:
    assert decided((0, EngineLoad(0)), min_replicas=0) == 0


def test_a_sleeping_model_wakes_for_one_request() -> None:
    assert decided(queued=1, min_replicas=0) == 1


@pytest.mark.parametrize("setting", ["up_delay_seconds", "down_delay_seconds"])
def test_each_direction_has_a_delay_of_its_own(setting: str) -> None:
    more, fewer = (65, EngineLoad(32, 33, 0.1)), (0, EngineLoad(0))
    up, down = decided(more, **{setting: 60.0}), decided(fewer, fewer, min_replicas=1, **{setting: 60.0})
    assert (up, down) == ((1, 1) if setting == "up_delay_seconds" else (3, 2))


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("seconds", [3.0, 30.0])
def test_load_is_averaged_over_the_models_own_time_and_told_more_often(seconds: float) -> None:
    """Serve warns of an average over less than one report."""
    model = ModelSettings(id="m", source="/m", autoscaling=AutoscalingSettings(average_seconds=seconds))
    config = AutoscalingConfig(**autoscaling_options(model))
    assert config.metrics_interval_s < config.look_back_period_s == seconds
