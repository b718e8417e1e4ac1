"""A cluster that grows and shrinks, on one machine: a head without room for models, and Ray's own autoscaler over nodes that are processes.

    `ray start --head`: GCS, raylet, autoscaler ──▶ `lorikeet up` joins: Serve's controller, HAProxy and two gateways, all on the head
    a replica waits for a GPU ──▶ the autoscaler starts a node: a raylet that says it has one ──▶ replica and engine, on the CPU in truth

The nodes are started by Ray's provider `fake_multinode`, which is there for this; all else is what runs on AWS. Everything the cluster
starts carries a mark, as the processes of one `lorikeet up` do, so that each part of it can be found, killed and ended.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from adapters_store.base_model import read_profile, save_profile
from cluster.processes import RUN_ID, of_run, stop_run
from configs.load import load
from deployments.engine.environment import cpu_environment
from deployments.environment import environment as environment_of
from tests.s3 import free_port
from tests.serving import serving_environment
from tests.system.stack import KEY, TINY, Stack, running_up
from tests.tiny import make_tiny_llama

START_SECONDS = 90.0
GATEWAYS = 2
IDLE_SECONDS = 3.0  # of a node without a replica, before the autoscaler takes it away
LOST_SECONDS = 10  # without a sign of life, before the autoscaler gives a node up
MAX_RANK = 8
CONTEXT = 1024
_OBJECT_STORE_BYTES = 100 << 20
_NODE_TYPE = "gpu-worker"


@dataclass(frozen=True, slots=True)
class Elastic:
    """The running cluster. Its parts are processes; who they are changes when something is killed, and when it grows and shrinks."""

    stack: Stack
    mark: str

    def nodes(self) -> list[psutil.Process]:
        """The raylets of the nodes that the autoscaler has started."""
        return [process for process in self._processes("raylet") if _variable(process, "RAY_NODE_TYPE_NAME") == _NODE_TYPE]

    def replicas(self) -> list[psutil.Process]:
        return self._processes(f"ray::ServeReplica:model-{TINY}:")

    def gateways(self) -> list[psutil.Process]:
        return self._processes("ray::ServeReplica:lorikeet:")

    def controllers(self) -> list[psutil.Process]:
        return self._processes("ray::ServeController")

    def engines(self) -> list[psutil.Process]:
        """vLLM's own processes."""
        return self._processes("VLLM::")

    def _processes(self, title: str) -> list[psutil.Process]:
        return [process for process in of_run(self.mark) if _title(process).startswith(title)]


