"""Lorikeet as a user starts it: `lorikeet up` with a config file, a folder as store, adapters pushed through its API, a key asked for."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from benchmarks.models import MAX_RANK, SLOTS, Workload
from benchmarks.processes import ROOT, ProcessTree, running
from benchmarks.stacks.stack import START_TIMEOUT_SECONDS, Stack, engine_environment
from cluster import run_file
from cluster.client import Client
from tests.s3 import free_port

KEY = "lk-key-of-the-benchmarks"
OWNER = "bench"


@contextlib.contextmanager
def start(name: str, workload: Workload, folder: Path, *, gateways: int = 1, replicas: int = 1) -> Iterator[Stack]:
    """Run it in `folder` until the block ends."""
    home = folder / name
    home.mkdir()
    port = free_port()
    config = home / "config.yaml"
    config.write_text(yaml.safe_dump(_settings(workload, home, port, gateways, replicas)))
    command = [sys.executable, "-m", "cluster.cli", "up", "--config", str(config)]
    with running(command, {**engine_environment(workload), "LORIKEET_API_KEY": KEY}, folder / f"{name}.log") as processes:
        _wait_ready(home, processes)
        url = f"http://127.0.0.1:{port}"
        with Client(url, KEY) as client:
            for adapter in workload.adapters:
                client.push(adapter, OWNER, adapter.name)
        models = (workload.base, *(f"{OWNER}/{adapter.name}" for adapter in workload.adapters))
        yield Stack(name, url, KEY, models, workload, processes)


def _settings(workload: Workload, home: Path, port: int, gateways: int, replicas: int) -> dict[str, Any]:
    model = {
        "id": workload.base,
        "source": str(workload.folder),
        "engine": workload.engine,
        "environment": {**workload.environment, "PYTHONPATH": str(ROOT)},
        "lora": {"max_loras": SLOTS, "max_cpu_loras": SLOTS, "max_rank": MAX_RANK},
        "autoscaling": {"min_replicas": replicas, "max_replicas": replicas},
    }
    return {
        "home": str(home),
        "gateway": {"port": port, "replicas": gateways},
        "uploads": {"try_on_replica": workload.name != "null"},  # no adapter has an effect on a worker without a model
        "models": [model],
        "demo_adapters": False,
    }


def _wait_ready(home: Path, processes: ProcessTree) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        processes.require_alive()
        run = run_file.read(home)
        if run is not None and run.ready_at is not None:
            return
        time.sleep(0.5)
    raise RuntimeError(f"lorikeet is not ready after {START_TIMEOUT_SECONDS:.0f} s:\n{processes.tail()}")
