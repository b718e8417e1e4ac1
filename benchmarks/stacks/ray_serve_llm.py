"""ray.serve.llm: with its defaults, and with direct streaming, the fastest that it can be set to.

It takes adapters from S3 only, as `base:adapter`, so an S3 server stands beside it (not counted as its own; it is asked once for each).
Direct streaming answers from the engine's replica behind HAProxy: one model per application, no ingress of one's own, hence no keys.
To choose a replica by adapter its HAProxy must read every body, which costs; so it is measured with the mix that all others get, and
with the base alone, where it need not.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import ray_app
from benchmarks.models import SLOTS, Workload
from benchmarks.processes import ROOT, ProcessTree, running
from benchmarks.stacks.stack import START_TIMEOUT_SECONDS, Stack, engine_environment
from tests.s3 import S3Endpoint, free_port, moto_server

BUCKET = "adapters"

DIRECT_STREAMING = {
    "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",  # as Lorikeet's, on two cores better than its default of 4
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
}
PATIENT = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}  # its 5 s are few for starting on a busy machine
READS_BODIES = {"RAY_SERVE_INGRESS_REQUEST_ROUTER_FORWARD_BODY": "1"}


@contextlib.contextmanager
def start(name: str, workload: Workload, folder: Path, *, direct: bool = False, adapters: bool = True) -> Iterator[Stack]:
    """Run it in `folder` until the block ends."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    config = folder / f"{name}.json"
    config.write_text(json.dumps({"port": port, "llm_config": _llm_config(workload, adapters)}))
    command = [sys.executable, "-m", "benchmarks.ray_app", str(config)]
    with moto_server() as s3, _haproxy_files() as haproxy:
        _fill(s3, workload)
        environment = {**engine_environment(workload), **PATIENT, **s3.environment, **haproxy}
        if direct:
            environment |= DIRECT_STREAMING | (READS_BODIES if adapters else {})
        with running(command, environment, folder / f"{name}.log") as processes:
            _wait_deployed(processes)
            models = [workload.base]
            if adapters:
                models += [f"{workload.base}:{adapter.name}" for adapter in workload.adapters]
            note = "no keys" if adapters else "no keys, the base alone"
            yield Stack(name, url, None, tuple(models), workload, processes, note)


def _llm_config(workload: Workload, adapters: bool) -> dict[str, Any]:
    """What ray.serve.llm takes as LLMConfig. On a CPU it wants its bundle named and no accelerator type."""
    config: dict[str, Any] = {
        "model_loading_config": {"model_id": workload.base, "model_source": str(workload.folder)},
        "engine_kwargs": {**workload.engine, **workload.lora},
        "placement_group_config": {"bundles": [{"CPU": 1}]},
        "deployment_config": {"num_replicas": 1, "max_ongoing_requests": 1000, "ray_actor_options": {"num_cpus": 0}},
        "log_engine_metrics": False,
        "runtime_env": {"env_vars": {**engine_environment(workload), "PYTHONPATH": str(ROOT)}},
    }
    if adapters:
        config["lora_config"] = {"dynamic_lora_loading_path": f"s3://{BUCKET}", "max_num_adapters_per_replica": SLOTS}
    return config


def _fill(s3: S3Endpoint, workload: Workload) -> None:
    s3.create_bucket(BUCKET)
    client = s3.client()  # type: ignore[no-untyped-call]
    for adapter in workload.adapters:
        for file in adapter.iterdir():
            client.upload_file(str(file), BUCKET, f"{adapter.name}/{file.name}")


def _wait_deployed(processes: ProcessTree) -> None:
    """Its ingress answers long before its engine does, so `ray_app` says when Serve calls the application running."""
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while ray_app.RUNNING not in processes.tail():
        processes.require_alive()
        if time.monotonic() > deadline:
            raise RuntimeError(f"ray.serve.llm is not running after {START_TIMEOUT_SECONDS:.0f} s:\n{processes.tail()}")
        time.sleep(0.5)


@contextlib.contextmanager
def _haproxy_files() -> Iterator[dict[str, str]]:
    """Ports and a folder for its HAProxy that no other stack has. A short path: a unix socket's ends at 107 bytes."""
    folder = tempfile.mkdtemp(prefix="lkb-")
    try:
        yield {
            "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
            "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/admin.sock",
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": folder,
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/server-state",
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{folder}/metrics.sock",
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
