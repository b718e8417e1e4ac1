"""`cluster/rayservice.yaml`: what KubeRay's schema takes, with the same meaning as ray_cluster.yaml and the settings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from configs.load import load
from deployments.serve_config import serve_config
from tests.cluster.nodes import GIB, ROOT, held_adapters_bytes, node_environment

MANIFEST = ROOT / "cluster" / "rayservice.yaml"
SCHEMA = Path(__file__).parent / "kuberay" / "rayservice-v1.schema.json"


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load(MANIFEST.read_text())
    return read


def closed(node: Any) -> Any:
    """The schema, refusing fields that it does not name: Kubernetes would drop them."""
    if isinstance(node, list):
        return [closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    extra = {"additionalProperties": False} if isinstance(node.get("properties"), dict) and "additionalProperties" not in node else {}
    return {**{key: closed(value) for key, value in node.items()}, **extra}


def check(manifest: dict[str, Any]) -> None:
    schema = closed(json.loads(SCHEMA.read_text()))
    schema["properties"]["metadata"] = {"type": "object"}
    jsonschema.validate(manifest, schema)


def containers(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    cluster = manifest["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group["template"]["spec"]["containers"][0]


def test_kuberay_accepts_it(manifest: dict[str, Any]) -> None:
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayService")
    check(manifest)


def test_a_misspelt_field_would_be_seen(manifest: dict[str, Any]) -> None:
    wrong = json.loads(json.dumps(manifest))
    wrong["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(jsonschema.ValidationError, match="readynessProbe"):
        check(wrong)


def test_it_serves_what_the_template_of_settings_says(manifest: dict[str, Any]) -> None:
    said = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    assert said == serve_config(load(ROOT / "configs" / "production.yaml", ["store.url=s3://BUCKET/lorikeet"]))
    ServeDeploySchema.model_validate(said)


def test_every_pod_starts_with_the_environment_of_the_deployments(manifest: dict[str, Any]) -> None:
    for container in containers(manifest):
        given = {variable["name"]: variable.get("value") for variable in container["env"]}
        assert {name: given.get(name) for name in node_environment()} == node_environment()


def test_boto3_finds_the_region_in_every_pod(manifest: dict[str, Any]) -> None:
    for container in containers(manifest):
        given = {variable["name"]: variable.get("value") for variable in container["env"]}
        assert given["AWS_DEFAULT_REGION"] == given["AWS_REGION"] != ""


def test_gpu_workers_scale_from_zero_beside_a_head_without_replicas(manifest: dict[str, Any]) -> None:
    cluster = manifest["spec"]["rayClusterConfig"]
    assert cluster["enableInTreeAutoscaling"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    [worker] = cluster["workerGroupSpecs"]
    assert worker["replicas"] == worker["minReplicas"] == 0 < worker["maxReplicas"]
    resources = worker["template"]["spec"]["containers"][0]["resources"]
    for model in load(ROOT / "configs" / "production.yaml").models:
        assert model.resources.gpus <= int(resources["limits"]["nvidia.com/gpu"])
        assert model.resources.cpus <= int(resources["requests"]["cpu"])


def test_no_client_is_sent_to_a_worker(manifest: dict[str, Any]) -> None:
    """Nothing listens there. The Service selects workers too, and the operator's own probe keeps them out of it: they are not ready."""
    assert yaml.safe_load(manifest["spec"]["serveConfigV2"])["proxy_location"] == "HeadOnly"
    for group in manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"]:
        for container in group["template"]["spec"]["containers"]:
            assert "readinessProbe" not in container


def test_the_adapters_that_a_replica_holds_leave_half_of_its_pods_memory(manifest: dict[str, Any]) -> None:
    """For the engine's process, what it reads weights through, and Ray's object store."""
    [worker] = manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    limit = worker["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"]
    assert held_adapters_bytes() <= int(limit.removesuffix("Gi")) * GIB / 2


def test_ray_keeps_its_tables_in_redis_and_the_password_in_a_secret(manifest: dict[str, Any]) -> None:
    redis = manifest["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]
    assert redis["redisAddress"]
    assert set(redis["redisPassword"]["valueFrom"]) == {"secretKeyRef"}
    assert "externalStorageNamespace" not in redis, "each cluster of an upgrade needs its own"


def test_nothing_runs_as_root(manifest: dict[str, Any]) -> None:
    cluster = manifest["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert group["template"]["spec"]["securityContext"]["runAsNonRoot"]


def test_streams_end_before_an_old_cluster_goes(manifest: dict[str, Any]) -> None:
    longest = load(ROOT / "configs" / "production.yaml").gateway.request_timeout_seconds
    assert manifest["spec"]["rayClusterDeletionDelaySeconds"] > longest


def test_both_kinds_of_cluster_run_the_same_image(manifest: dict[str, Any]) -> None:
    image = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())["docker"]["image"]
    assert {container["image"] for container in containers(manifest)} == {image}
