"""The running cluster as the benchmark sees it: a URL for each policy, the store to publish into, and what its replicas have counted."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from adapters_store.access import Scope
from adapters_store.keys import KeyRing
from adapters_store.objects import ObjectStore, open_store
from benchmarks.models import TOKENS_IN_A_STEP, Workload
from benchmarks.placement import cluster_process
from benchmarks.placement.replica import ANSWERED
from benchmarks.placement.seaweed import seaweed_server
from benchmarks.placement.settings import REPLICAS, SLOTS, STEP_MS, STORE_MS, url_file
from benchmarks.placement.slow_store import slow_store
from benchmarks.processes import ROOT, ProcessTree, running
from benchmarks.stacks.stack import START_TIMEOUT_SECONDS, engine_environment

KEY = "lk-key-of-the-benchmarks"
BUCKET = "adapters"


@dataclass(frozen=True, slots=True)
class RunningCluster:
    """`urls` are the gateways' by policy; `folder` holds a folder for each replica under home/nodes."""

    urls: dict[str, str]
    base: str
    store: ObjectStore
    folder: Path
    processes: ProcessTree

    def counts(self) -> Counter[str]:
        """Events of all replicas so far, by name."""
        return sum(self._nodes().values(), Counter())

    def answered(self) -> Counter[str]:
        """Requests so far, by replica."""
        return Counter({node: events[ANSWERED] for node, events in self._nodes().items()})

    def _nodes(self) -> dict[str, Counter[str]]:
        files = (self.folder / "home" / "nodes").glob("*/events.jsonl")
        return {file.parent.name: Counter(json.loads(line)["event"] for line in file.read_text().splitlines()) for file in files}


@contextlib.contextmanager
def start(
    workload: Workload,
    folder: Path,
    policies: tuple[str, ...],
    *,
    batch: int,
    held: int,
    replicas: int = REPLICAS,
) -> Iterator[RunningCluster]:
    """Run it in `folder` until the block ends. `batch` is max_num_seqs, `held` max_cpu_loras."""
    with seaweed_server() as s3, s3.in_environment(), slow_store(_port(s3.url), STORE_MS) as far:
        s3.create_bucket(BUCKET)
        store = open_store(f"s3://{BUCKET}", timeout_seconds=60.0)
        KeyRing(store).create("bench", secret=KEY, scopes=[Scope.ADMIN])
        model = {
            "id": workload.base,
            "source": str(workload.folder),
            "engine": {**workload.engine, "max_num_seqs": batch, "max_num_batched_tokens": TOKENS_IN_A_STEP},
            "environment": {
                **workload.environment,
                "PYTHONPATH": str(ROOT),
                "NULL_STEP_MS": str(STEP_MS),
                "AWS_ENDPOINT_URL": far,
            },
            "lora": {"max_loras": SLOTS, "max_cpu_loras": held, "max_rank": 16},
            "autoscaling": {"min_replicas": replicas, "max_replicas": replicas},
        }
        settings = {
            "home": str(folder / "home"),
            "store": {"url": f"s3://{BUCKET}", "lease_seconds": 30.0},  # looking names up is no matter of placement
            "models": [model],
        }
        config = folder / "cluster.json"
        config.write_text(json.dumps({"settings": settings, "nodes": replicas, "gateways": policies}))
        command = ["-m", "benchmarks.placement.cluster_process", str(config)]
        with running([sys.executable, *command], {**engine_environment(workload), **s3.environment}, folder / "cluster.log") as processes:
            _wait(processes)
            urls = {policy: url_file(folder / "home", policy).read_text() for policy in policies}
            cluster = RunningCluster(urls, workload.base, store, folder, processes)
            for url in urls.values():
                _wait_answers(url, workload.base, processes)
            yield cluster


def _port(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port


def _wait(processes: ProcessTree) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while cluster_process.RUNNING not in processes.tail():
        processes.require_alive()
        if time.monotonic() > deadline:
            raise RuntimeError(f"the cluster is not running after {START_TIMEOUT_SECONDS:.0f} s:\n{processes.tail()}")
        time.sleep(0.5)


def _wait_answers(url: str, base: str, processes: ProcessTree) -> None:
    deadline = time.monotonic() + 120.0
    body = {"model": base, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2, "ignore_eos": True}
    last = ""
    while time.monotonic() < deadline:
        processes.require_alive()
        try:
            answer = httpx.post(f"{url}/api/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=30.0)
            if answer.status_code == 200:
                return
            last = answer.text
        except httpx.HTTPError as error:
            last = repr(error)
        time.sleep(0.5)
    raise RuntimeError(f"{url} does not answer: {last[:300]}\n{processes.tail()}")
