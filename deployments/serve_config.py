"""Settings to Serve's own configuration, for a cluster that an operator keeps by a file: KubeRay's RayService, or `serve deploy`.

What replicas and gateways are built from is under `args`: where that changes, Serve restarts them. What changes in place is under
`deployments`: bounds of replicas, requests at once, and which models the gateways serve.
"""

from __future__ import annotations

from typing import Any

from configs.settings import ModelSettings, Settings, SharedSettings
from deployments.autoscaling import POLICY
from deployments.identity import gateway_arguments, replica_arguments
from deployments.names import GATEWAY, GATEWAY_APP, REPLICA, app_of

# How often gateways and replicas tell Serve their load. With Serve's 10 s a request for a sleeping model waits as long until Serve has
# heard of it: what a gateway's handle pushes at once is the history that it recorded before the request came.
_REPORT_SECONDS = 2.0


def serve_config(settings: Settings) -> dict[str, Any]:
    """What Serve's schema ServeDeploySchema takes."""
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": settings.gateway.host, "port": settings.gateway.port},
        "applications": [*(_model(settings, model) for model in settings.models), _gateway(settings)],
    }


def _model(settings: Settings, model: ModelSettings) -> dict[str, Any]:
    scaling = model.autoscaling
    return {
        "name": app_of(model.id),
        "import_path": "deployments.builders:model",
        "route_prefix": None,
        "args": _plain(replica_arguments(settings, model)),
        "deployments": [
            {
                "name": REPLICA,
                "max_ongoing_requests": model.max_requests_at_once,
                "max_surge_percent": scaling.surge_percent,
                "autoscaling_config": autoscaling_options(model),
            }
        ],
    }


def autoscaling_options(model: ModelSettings) -> dict[str, Any]:
    """A model's autoscaling in Serve's words."""
    scaling = model.autoscaling
    return {
        "min_replicas": scaling.min_replicas,
        "max_replicas": scaling.max_replicas,
        "target_ongoing_requests": scaling.target_requests,
        "upscale_delay_s": scaling.up_delay_seconds,
        "downscale_delay_s": scaling.down_delay_seconds,
        "look_back_period_s": scaling.average_seconds,
        "metrics_interval_s": _REPORT_SECONDS,
        "policy": {"policy_function": POLICY, "policy_kwargs": {"target_kv_cache_use": scaling.target_kv_cache_use}},
    }


def _gateway(settings: Settings) -> dict[str, Any]:
    models = _plain(settings)["models"]
    return {
        "name": GATEWAY_APP,
        "import_path": "deployments.builders:gateway",
        "route_prefix": "/",
        "args": _plain(gateway_arguments(settings)),
        "deployments": [{"name": GATEWAY, "num_replicas": settings.gateway.replicas, "user_config": {"models": models}}],
    }


def _plain(settings: SharedSettings) -> dict[str, Any]:
    """As few words as say it; defaults are the release's."""
    return settings.model_dump(mode="json", exclude_defaults=True)