def until(condition: Callable[[], bool], what: str, seconds: float) -> float:
    """Wait until `condition` holds; how long that took. Fails after `seconds`."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"not after {seconds:g} s: {what}"
        time.sleep(0.1)
    return time.monotonic() - began


@contextlib.contextmanager
def running_elastic(home: Path, model_home: Path) -> Iterator[Elastic]:
    """Start the cluster, and lorikeet on it; stop both, and check that nothing is left. No node has been started by then."""
    stack = Stack(home, f"http://127.0.0.1:{free_port()}", f"file://{home}/store", {})
    make_tiny_llama(stack.tiny_folder, model_home)
    ray_port = free_port()
    config = home / "config.yaml"
    config.write_text(yaml.safe_dump(_settings(stack, ray_port)))
    save_profile(stack.store(), read_profile(stack.tiny_folder, id=TINY, names=(TINY,), max_rank=MAX_RANK, adaptable=None))
    mark = secrets.token_hex(8)
    access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    ray = {**_node_environment(config), **access, RUN_ID: mark}
    up = {**os.environ, **serving_environment(), **access, "LORIKEET_HOME": str(home), "LORIKEET_API_KEY": KEY}
    with _running_ray(home, ray_port, ray), running_up(home, config, up):
        yield Elastic(stack, mark)


def _settings(stack: Stack, ray_port: int) -> dict[str, Any]:
    """One tiny model that sleeps as soon as it may. Its replica asks for a GPU, which no head has; what it finds is a CPU."""
    engine = {"dtype": "float32", "max_model_len": CONTEXT, "enforce_eager": True, "max_num_seqs": 64, "num_gpu_blocks_override": 4096}
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        **cpu_environment(1),  # as for a replica that says it is on the CPU
        "TORCH_COMPILE_DISABLE": "1",
    }
    model = {
        "id": TINY,
        "source": str(stack.tiny_folder),
        "engine": engine,
        "lora": {"max_loras": 2, "max_cpu_loras": 4, "max_rank": MAX_RANK},
        "environment": environment,
        "resources": {"gpus": 1, "cpus": 1},
        "autoscaling": {"min_replicas": 0, "down_delay_seconds": 0.0, "average_seconds": 3.0},
    }
    return {
        "store": {"url": stack.store_url},
        "gateway": {"port": int(stack.url.rpartition(":")[2]), "replicas": GATEWAYS},
        "ray": {"address": f"127.0.0.1:{ray_port}"},
        "models": [model],
    }


def _node_environment(config: Path) -> Mapping[str, str]:
    """Of the head, and so of the nodes that it starts: what Lorikeet says for all nodes of a cluster, and a quick autoscaler."""
    return {
        **os.environ,
        **serving_environment(),
        **environment_of(load(config, ())),
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "AUTOSCALER_HEARTBEAT_TIMEOUT_S": str(LOST_SECONDS),
    }


@contextlib.contextmanager
def _running_ray(home: Path, port: int, environment: Mapping[str, str]) -> Iterator[None]:
    """A head with the autoscaler, and in the end none of it nor of its nodes. Its logs are in home afterwards."""
    autoscaling = home / "autoscaling.yaml"
    autoscaling.write_text(yaml.safe_dump(_autoscaling(port)))
    folder = Path(tempfile.mkdtemp(prefix="lk-ray-"))  # not in home: the path of a unix socket is short
    command = [
        *(str(Path(sys.executable).with_name("ray")), "start", "--head", f"--port={port}", f"--ray-client-server-port={free_port()}"),
        *("--num-cpus=0", f"--object-store-memory={_OBJECT_STORE_BYTES}", "--dashboard-agent-listen-port=0", f"--temp-dir={folder}"),
        *("--include-dashboard=false", "--disable-usage-stats", f"--autoscaling-config={autoscaling}"),
    ]
    try:
        with (home / "ray_start.log").open("wb") as log:
            subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, timeout=START_SECONDS, check=True)
        yield
    finally:
        stop_run(environment[RUN_ID])
        shutil.move(folder, home / "ray")
    left = of_run(environment[RUN_ID])
    assert not left, f"the cluster left processes behind: {left}"


def _autoscaling(port: int) -> dict[str, Any]:
    """What `ray up` reads and completes, as the head has it. Ray's wheel leaves out its own example for this provider."""
    commands = (
        *("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"),
        *("head_start_ray_commands", "worker_start_ray_commands"),
    )
    worker = {"CPU": 1, "GPU": 1, "object_store_memory": _OBJECT_STORE_BYTES}
    return {
        "cluster_name": "elastic",
        "max_workers": 2,  # one more than the model takes: a node that was killed is counted until it is given up
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": IDLE_SECONDS / 60,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": f"127.0.0.1:{port}",
            "use_node_id_as_ip": True,  # all nodes have one address
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "auth": {"ssh_user": "nobody"},
        "head_node_type": "ray.head.default",  # the provider's name for it
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            _NODE_TYPE: {"resources": worker, "node_config": {}, "min_workers": 0, "max_workers": 2},
        },
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "cluster_synced_files": [],
        "rsync_exclude": [],
        "rsync_filter": [],
        **{command: [] for command in commands},
    }


def _title(process: psutil.Process) -> str:
    """How a process calls itself; a raylet by its program's name."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return ""
    return "raylet" if words and words[0].endswith("/raylet") else " ".join(words)


def _variable(process: psutil.Process, name: str) -> str | None:
    try:
        return process.environ().get(name)
    except psutil.Error:
        return None
