"""`ray_cluster.yaml`: a file that Ray's launcher and EC2 take, and whose nodes get the environment that Serve needs."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import botocore.session
import jsonschema
import pytest
import yaml
from botocore.validate import ParamValidator

from configs.load import load
from tests.cluster.nodes import GIB, INSTALLED, held_adapters_bytes, node_environment

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    return read


def options(cluster: dict[str, Any], name: str) -> dict[str, str]:
    """The variables that `docker run` sets by one list of options."""
    words = [word for option in cluster["docker"][name] for word in shlex.split(option)]
    return dict(after.split("=", 1) for word, after in itertools.pairwise(words) if word == "--env")


def test_ray_accepts_the_file(cluster: dict[str, Any]) -> None:
    ray = find_spec("ray")
    assert ray and ray.origin
    jsonschema.validate(cluster, json.loads((Path(ray.origin).parent / "autoscaler" / "ray-schema.json").read_text()))


def test_ec2_knows_every_option_of_every_node(cluster: dict[str, Any]) -> None:
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for name, node in cluster["available_node_types"].items():
        report = ParamValidator().validate({**node["node_config"], "MinCount": 1, "MaxCount": 1}, shape)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"


def test_every_node_starts_from_a_machine_image_of_the_users_choice(cluster: dict[str, Any]) -> None:
    """Without one Ray takes its default, whose driver is too old for the image's CUDA; AMI_ID is refused until it is filled in."""
    images = {node["node_config"].get("ImageId") for node in cluster["available_node_types"].values()}
    assert images == {"AMI_ID"}


def test_gpu_workers_scale_from_zero_beside_a_cpu_head(cluster: dict[str, Any]) -> None:
    types = dict(cluster["available_node_types"])
    head = types.pop(cluster["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert "--num-cpus=0" in cluster["head_start_ray_commands"][-1]
    assert len(types) == 2
    for worker in types.values():
        assert worker["min_workers"] == 0 < worker["max_workers"]
        assert worker["resources"]["GPU"] > 0


def test_spot_comes_first_and_the_same_machine_on_demand_is_its_fallback(cluster: dict[str, Any]) -> None:
    spot, on_demand = (cluster["available_node_types"][name] for name in ("gpu-spot", "gpu-on-demand"))
    assert spot["priority"] > on_demand["priority"]
    assert spot["resources"] == on_demand["resources"]
    config = dict(spot["node_config"])
    assert config.pop("InstanceMarketOptions") == {"MarketType": "spot"}
    assert config == on_demand["node_config"]


def test_a_replica_of_the_template_fits_on_a_worker(cluster: dict[str, Any]) -> None:
    worker = cluster["available_node_types"]["gpu-spot"]["resources"]
    for model in load(ROOT / "configs" / "production.yaml").models:
        assert model.resources.gpus <= worker["GPU"]
        assert model.resources.cpus <= worker["CPU"]


def test_the_adapters_that_a_replica_holds_leave_half_of_its_nodes_memory(cluster: dict[str, Any]) -> None:
    memory = {"g5.2xlarge": 32 * GIB}  # by AWS's list
    for name in ("gpu-spot", "gpu-on-demand"):
        assert held_adapters_bytes() <= memory[cluster["available_node_types"][name]["node_config"]["InstanceType"]] / 2


def test_every_node_starts_with_the_environment_of_the_deployments(cluster: dict[str, Any]) -> None:
    given = options(cluster, "run_options")
    assert {name: given.get(name) for name in node_environment()} == node_environment()


def test_the_limit_on_open_files_suits_haproxy(cluster: dict[str, Any]) -> None:
    [limit] = [option for option in cluster["docker"]["run_options"] if option.startswith("--ulimit nofile=")]
    assert int(limit.rpartition(":")[2]) > 1000 + 2.5 * int(options(cluster, "run_options")["RAY_SERVE_HAPROXY_MAXCONN"])


def test_the_head_keeps_its_tables_in_redis(cluster: dict[str, Any]) -> None:
    head = options(cluster, "head_run_options")
    assert head["RAY_REDIS_ADDRESS"].startswith("rediss://")
    assert head["RAY_external_storage_namespace"] == cluster["cluster_name"]
    assert "--redis-password=" in cluster["head_start_ray_commands"][-1]
    assert int(options(cluster, "run_options")["RAY_gcs_rpc_server_reconnect_timeout_s"]) > 60


def test_boto3_finds_the_region_on_every_node(cluster: dict[str, Any]) -> None:
    """It reads AWS_DEFAULT_REGION, and not AWS_REGION."""
    region = cluster["provider"]["region"]
    given = options(cluster, "run_options")
    assert given["AWS_DEFAULT_REGION"] == given["AWS_REGION"] == region
    assert f"region_name='{region}'" in cluster["head_start_ray_commands"][-1]
    assert f"--region {region} " in cluster["initialization_commands"][-1]


@pytest.mark.parametrize(
    ("python", "started"), [("echo secret", "secret"), ("true", ""), ("echo secret; exit 1", "")], ids=["found", "empty", "failed"]
)
def test_the_head_starts_with_the_password_of_its_redis_or_not_at_all(
    cluster: dict[str, Any], tmp_path: Path, python: str, started: str
) -> None:
    """With an empty one Redis refuses it, minutes later and in a log."""
    for name, script in {"python": python, "ray": f'echo "$RAY_REDIS_PASSWORD $*" > {tmp_path}/started'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    command = cluster["head_start_ray_commands"][-1]
    done = subprocess.run(["/bin/bash", "-c", command], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=False)
    assert (done.returncode == 0) == bool(started)
    if started:
        assert (tmp_path / "started").read_text().startswith(f"{started} start --head")
        assert f"--redis-password={started} " in (tmp_path / "started").read_text()
    else:
        assert not (tmp_path / "started").exists()


def test_nodes_get_credentials_from_their_role_alone(cluster: dict[str, Any]) -> None:
    assert not re.search(r"AWS_(ACCESS|SECRET)", (ROOT / "ray_cluster.yaml").read_text())
    assert all("IamInstanceProfile" in node["node_config"] for node in cluster["available_node_types"].values())


def test_ray_is_started_as_the_image_has_it(cluster: dict[str, Any]) -> None:
    """The image brings everything: no set-up, Ray's own included, and paths are the image's."""
    assert cluster["setup_commands"] == cluster["head_setup_commands"] == cluster["worker_setup_commands"] == []
    assert options(cluster, "run_options")["RAY_SERVE_HAPROXY_BINARY_PATH"] == f"{INSTALLED}/bin/lorikeet-haproxy"


def test_every_local_file_it_mounts_is_there(cluster: dict[str, Any]) -> None:
    for local in cluster["file_mounts"].values():
        assert (ROOT / local).exists()


@pytest.mark.parametrize("commands", ["initialization_commands", "head_start_ray_commands", "worker_start_ray_commands"])
def test_its_commands_are_whole_shell(cluster: dict[str, Any], commands: str) -> None:
    for command in cluster[commands]:
        assert shlex.split(command)
