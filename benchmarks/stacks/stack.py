"""A running stack, as the load sees it, and the wait until it answers."""

from __future__ import annotations

import time
from dataclasses import dataclass

import httpx

from benchmarks.models import Workload
from benchmarks.processes import ProcessTree
from deployments.engine import environment

START_TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Stack:
    """`url` ends before /v1; `models` are the names to ask for, the base first; `note` says what it could not be asked for."""

    name: str
    url: str
    key: str | None
    models: tuple[str, ...]
    workload: Workload
    processes: ProcessTree
    note: str = ""

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}


def wait_until_answers(url: str, processes: ProcessTree, headers: dict[str, str] | None = None) -> None:
    """Wait for 200 from `url`. Raises RuntimeError when the stack ends first or takes longer than START_TIMEOUT_SECONDS."""
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        processes.require_alive()
        try:
            if httpx.get(url, headers=headers, timeout=5.0).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise RuntimeError(f"{url} did not answer within {START_TIMEOUT_SECONDS:.0f} s:\n{processes.tail()}")


def engine_environment(workload: Workload) -> dict[str, str]:
    """The environment of every stack's engine: what `lorikeet up` sets for its own by default, so that none runs under other conditions."""
    return {
        **environment.engine_environment(),
        **environment.cpu_environment(1),
        "HF_HUB_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        **workload.environment,
    }
