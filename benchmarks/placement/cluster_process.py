"""The cluster's own process: a head and four nodes of Ray, each with a raylet of its own, one replica on each, a gateway for each policy.

    python -m benchmarks.placement.cluster_process CONFIG.json        prints RUNNING when everything answers; Ctrl-C ends it

The nodes are on one machine, so their replicas share its cores and the loopback; what they do not share is Ray's scheduling, their
processes and their disk caches.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
from pathlib import Path
from typing import Any

from cluster import ray_node
from configs.settings import Settings
from deployments.environment import environment

RUNNING = "the cluster is running"


def main(config: dict[str, Any]) -> None:
    settings = Settings.model_validate(config["settings"])
    ray_node.set_environment(secrets.token_hex(8), {**environment(settings), "RAY_SERVE_ENABLE_HA_PROXY": "0"})
    from ray.cluster_utils import Cluster

    quiet = {"include_dashboard": False, "object_store_memory": ray_node.OBJECT_STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **quiet})
    for _ in range(config["nodes"]):
        cluster.add_node(num_cpus=1, object_store_memory=ray_node.OBJECT_STORE_BYTES)
    try:
        _deploy(cluster.address, settings, config["gateways"])
        print(RUNNING, flush=True)
        signal.pause()
    except KeyboardInterrupt:
        os._exit(0)  # leaving Ray in order takes long; whoever started this ends all that it has started, by its mark


def _deploy(address: str, settings: Settings, gateways: list[str]) -> None:
    """The model's application and the gateways: as `deployments.app` makes them, but for their classes and the router."""
    import ray
    from ray import cloudpickle, serve
    from ray.serve.config import ProxyLocation, RequestRouterConfig

    from benchmarks.placement.gateway import PolicyGateway
    from benchmarks.placement.policies import RouterOfPolicy
    from benchmarks.placement.replica import NodeReplica
    from configs.load import home, store_url
    from deployments import app, record
    from deployments.identity import gateway_arguments
    from deployments.names import app_of
    from deployments.record import Deployed

    ray.init(address, log_to_driver=False)
    serve.start(proxy_location=ProxyLocation.Disabled)
    record.write(Deployed.whole(settings))
    [model] = settings.models
    router = RequestRouterConfig()
    router.set_serialized_request_router_cls(cloudpickle.dumps(RouterOfPolicy))  # type: ignore[no-untyped-call]
    common = {"home": str(home(settings)), "store_url": store_url(settings)}
    replica = app._replica_deployment(settings, model).options(func_or_class=NodeReplica, request_router_config=router)
    targets = [serve.RunTarget(replica.bind(settings=settings, model_id=model.id, **common), name=app_of(model.id), route_prefix=None)]
    for policy in gateways:
        gateway = app._gateway_deployment(settings).options(func_or_class=PolicyGateway)
        bound = gateway.bind(settings=gateway_arguments(settings), policy=policy, **common)
        targets.append(serve.RunTarget(bound, name=f"gateway-{policy}", route_prefix=None))
    serve.run_many(targets, wait_for_ingress_deployment_creation=True, wait_for_applications_running=True)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
