"""Settings to Serve applications: the only wiring. One application per base model, one for the gateway.

environment(settings) before Ray starts ──▶ deploy(settings, …) ──▶ wait_ready(…) ──▶ … ──▶ shutdown()

What changes on the running cluster goes through `rollout.py`, with the same targets; what an operator keeps by a file, `serve_config.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from ray import cloudpickle, serve
from ray._common.constants import HEAD_NODE_RESOURCE_NAME  # Serve's controller is placed by it; there is no public name
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, HTTPOptions, ProxyLocation, RequestRouterConfig
from ray.serve.schema import LoggingConfig

from configs.load import home as home_of
from configs.load import store_url
from configs.settings import ModelSettings, Settings, SharedSettings
from deployments import record
from deployments.engine.environment import cpu_environment, engine_environment
from deployments.gateway import Gateway
from deployments.identity import gateway_arguments, replica_arguments, version_of
from deployments.names import GATEWAY, GATEWAY_APP, REPLICA, app_of
from deployments.readiness import model_states
from deployments.record import Deployed
from deployments.replica import Replica
from deployments.router import PlacementRouter
from deployments.serve_config import autoscaling_options

_POLL_SECONDS = 0.25


def deploy(settings: Settings, home: Path) -> None:
    """Start Serve and every application on the connected Ray cluster; returns without waiting for models."""
    settings = settings.model_copy(update={"home": str(home)})
    serve.start(
        proxy_location=ProxyLocation.HeadOnly,
        http_options=HTTPOptions(host=settings.gateway.host, port=settings.gateway.port),
    )
    record.write(Deployed.whole(settings))
    run([*(model_target(settings, model) for model in settings.models), gateway_target(settings)])


def run(targets: list[serve.RunTarget]) -> None:
    """Have Serve make the applications as the targets say. An application that is so already stays as it is."""
    serve.run_many(targets, wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def model_target(settings: Settings, model: ModelSettings) -> serve.RunTarget:
    """A base model's application. Its replicas are replaced only where what they are built from has changed."""
    arguments = replica_arguments(settings, model)
    deployment = _versioned(_replica_deployment(settings, model), version_of(arguments))
    bound = deployment.bind(settings=settings, model_id=model.id, home=str(home_of(settings)), store_url=store_url(settings))
    return serve.RunTarget(bound, name=app_of(model.id), route_prefix=None)


def gateway_target(settings: Settings) -> serve.RunTarget:
    """The gateways' application; which models they serve is in the record."""
    arguments = gateway_arguments(settings)
    deployment = _versioned(_gateway_deployment(settings), version_of(arguments))
    bound = deployment.bind(settings=arguments, home=str(home_of(settings)), store_url=store_url(settings))
    return serve.RunTarget(bound, name=GATEWAY_APP, route_prefix="/")


def replica_application(arguments: Settings) -> Application:
    """A base model's application, for `builders.py`: of the one model of `arguments`."""
    [model] = arguments.models
    return _replica_deployment(arguments, model).bind(
        settings=arguments, model_id=model.id, home=str(home_of(arguments)), store_url=store_url(arguments)
    )


def gateway_application(arguments: SharedSettings) -> Application:
    """The gateways' application, for `builders.py`: Serve tells them their models."""
    return _gateway_deployment(arguments).bind(
        settings=arguments, home=str(home_of(arguments)), store_url=store_url(arguments), watch=False
    )


def wait_ready(settings: Settings, progress: Callable[[str], None], timeout_seconds: float) -> None:
    """Wait until every base model and the gateway would answer. Raises RuntimeError saying what failed or is still missing."""
    deadline = time.monotonic() + timeout_seconds
    ids = [model.id for model in settings.models]
    shown: dict[str, str] = {}
    while True:
        states = {**model_states(ids), "gateway": _gateway_state()}
        for name, state in states.items():
            if shown.get(name) != state:
                progress(f"{name}: {state}")
        shown = states
        failed = [name for name, state in states.items() if state == "failed"]
        if failed:
            raise RuntimeError(failure_of(failed[0]))
        if all(state in ("ready", "asleep") for state in states.values()):
            return
        if time.monotonic() > deadline:
            missing = ", ".join(f"{name} is {state}" for name, state in states.items() if state not in ("ready", "asleep"))
            raise RuntimeError(f"not ready after {timeout_seconds:.0f} s: {missing}")
        time.sleep(_POLL_SECONDS)


def shutdown() -> None:
    """Stop the applications and Serve, HAProxy included."""
    serve.shutdown()  # type: ignore[no-untyped-call]


def _versioned(deployment: serve.Deployment, version: str) -> serve.Deployment:
    """Serve takes every deployment from code for a new one, and restarts it, unless it carries the version that runs."""
    return deployment.options(version=version, _internal=True)


def _gateway_deployment(settings: SharedSettings) -> serve.Deployment:
    return cast(serve.Deployment, serve.deployment(Gateway)).options(
        name=GATEWAY,
        num_replicas=settings.gateway.replicas,
        max_ongoing_requests=settings.gateway.max_requests_at_once + 256,  # beyond its chats: health, lists, uploads
        # On the head: an idle worker node is taken away, and Ray calls a node idle on which nothing asks for resources. The empty
        # environment keeps out that of the job which deploys: with another job's, Serve would restart the gateways.
        ray_actor_options={"num_cpus": 0, "resources": {HEAD_NODE_RESOURCE_NAME: 0.001}, "runtime_env": {}},
        logging_config=_quiet(),
        **_draining(settings),
    )


def _quiet() -> LoggingConfig:
    """Serve's own line for each request on both sides of its call tells nothing that ours (`api/context.py`) does not."""
    return LoggingConfig(log_level="WARNING", enable_access_log=False)


def _draining(settings: SharedSettings) -> dict[str, Any]:
    """A replica that is taken away finishes what it runs, however long a request may take."""
    return {
        "graceful_shutdown_timeout_s": settings.gateway.request_timeout_seconds,
        "graceful_shutdown_wait_loop_s": 0.2,
        "health_check_period_s": 5.0,
    }


def _replica_deployment(settings: SharedSettings, model: ModelSettings) -> serve.Deployment:
    scaling = model.autoscaling
    options: dict[str, Any] = {
        "name": REPLICA,
        "max_ongoing_requests": model.max_requests_at_once,
        "logging_config": _quiet(),
        "request_router_config": _routing(),
        **_draining(settings),
        "max_surge_percent": scaling.surge_percent,
        "autoscaling_config": AutoscalingConfig(**autoscaling_options(model)),
        **_resources(model),
    }
    return cast(serve.Deployment, serve.deployment(Replica)).options(**options)


def _routing() -> RequestRouterConfig:
    """Serve refuses a router's name for the first deployment of an application, since HAProxy would pass it by. No HTTP comes to ours."""
    config = RequestRouterConfig()
    config.set_serialized_request_router_cls(cloudpickle.dumps(PlacementRouter))  # type: ignore[no-untyped-call]
    return config


def _resources(model: ModelSettings) -> dict[str, Any]:
    """What one replica takes of the cluster. Tensor parallelism takes a placement group: one bundle per GPU, on one node."""
    resources = model.resources
    actor: dict[str, Any] = {"num_cpus": resources.cpus, "runtime_env": {"env_vars": _model_environment(model)}}
    if resources.accelerator:
        actor["accelerator_type"] = resources.accelerator
    if resources.tensor_parallel == 1:
        return {"ray_actor_options": {**actor, "num_gpus": resources.gpus}}
    bundles = [{"CPU": resources.cpus, "GPU": 1.0}] + [{"CPU": 1.0, "GPU": 1.0}] * (resources.tensor_parallel - 1)
    return {"ray_actor_options": actor, "placement_group_bundles": bundles, "placement_group_strategy": "STRICT_PACK"}


def _model_environment(model: ModelSettings) -> Mapping[str, str]:
    defaults = engine_environment()
    if not model.resources.gpus:
        defaults |= cpu_environment(max(1, int(model.resources.cpus)))
        if model.engine.get("enforce_eager"):
            # vLLM compiles a few samplers all the same, when a request first needs them: it would wait, and where no C++ compiler is, fail.
            defaults["TORCH_COMPILE_DISABLE"] = "1"
    return {**defaults, **model.environment}


def _gateway_state() -> str:
    application = serve.status().applications.get(GATEWAY_APP)
    if application is None:
        return "absent"
    return {"RUNNING": "ready", "DEPLOY_FAILED": "failed", "UNHEALTHY": "unhealthy"}.get(application.status.value, "starting")


def failure_of(name: str) -> str:
    """Why `name` failed, as Serve's controller tells it: the last line of its message, the rest is in the logs."""
    app = GATEWAY_APP if name == "gateway" else app_of(name)
    application = serve.status().applications.get(app)
    messages = [d.message for d in application.deployments.values() if d.message] if application else []
    lines = [line for line in "\n".join(messages).splitlines() if line.strip()]
    return f"{name} failed to start: {lines[-1].strip() if lines else 'see the logs'}"
